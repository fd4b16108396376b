"""UCF-101, 128 frames, 128x128: the paper's model and the official program's settings.

    python -m mebt_jax.main --config=configs/ucf128.py --config.data.source_dir=DIR

DIR holds the data set; docs/data.md says what to download and how to lay it out. The tokenizer is
that of configs/tokenizer_ucf.py, trained on 16 frames: give its workdir as
--config.tokenizer.checkpoint. Expected hardware: eight GPUs of 80 GB or the same memory in TPU
chips, where the batch of 48 is the official 6 per GPU; on less, raise
config.transformer.training.accumulation, which changes nothing but the time. The paper reports FVD
968 and KVD 75.5; inference at batch 4 in 7.53 s, training at batch 1 in 13.3 GB (Tables 2 and 4).
"""

from ml_collections import ConfigDict

from configs import base, tokenizer_ucf


def get_config() -> ConfigDict:
    config = base.get_config()
    config.name = "ucf128"
    config.data.source = "ucf101"
    config.data.frames = 128

    config.tokenizer = tokenizer_ucf.get_config().tokenizer
    config.transformer.training.learning_rate = 3e-5
    config.transformer.training.weight_decay = 1e-4
    config.transformer.training.batch_size = 48
    config.masking.interval_schedule = "clip"
    config.masking.interval_alpha = 100_000.0

    # docs/architecture.md, section 5: the official sampling scripts.
    config.sample.draft_steps = 32
    config.sample.choice_temperature = 2.0
    config.sample.top_k = 32
    config.sample.bootstrap_steps = 64
    config.sample.revise_rounds = 2
    config.sample.revise_partitions = 32
    config.sample.revise_temperature = 0.1
    return config
