"""One small config of each quantizer, shared by their tests."""

import dataclasses

from configs import base
from mebt_jax import config as config_module

EMA = dataclasses.replace(
    config_module.from_config_dict(base.get_config()).tokenizer,
    codebook_size=20,
    code_width=6,
    codebook_decay=0.9,
)
CONFIGS = {
    "ema": EMA,
    "gradient": dataclasses.replace(EMA, quantizer="gradient"),
    "fsq": dataclasses.replace(
        EMA, quantizer="fsq", codebook_size=60, levels=(4, 5, 3), code_width=3
    ),
    "lfq": dataclasses.replace(EMA, quantizer="lfq", codebook_size=32, code_width=5),
}
