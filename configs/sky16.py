"""SkyTimelapse, 16 frames, 128x128: the paper's model and the official program's settings.

    python -m mebt_jax.main --config=configs/sky16.py --config.data.source_dir=DIR

DIR holds the data set; docs/data.md says what to download and how to lay it out. The tokenizer is
that of configs/tokenizer_sky.py, trained on 16 frames: give its workdir as
--config.tokenizer.checkpoint. Expected hardware: eight GPUs of 24 GB or the same memory in TPU
chips, where the batch of 48 is the official 6 per GPU; on less, raise
config.prior.training.microbatches, which changes nothing but the time. The paper reports FVD
90.4 and KVD 2.6; inference at batch 4 in 1.10 s, training at batch 4 in 9.5 GB (Table 1).
"""

import dataclasses

from ml_collections import ConfigDict

from mebt_jax.config import config_beside, default_config
from mebt_jax.methods.masked.presets import PRESETS


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "sky16"
    config.data.source = "sky_timelapse"
    config.data.frames = 16
    config.data.record_frames = 128

    config.tokenizer = config_beside(__file__, "tokenizer_sky.py").tokenizer
    config.prior.training.learning_rate = 1.08e-5
    config.prior.training.weight_decay = 0.01
    config.prior.training.batch_size = 48
    config.backbone.embedding_dropout = 0.1
    config.backbone.residual_dropout = 0.1
    config.backbone.attention_dropout = 0.1
    config.method.interval_schedule = "longest"

    config.decoding.update(dataclasses.asdict(PRESETS["sky16"]))
    return config
