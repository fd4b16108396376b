"""UCF-101, 16 frames, 128x128: the paper's model and the official program's settings.

    python -m mebt_jax.main --config=configs/ucf16.py --config.data.source_dir=DIR

DIR holds the data set; docs/data.md says what to download and how to lay it out. The tokenizer is
that of configs/tokenizer_ucf.py, trained on 16 frames: give its workdir as
--config.tokenizer.checkpoint. Expected hardware: eight GPUs of 80 GB or the same memory in TPU
chips, where the batch of 256 is the official 32 per GPU; on less, raise
config.transformer.training.accumulation, which changes nothing but the time. The paper reports FVD
438 and IS 65.93; inference at batch 4 in 1.1 to 1.4 s, training at batch 4 in 9.5 GB (Table 1).
"""

from ml_collections import ConfigDict

from configs import base, tokenizer_ucf


def get_config() -> ConfigDict:
    config = base.get_config()
    config.name = "ucf16"
    config.data.source = "ucf101"
    config.data.frames = 16
    config.data.record_frames = 128

    config.tokenizer = tokenizer_ucf.get_config().tokenizer
    config.transformer.training.learning_rate = 3e-5
    config.transformer.training.weight_decay = 1e-4
    config.transformer.training.batch_size = 256
    config.masking.interval_schedule = "longest"

    # docs/architecture.md, section 5: the official sampling scripts.
    config.sample.draft_steps = 128
    config.sample.choice_temperature = 6.0
    config.sample.top_k = 0
    config.sample.bootstrap_steps = 0
    config.sample.revise_rounds = 4
    config.sample.revise_partitions = 4
    config.sample.revise_temperature = 0.7
    return config
