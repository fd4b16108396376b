"""Quantizers without a search: the codebook is a fixed grid, and every feature is rounded by
itself.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from mebt_jax.tokenizer.quantizers.quantizer import CodebookStat, Quantizer
from mebt_jax.tokenizer.tokenizer_config import TokenizerConfig


class FixedGrid(Quantizer):
    """Feature i takes one of `levels[i]` values; a token is the number whose digits, of mixed
    radix, count these values, the first feature first.

    Args:
        levels: E numbers whose product is V.
        centre, scale: the value of a digit is (digit - centre) / scale, scalars or [E].
    """

    fixed_codebook = True

    def __init__(
        self,
        config: TokenizerConfig,
        levels: tuple[int, ...],
        centre: np.ndarray | float,
        scale: np.ndarray | float,
    ):
        super().__init__(config)
        self.levels = levels
        digits = np.stack(
            np.unravel_index(np.arange(config.codebook_size), levels), axis=-1
        )  # [V, E]
        self.codebook = CodebookStat(jnp.asarray((digits - centre) / scale, jnp.float32))

    def join_digits(self, digits: jax.Array) -> jax.Array:
        """Digits int32 [..., E] -> tokens int32 [...]."""
        # [E]: what one step along each feature adds to the token.
        steps = math.prod(self.levels) // np.cumprod(np.array(self.levels))
        return digits @ steps.astype(np.int32)
