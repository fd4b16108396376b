"""Moving shapes, 16 frames of 64x64, on a laptop: the whole pipeline on built-in data.

python -m mebt_jax.main --config=configs/demo.py
"""

from ml_collections import ConfigDict

from mebt_jax.backbones.mebt.mebt_config import FLAVOURS
from mebt_jax.config import default_config


def get_config() -> ConfigDict:
    config = default_config()
    config.name = "demo"
    config.data.source = "moving_shapes"
    config.data.resolution = 64
    config.data.frames = 16
    config.data.train_clips = 100_000

    # A patch of the whole compression: every convolution runs on the small latent grid, where a CPU
    # is fast, and equal patches have equal tokens.
    config.tokenizer.compression = (4, 16, 16)
    config.tokenizer.patch = (4, 16, 16)
    config.tokenizer.norm = "layer"
    config.tokenizer.hidden = 16
    config.tokenizer.codebook_size = 512
    config.tokenizer.code_width = 64
    # A rare code occurs in one batch of many: it is restarted only when it has not been seen in
    # hundreds of steps.
    config.tokenizer.restart_threshold = 0.001
    config.tokenizer.l1_weight = 1.0
    config.tokenizer.l2_weight = 4.0
    config.tokenizer.training.steps = 150
    config.tokenizer.training.batch_size = 16
    # The start is fitted to the data; a large rate would first undo it.
    config.tokenizer.training.learning_rate = 3e-4
    config.tokenizer.training.warmup_steps = 20
    config.tokenizer.training.decay = "cosine"
    config.tokenizer.training.beta1 = 0.9
    config.tokenizer.training.beta2 = 0.95
    config.tokenizer.training.ema_decay = 0.98
    config.tokenizer.training.log_every = 10
    config.tokenizer.training.validate_every = 50
    config.tokenizer.training.validation_batches = 4
    config.tokenizer.training.checkpoint_every = 75

    config.backbone.layers = ("encode", "latent", "encode") + ("decode", "update") * 2 + ("decode",)
    config.backbone.width = 128
    config.backbone.heads = 4
    config.backbone.num_latents = 48
    config.backbone.update(FLAVOURS["modern"])
    config.backbone.dtype = "float32"
    config.backbone.remat = "none"
    config.prior.training.steps = 1_550
    config.prior.training.batch_size = 32
    config.prior.training.learning_rate = 2e-3
    config.prior.training.warmup_steps = 100
    config.prior.training.decay = "cosine"
    config.prior.training.ema_decay = 0.99
    config.prior.training.validate_every = 775
    config.prior.training.validation_batches = 4
    config.prior.training.checkpoint_every = 500
    config.method.interval_schedule = "longest"
    config.method.bucket_steps = 4

    config.sample.clips = 16
    config.sample.batch_size = 16
    # One token at a time, in random order: by confidence, the draft would commit to empty
    # background everywhere.
    config.decoding.order = "random"
    config.decoding.mask_schedule = "linear"
    config.decoding.draft_steps = 64
    config.decoding.temperature = 1.0
    config.decoding.top_k = 0
    config.decoding.bootstrap_steps = 0
    config.decoding.revise_rounds = 16
    config.decoding.revise_partitions = 32
    config.decoding.revise_temperature = 0.2
    config.sample.frames_per_second = 8.0
    config.evaluate.clips = 64
    # As many as a training step takes: its programs that check on training are then the ones that
    # measure, compiled already.
    config.evaluate.batch_size = 32
    config.evaluate.window = 8
    config.evaluate.window_every = 4
    # A clip this small gains nothing from a second device.
    config.mesh.data = 1
    return config
