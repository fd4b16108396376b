"""Finite scalar quantization (Mentzer et al. 2023): every feature is squashed into an interval and
rounded to one of a few levels.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from mebt_jax.tokenizer.quantizers.fixed_grid import FixedGrid
from mebt_jax.tokenizer.tokenizer_config import TokenizerConfig

MARGIN = 1e-3  # by how much squashed features may pass the outermost levels (FSQ, appendix A)


class FSQQuantizer(FixedGrid):
    def __init__(self, config: TokenizerConfig, *, rngs: nnx.Rngs):
        halves = np.array(config.levels) // 2
        super().__init__(config, config.levels, centre=halves, scale=halves)

    def tokenize(self, features: jax.Array) -> jax.Array:
        features = lax.stop_gradient(features).astype(jnp.float32)
        halves = jnp.expand_dims(np.array(self.levels) // 2, tuple(range(features.ndim - 1)))
        return self.join_digits(jnp.round(self.bound(features) * halves).astype(jnp.int32) + halves)

    def bound(self, features: jax.Array) -> jax.Array:
        return squash(features, self.levels)

    def loss_terms(
        self, features: jax.Array, embeddings: jax.Array, commitment: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return jnp.zeros(()), {}  # squashed features cannot run away from the codebook


def squash(features: jax.Array, levels: tuple[int, ...]) -> jax.Array:
    """Features [..., E] -> the interval of their levels, scaled so that the outermost levels are
    near -1 and 1; 0 stays 0.
    """
    counts = np.array(levels)
    reach = (counts - 1) * (1 + MARGIN) / 2
    # Even numbers of levels have one more level below 0 than above.
    offset = np.where(counts % 2 == 0, 0.5, 0.0)
    shift, leading = np.arctanh(offset / reach).astype(np.float32), tuple(range(features.ndim - 1))
    reach, offset, shift, halves = (
        jnp.expand_dims(np.float32(x), leading) for x in (reach, offset, shift, counts // 2)
    )
    return (jnp.tanh(features + shift) * reach - offset) / halves
