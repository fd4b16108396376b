"""Any folder of videos, 16 frames of 128x128, on a CPU or a GPU.

    python -m mebt_jax.main --config=configs/folder128.py --config.data.path=DIR

DIR as in configs/folder.py, from which all else comes. The steps are meant for a handful of scenes
and an hour of 2 CPU cores, of which the tokenizer takes 37 minutes (benchmarks/RESULTS.md); clips
are then recognisable patchwork. On a GPU set config.tokenizer.adversarial.frame_weight and
video_weight to 1: discriminators sharpen what squared errors blur.
"""

from ml_collections import ConfigDict

from mebt_jax.config import config_beside


def get_config() -> ConfigDict:
    config = config_beside(__file__, "folder.py")
    config.name = "folder128"
    config.data.resolution = 128

    # Tokens of two frames: at this size one token for four frames of 8x8 pixels loses 1 dB more.
    config.tokenizer.compression = (2, 8, 8)
    config.tokenizer.patch = (2, 8, 8)
    config.tokenizer.hidden = 64
    config.tokenizer.codebook_size = 8192
    config.tokenizer.training.steps = 1_000
    config.tokenizer.training.batch_size = 4
    config.tokenizer.training.validate_every = 100
    config.tokenizer.training.checkpoint_every = 100
    config.tokenizer.adversarial.start = 500  # for those who turn them on

    config.prior.training.batch_size = 2
    # Thousands of codes of texture: the demo's long, cold revision ends in flat colours, mostly
    # black.
    config.decoding.temperature = 0.8
    config.decoding.revise_rounds = 6
    config.decoding.revise_temperature = 0.5
    config.method.bucket_steps = 8  # eight times the tokens of the demo pay for more programs
    return config
