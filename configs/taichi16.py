"""Taichi-HD, 16 frames, every 4th frame, 128x128: the paper's model and the official program's
settings.

    python -m mebt_jax.main --config=configs/taichi16.py --config.data.source_dir=DIR

DIR holds the data set; docs/data.md says what to download and how to lay it out. The tokenizer is
that of configs/tokenizer_taichi.py, trained on 16 frames: give its workdir as
--config.tokenizer.checkpoint. Expected hardware: eight GPUs of 80 GB or the same memory in TPU
chips, where the batch of 256 is the official 32 per GPU; on less, raise
config.prior.training.microbatches, which changes nothing but the time. The paper reports FVD
122.7 and KVD 16.9; inference at batch 4 in 1.36 s, training at batch 4 in 9.5 GB (Table 1).
"""

import dataclasses

from ml_collections import ConfigDict

from mebt_jax.config import config_beside, default_config
from mebt_jax.methods.masked.presets import PRESETS


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "taichi16"
    config.data.source = "taichi_hd"
    config.data.frames = 16
    config.data.frame_stride = 4
    config.data.record_frames = 128

    config.tokenizer = config_beside(__file__, "tokenizer_taichi.py").tokenizer
    config.prior.training.learning_rate = 3e-5
    config.prior.training.weight_decay = 1e-4
    config.prior.training.batch_size = 256
    config.method.interval_schedule = "longest"

    config.decoding.update(dataclasses.asdict(PRESETS["taichi16"]))
    return config
