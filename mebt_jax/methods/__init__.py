"""Ways to train a backbone and to draw clips with it, by the name in `config.method.kind`."""

from mebt_jax.methods.interface import Method
from mebt_jax.methods.masked.masked_method import MaskedMethod

METHODS: dict[str, type[Method]] = {"masked": MaskedMethod}
