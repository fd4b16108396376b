"""Any folder of videos, 16 frames of 64x64: the whole pipeline on your own clips, on a laptop or
one GPU.

    python -m mebt_jax.main --config=configs/folder.py --config.data.path=DIR

DIR holds mp4, mkv, avi, mov, webm or GIF files, folders of frames, or frame lists (docs/data.md).
The sizes and steps are meant for a handful of scenes on 2 CPU cores, where they learn them by
heart; for more videos raise config.prior.training.steps and config.backbone.width, and on
several devices the batch sizes and config.mesh.data.
"""

from ml_collections import ConfigDict

from mebt_jax.config import config_beside


def get_config() -> ConfigDict:
    config = config_beside(__file__, "demo.py")
    config.name = "folder"
    config.data.source = "folder"

    config.tokenizer.compression = (4, 8, 8)
    config.tokenizer.patch = (4, 8, 8)
    config.tokenizer.hidden = 32
    config.tokenizer.codebook_size = 4096
    config.tokenizer.code_width = 128
    config.tokenizer.training.steps = 300

    config.prior.training.steps = 1_500
    config.prior.training.batch_size = 8
    return config
