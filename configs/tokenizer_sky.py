r"""SkyTimelapse, the tokenizer alone: TATS's 3D VQGAN with its discriminators, which every other
*sky* config trains or takes.

    python -m mebt_jax.main --config=configs/tokenizer_sky.py --stage=tokenizer
    --config.data.source_dir=DIR \
        --config.tokenizer.lpips=WEIGHTS

after the same with --stage=data; see configs/tokenizer_ucf.py for the recipe, the hardware and what
takes it.
"""

from ml_collections import ConfigDict

from mebt_jax.config import config_beside


def get_config() -> ConfigDict:
    config = config_beside(__file__, "tokenizer_ucf.py")
    config.name = "tokenizer_sky"
    config.data.source = "sky_timelapse"
    return config
