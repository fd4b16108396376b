"""SkyTimelapse, 128 frames, 128x128: the paper's model and the official program's settings.

    python -m mebt_jax.main --config=configs/sky128.py --config.data.source_dir=DIR

DIR holds the data set; docs/data.md says what to download and how to lay it out. The tokenizer is
that of configs/tokenizer_sky.py, trained on 16 frames: give its workdir as
--config.tokenizer.checkpoint. Expected hardware: eight GPUs of 80 GB or the same memory in TPU
chips, where the batch of 40 is the official 5 per GPU; on less, raise
config.transformer.training.accumulation, which changes nothing but the time. The paper reports FVD
239 and KVD 5.1; inference at batch 4 in 6.53 s, training at batch 1 in 13.3 GB (Tables 2 and 4).
"""

from ml_collections import ConfigDict

from configs import base, tokenizer_sky


def get_config() -> ConfigDict:
    config = base.get_config()
    config.name = "sky128"
    config.data.source = "sky_timelapse"
    config.data.frames = 128

    config.tokenizer = tokenizer_sky.get_config().tokenizer
    config.transformer.training.learning_rate = 1.8e-5
    config.transformer.training.weight_decay = 0.01
    config.transformer.training.batch_size = 40
    config.transformer.embedding_dropout = 0.1
    config.transformer.residual_dropout = 0.1
    config.transformer.attention_dropout = 0.1
    config.masking.interval_schedule = "clip"
    config.masking.interval_alpha = 30_000.0

    # docs/architecture.md, section 5: the official sampling scripts.
    config.sample.draft_steps = 32
    config.sample.choice_temperature = 4.0
    config.sample.top_k = 32
    config.sample.bootstrap_steps = 64
    config.sample.revise_rounds = 2
    config.sample.revise_partitions = 2
    config.sample.revise_temperature = 0.7
    return config
