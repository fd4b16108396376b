"""Any folder of videos at 64x64: the whole pipeline on your own clips, on a laptop or one GPU.

    python -m mebt_jax.main --config=configs/folder.py --config.data.path=DIR

DIR holds mp4, mkv, avi, mov, webm or GIF files, folders of frames, or frame lists (docs/data.md).
"""

from ml_collections import ConfigDict

from configs import demo


def get_config() -> ConfigDict:
    config = demo.get_config()
    config.name = "folder"
    config.data.source = "folder"
    config.data.resolution = 64
    config.mesh.data = -1

    config.tokenizer.compression = (4, 8, 8)
    config.tokenizer.patch = (4, 4, 4)
    config.tokenizer.codes = 1024
    return config
