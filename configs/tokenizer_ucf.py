r"""UCF-101, the tokenizer alone: TATS's 3D VQGAN with its discriminators, which every other *ucf*
config trains or takes.

    python -m mebt_jax.main --config=configs/tokenizer_ucf.py --stage=tokenizer
    --config.data.source_dir=DIR \
        --config.tokenizer.lpips=WEIGHTS

after the same with --stage=data. DIR holds the data set (docs/data.md), WEIGHTS converted LPIPS
weights (docs/evaluation.md). Then configs/ucf128.py, for instance, takes it with
--config.tokenizer.checkpoint=runs/tokenizer_ucf. Expected hardware: eight GPUs of 32 GB or the same
memory in TPU chips; TATS trained for 10 days on eight V100. Later work measures a reconstruction
FVD of 162 for TATS's own.
"""

from ml_collections import ConfigDict

from mebt_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "tokenizer_ucf"
    config.data.source = "ucf101"
    config.data.frames = 16
    config.data.record_frames = 128
    use_recipe(config.tokenizer)
    return config


def use_recipe(tokenizer: ConfigDict) -> None:
    """Sets the fields of TATS's training command (its README, VQGAN), and its program's
    defaults.
    """
    tokenizer.norm = "batch"
    tokenizer.l1_weight = 4.0
    tokenizer.l2_weight = 0.0
    tokenizer.commitment_weight = 0.25
    tokenizer.perceptual_weight = 4.0
    # The official codebook moves by 0.01 in both halves of a step and in each of its six
    # microbatches.
    tokenizer.codebook_decay = 0.99**12
    # --no_random_restart; the program's default is 1.
    tokenizer.restart_threshold = 0.0

    adversarial = tokenizer.adversarial
    adversarial.frame_weight = 1.0
    adversarial.video_weight = 1.0
    adversarial.feature_weight = 4.0
    adversarial.loss = "hinge"
    adversarial.start = 10_000
    # At once, at full weight, and unregularised.
    adversarial.warmup = 0
    adversarial.ramp = 0
    adversarial.share = 0.0
    adversarial.lecam_weight = 0.0

    training = tokenizer.training
    training.steps = 2_000_000
    # Two clips on each of eight GPUs, accumulated six times.
    training.batch_size = 96
    training.microbatches = 6
    # 3e-5, which the program multiplies by accumulation * GPUs / 8 * batch / 4
    # (scripts/train_vqgan.py:26).
    training.learning_rate = 9e-5
    adversarial.learning_rate = 9e-5
    training.grad_clip_norm = 1.0
    training.beta1, training.beta2 = 0.5, 0.9
