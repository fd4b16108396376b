"""Taichi-HD, 128 frames, 128x128: the paper's model and the official program's settings.

    python -m mebt_jax.main --config=configs/taichi128.py --config.data.source_dir=DIR

DIR holds the data set; docs/data.md says what to download and how to lay it out. The tokenizer is
that of configs/tokenizer_taichi.py, trained on 16 frames: give its workdir as
--config.tokenizer.checkpoint. Expected hardware: eight GPUs of 80 GB or the same memory in TPU
chips, where the batch of 32 is the official 4 per GPU; on less, raise
config.transformer.training.accumulation, which changes nothing but the time. The paper reports FVD
399 and KVD 139; inference at batch 4 in 6.62 s, training at batch 1 in 13.3 GB (Tables 2 and 4).
"""

from ml_collections import ConfigDict

from configs import base, tokenizer_taichi


def get_config() -> ConfigDict:
    config = base.get_config()
    config.name = "taichi128"
    config.data.source = "taichi_hd"
    config.data.frames = 128

    config.tokenizer = tokenizer_taichi.get_config().tokenizer
    config.transformer.training.learning_rate = 3e-5
    config.transformer.training.weight_decay = 1e-4
    config.transformer.training.batch_size = 32
    config.masking.interval_schedule = "clip"
    config.masking.interval_alpha = 100_000.0

    # docs/architecture.md, section 5: the official sampling scripts.
    config.sample.draft_steps = 32
    config.sample.choice_temperature = 4.0
    config.sample.top_k = 32
    config.sample.bootstrap_steps = 64
    config.sample.revise_rounds = 4
    config.sample.revise_partitions = 2
    config.sample.revise_temperature = 0.1
    return config
