"""1,024 frames of 128x128: the paper's model at 65,536 tokens, each clip split over several chips.

    python -m mebt_jax.main --config=configs/long1024.py --config.data.source_dir=DIR

DIR holds long videos in any form that configs/folder.py takes; those shorter than 1,024 frames are
left out. Nothing but the position table grows with the length: a clip of 1,024 frames costs what
eight of 128 cost. Expected hardware: 16 TPU v5e chips, four to a clip; on more, raise the batch
size or lower microbatches (docs/scaling.md). Give config.tokenizer.checkpoint, a tokenizer trained
on short clips: it is convolutional, and the tokens are stored once.
"""

import dataclasses

from ml_collections import ConfigDict

from mebt_jax.config import default_config
from mebt_jax.methods.masked.presets import PRESETS


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "long1024"
    config.data.source = "folder"
    config.data.frames = 1024
    config.data.record_frames = 1024
    config.data.tokens = True

    config.prior.training.batch_size = 16
    config.prior.training.microbatches = 4
    # The interval grows by a latent frame every so many steps: the same number of steps to the full
    # length as ucf128.
    config.method.interval_schedule = "gaussian_clipped"
    config.method.interval_alpha = 12_500.0
    config.mesh.sequence = 4

    config.sample.batch_size = 4
    config.decoding.update(dataclasses.asdict(PRESETS["ucf128"]))
    config.evaluate.batch_size = 4
    return config
