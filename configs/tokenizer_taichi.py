r"""Taichi-HD, the tokenizer alone: TATS's 3D VQGAN with its discriminators, which every other
*taichi* config trains or takes.

    python -m mebt_jax.main --config=configs/tokenizer_taichi.py --stage=tokenizer
    --config.data.source_dir=DIR \
        --config.tokenizer.lpips=WEIGHTS

after the same with --stage=data; see configs/tokenizer_ucf.py for the recipe, the hardware and what
takes it.
"""

from ml_collections import ConfigDict

from mebt_jax.config import config_beside


def get_config() -> ConfigDict:
    config = config_beside(__file__, "tokenizer_ucf.py")
    config.name = "tokenizer_taichi"
    config.data.source = "taichi_hd"
    # TATS's README: every fourth frame, also for a tokenizer that then encodes all of them
    # (taichi128).
    config.data.frame_stride = 4
    return config
