"""UCF-101, 128 frames, 128x128: the paper's model and the official program's settings.

    python -m mebt_jax.main --config=configs/ucf128.py --config.data.source_dir=DIR

DIR holds the data set; docs/data.md says what to download and how to lay it out. The tokenizer is
that of configs/tokenizer_ucf.py, trained on 16 frames: give its workdir as
--config.tokenizer.checkpoint. Expected hardware: eight GPUs of 80 GB or the same memory in TPU
chips, where the batch of 48 is the official 6 per GPU; on less, raise
config.prior.training.microbatches, which changes nothing but the time. The paper reports FVD
968 and KVD 75.5; inference at batch 4 in 7.53 s, training at batch 1 in 13.3 GB (Tables 2 and 4).
"""

import dataclasses

from ml_collections import ConfigDict

from mebt_jax.config import config_beside, default_config
from mebt_jax.methods.masked.presets import PRESETS


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "ucf128"
    config.data.source = "ucf101"
    config.data.frames = 128

    config.tokenizer = config_beside(__file__, "tokenizer_ucf.py").tokenizer
    config.prior.training.learning_rate = 3e-5
    config.prior.training.weight_decay = 1e-4
    config.prior.training.batch_size = 48
    config.method.interval_schedule = "gaussian_clipped"
    config.method.interval_alpha = 100_000.0

    config.decoding.update(dataclasses.asdict(PRESETS["ucf128"]))
    return config
