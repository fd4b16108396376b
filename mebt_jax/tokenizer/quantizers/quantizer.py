"""What all quantizers share: a codebook of V embeddings, the straight-through gradient, and counts
of how often each token is used.

A quantizer stands between `Tokenizer.encode` and `Tokenizer.decode`: features [..., E] become
tokens [...] (indices into the codebook), and tokens become embeddings [..., E].
"""

from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx, struct
from jax import lax

from mebt_jax.tokenizer.tokenizer_config import TokenizerConfig

# A token is dead if its running count is below this share of what one single use adds to the count.
# At a decay of 0.99 a token becomes dead 460 batches after its last use.
DEAD = 0.01
TILE_NOISE = 0.01  # times E^-1/2: separates copies of one feature (official value)


class CodebookStat(nnx.Variable):
    """State of a codebook that no gradient trains: running averages, counts, a fixed table."""


@struct.dataclass
class QuantizerOutput:
    tokens: jax.Array  # [...] int32
    # [..., E] float32: the embeddings of the tokens. Their gradient goes to the features as if
    # nothing had been rounded.
    quantized: jax.Array
    quantizer_loss: jax.Array  # [] the quantizer's own terms of the loss, weighted
    # Scalars: commitment, the mean squared distance of a feature to its embedding;
    # quantization_error, the commitment over the variance of the features, above 1 if one embedding
    # for all features would be nearer; perplexity, usage, dead; terms of the kind.
    metrics: dict[str, jax.Array]


class Quantizer(nnx.Module):
    """Base class. A kind of quantizer defines `codebook`, `tokenize` and `loss_terms`, and
    overrides `bound`, `update` and `usage_advice` where it needs more.

    Attributes:
        codebook: [V, E] float32, the embedding of each token as the decoder sees it.
        counts: [V] float32, running mean of the number of uses of each token per batch.
        fixed_codebook: True if the codebook never changes, so that the features have to spread
            over it; False if it follows the features.
    """

    codebook: nnx.Variable
    fixed_codebook: ClassVar[bool]

    def __init__(self, config: TokenizerConfig):
        self.counts = CodebookStat(jnp.zeros((config.codebook_size,)))
        self.decay = config.codebook_decay

    # ---- what a kind defines -------------------------------------------------------------------

    def tokenize(self, features: jax.Array) -> jax.Array:
        """Token of each feature: [..., E] -> int32 [...]."""
        raise NotImplementedError

    def bound(self, features: jax.Array) -> jax.Array:
        """Features [..., E] in the space of the codebook, where the two are compared."""
        return features

    def loss_terms(
        self, features: jax.Array, embeddings: jax.Array, commitment: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The quantizer's weighted terms of the loss, and metrics of the kind.

        Args:
            features: [..., E] float32, after `bound`.
            embeddings: [..., E] of their tokens; a gradient reaches a trained codebook.
            commitment: [] mean squared distance; its gradient reaches the features alone.
        """
        raise NotImplementedError

    @staticmethod
    def usage_advice(config: TokenizerConfig) -> str:
        """What to change in the config, in the imperative, if training uses only a few tokens."""
        return (
            "lower config.tokenizer.training.learning_rate or raise "
            "config.tokenizer.commitment_weight"
        )

    # ---- what all have -------------------------------------------------------------------------

    def __call__(self, features: jax.Array) -> QuantizerOutput:
        """Replaces each feature of [..., E] by the embedding of its token."""
        tokens = self.tokenize(features)
        embeddings = self.lookup(tokens)  # [..., E]
        features = self.bound(features.astype(jnp.float32))
        target = lax.stop_gradient(embeddings)
        commitment = jnp.mean(jnp.square(features - target))
        variance = jnp.mean(jnp.var(features, axis=range(features.ndim - 1)))
        metrics = {
            "commitment": commitment,
            "quantization_error": commitment / (variance + 1e-12),
            "dead": self.dead_share(),
            **token_metrics(tokens, self.counts.size),
        }
        loss, terms = self.loss_terms(features, embeddings, commitment)
        quantized = features + lax.stop_gradient(target - features)
        return QuantizerOutput(tokens, quantized, loss, metrics | terms)

    def lookup(self, tokens: jax.Array) -> jax.Array:
        """Embeddings [..., E] of tokens [...]."""
        return jnp.take(self.codebook[...], tokens, axis=0)

    def update(self, features: jax.Array, tokens: jax.Array, key: jax.Array) -> None:
        """Moves the running averages in place by one training step.

        Under jit with a batch that is split over devices these are averages over the whole batch.

        Args:
            features: [..., E] of this batch.
            tokens: [...] of the features, by the codebook before the update.
            key: for random choices of the kind.
        """
        counts = count_tokens(tokens, self.counts.size)
        self.counts[...] = self.decay * self.counts[...] + (1 - self.decay) * counts

    def dead_share(self) -> jax.Array:
        """Share (0 to 1) of the tokens that were never used, or not in the last hundreds of batches
        (see DEAD).
        """
        return jnp.mean(self.counts[...] < DEAD * (1 - self.decay))


def count_tokens(tokens: jax.Array, codebook_size: int) -> jax.Array:
    """How often each token occurs, float32 [V]."""
    return jax.ops.segment_sum(jnp.ones((tokens.size,)), tokens.reshape(-1), codebook_size)


def token_metrics(tokens: jax.Array, codebook_size: int) -> dict[str, jax.Array]:
    """`perplexity` of the tokens of a batch (1 to V) and `usage`, the share of the codebook that
    occurs in it (0 to 1).
    """
    counts = count_tokens(tokens, codebook_size)
    probabilities = counts / tokens.size
    entropy = -jnp.sum(probabilities * jnp.log(probabilities + 1e-10))
    return {"perplexity": jnp.exp(entropy), "usage": jnp.mean(counts > 0)}


def random_rows(features: jax.Array, number: int, key: jax.Array) -> jax.Array:
    """`number` different random rows [number, E] of features [..., E].

    If there are fewer features than that, they are repeated with a little noise.
    """
    flat = lax.stop_gradient(features).astype(jnp.float32).reshape(-1, features.shape[-1])
    choice_key, noise_key = jax.random.split(key)
    rows = flat.shape[0]
    repeats = -(-number // rows)
    chosen = jax.random.permutation(choice_key, rows * repeats)[:number] % rows
    drawn = flat[chosen]  # [number, E]
    if repeats == 1:
        return drawn
    return drawn + TILE_NOISE * flat.shape[-1] ** -0.5 * jax.random.normal(noise_key, drawn.shape)
