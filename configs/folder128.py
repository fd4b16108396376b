"""Any folder of videos, 16 frames of 128x128: a tokenizer that is trained against a discriminator of frames, on a CPU or a GPU.

    python -m mebt_jax.main --config=configs/folder128.py --config.data.path=DIR

DIR as in configs/folder.py, from which all else comes. The discriminator is small, and looks at one frame of each clip, so that an
hour of 2 CPU cores is enough for a handful of scenes; on a GPU raise config.tokenizer.adversarial.channels to 64 and clip_weight
to 1.
"""

from ml_collections import ConfigDict

from configs import folder


def get_config() -> ConfigDict:
    config = folder.get_config()
    config.name = "folder128"
    config.data.resolution = 128

    tokenizer = config.tokenizer
    tokenizer.hidden = 64
    tokenizer.training.steps = 1_500
    tokenizer.training.batch_size = 8
    # The last two thirds against the discriminator, the first 200 steps of which it learns alone.
    tokenizer.adversarial.frame_weight = 1.0
    tokenizer.adversarial.channels = 32
    tokenizer.adversarial.start = 700
    tokenizer.adversarial.warmup = 200
    tokenizer.adversarial.ramp = 200
    return config
