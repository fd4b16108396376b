"""Quantizers whose codebook follows the features: a feature becomes the token of the nearest
embedding.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import lax

from mebt_jax.tokenizer.quantizers.quantizer import Quantizer, random_rows

# Embeddings that are compared at one time, so that the distances [n, V] to a large codebook never
# exist as a whole.
CODEBOOK_BLOCK = 2048


class LearnedCodebook(Quantizer):
    """Vector quantization (van den Oord et al. 2017); subclasses say how the codebook learns."""

    fixed_codebook = False

    def tokenize(self, features: jax.Array) -> jax.Array:
        return nearest_tokens(self.codebook[...], features)

    def set_codebook(self, codebook: jax.Array, counts: jax.Array) -> None:
        """Sets the embeddings [V, E] and the running counts [V] that go with them, in place."""
        self.codebook[...] = codebook
        self.counts[...] = counts

    def init_from_features(self, features: jax.Array, key: jax.Array) -> None:
        """Sets the codebook to random features of a first batch [..., E], in place."""
        drawn = random_rows(features, self.counts.size, key)
        self.set_codebook(drawn, jnp.ones_like(self.counts[...]))


def nearest_tokens(codebook: jax.Array, features: jax.Array) -> jax.Array:
    """Index of the embedding [V, E] that is nearest to each feature [..., E], int32 [...]; the
    lowest of equal ones.
    """
    features = lax.stop_gradient(features).astype(jnp.float32)
    codebook_size = len(codebook)
    block = min(CODEBOOK_BLOCK, codebook_size)
    padding = -codebook_size % block
    embeddings = jnp.pad(codebook, ((0, padding), (0, 0)))
    half_norms = jnp.pad(
        0.5 * jnp.sum(jnp.square(codebook), axis=-1), (0, padding), constant_values=jnp.inf
    )

    def compare(best, candidates):
        offset, embeddings, half_norms = candidates  # [], [block, E], [block]
        # |x - e|^2 = |x|^2 - 2 (x.e - |e|^2 / 2): the nearest embedding has the highest score.
        # Features keep their axes, which may be split over devices.
        scores = jnp.einsum("...e,ve->...v", features, embeddings, precision=lax.Precision.HIGHEST)
        scores = scores - jnp.expand_dims(
            half_norms, tuple(range(features.ndim - 1))
        )  # [..., block]
        index = jnp.argmax(scores, axis=-1).astype(jnp.int32)
        score = jnp.max(scores, axis=-1)
        better = score > best[0]
        return (jnp.where(better, score, best[0]), jnp.where(better, offset + index, best[1])), None

    candidates = (
        jnp.arange(0, codebook_size, block, dtype=jnp.int32),
        rearrange(embeddings, "(n block) e -> n block e", block=block),
        rearrange(half_norms, "(n block) -> n block", block=block),
    )
    start = (jnp.full(features.shape[:-1], -jnp.inf), jnp.zeros(features.shape[:-1], jnp.int32))
    (_, tokens), _ = lax.scan(compare, start, candidates)
    return tokens
