"""SkyTimelapse, 16 frames, 128x128: the paper's model and the official program's settings.

    python -m mebt_jax.main --config=configs/sky16.py --config.data.source_dir=DIR

DIR holds the data set; docs/data.md says what to download and how to lay it out. The tokenizer is
that of configs/tokenizer_sky.py, trained on 16 frames: give its workdir as
--config.tokenizer.checkpoint. Expected hardware: eight GPUs of 24 GB or the same memory in TPU
chips, where the batch of 48 is the official 6 per GPU; on less, raise
config.transformer.training.accumulation, which changes nothing but the time. The paper reports FVD
90.4 and KVD 2.6; inference at batch 4 in 1.10 s, training at batch 4 in 9.5 GB (Table 1).
"""

from ml_collections import ConfigDict

from configs import base, tokenizer_sky


def get_config() -> ConfigDict:
    config = base.get_config()
    config.name = "sky16"
    config.data.source = "sky_timelapse"
    config.data.frames = 16
    config.data.record_frames = 128

    config.tokenizer = tokenizer_sky.get_config().tokenizer
    config.transformer.training.learning_rate = 1.08e-5
    config.transformer.training.weight_decay = 0.01
    config.transformer.training.batch_size = 48
    config.transformer.embedding_dropout = 0.1
    config.transformer.residual_dropout = 0.1
    config.transformer.attention_dropout = 0.1
    config.masking.interval_schedule = "longest"

    # docs/architecture.md, section 5: the official sampling scripts.
    config.sample.draft_steps = 32
    config.sample.choice_temperature = 8.0
    config.sample.top_k = 0
    config.sample.bootstrap_steps = 0
    config.sample.revise_rounds = 2
    config.sample.revise_partitions = 2
    config.sample.revise_temperature = 0.7
    return config
