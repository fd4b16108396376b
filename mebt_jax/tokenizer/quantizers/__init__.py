"""Quantizers by the name that `config.tokenizer.quantizer` gives them.

A new kind is a file with a subclass of `Quantizer`, and a line here. The tokenizer owns its
quantizer as a module, and the quantizer owns its codebook.
"""

from mebt_jax.tokenizer.quantizers.ema_quantizer import EMAQuantizer
from mebt_jax.tokenizer.quantizers.fsq_quantizer import FSQQuantizer
from mebt_jax.tokenizer.quantizers.gradient_quantizer import GradientQuantizer
from mebt_jax.tokenizer.quantizers.lfq_quantizer import LFQQuantizer

QUANTIZERS = {
    "ema": EMAQuantizer,
    "gradient": GradientQuantizer,
    "fsq": FSQQuantizer,
    "lfq": LFQQuantizer,
}
