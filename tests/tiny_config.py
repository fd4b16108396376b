"""The smallest config that runs every stage: for tests in this process, and as
`--config=tests/tiny_config.py`.
"""

from ml_collections import ConfigDict

from mebt_jax.config import default_config


def tiny_config(**overrides) -> ConfigDict:
    """8 frames of 16x16, 2x4x4 tokens; overrides are dotted names with the dots as double
    underscores: method__bucket_steps=1.
    """
    config = default_config()
    config.name = "tiny"
    config.data.resolution = 16
    config.data.frames = 8
    config.data.train_clips = 64
    config.data.validation_clips = 16

    config.tokenizer.compression = (4, 4, 4)
    config.tokenizer.patch = (4, 4, 4)
    config.tokenizer.hidden = 8
    config.tokenizer.codebook_size = 16
    config.tokenizer.code_width = 8

    config.backbone.layers = ("encode", "decode")
    config.backbone.width = 16
    config.backbone.heads = 2
    config.backbone.num_latents = 4
    config.backbone.dtype = "float32"
    config.backbone.remat = "none"
    config.backbone.residual_dropout = 0.1
    config.method.loss_block = 16
    # One set of array sizes, so one program to compile.
    config.method.interval_schedule = "longest"
    config.method.bucket_steps = 1

    for training in (config.tokenizer.training, config.prior.training):
        training.steps = 6
        training.batch_size = 8
        training.learning_rate = 1e-3
        training.log_every = 2
        training.validate_every = 4
        training.validation_batches = 1
        training.checkpoint_every = 3

    config.sample.clips = 8
    config.sample.batch_size = 8
    config.decoding.draft_steps = 1
    config.decoding.top_k = 0
    config.decoding.bootstrap_steps = 0
    config.decoding.revise_rounds = 1
    config.decoding.revise_partitions = 2
    config.evaluate.clips = 8
    config.evaluate.batch_size = 8

    config.runtime.fsdp_min_elements = 512  # so that tiny arrays are split too
    config.lock()
    config.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in overrides.items()}
    )
    return config


def get_config() -> ConfigDict:
    return tiny_config()
