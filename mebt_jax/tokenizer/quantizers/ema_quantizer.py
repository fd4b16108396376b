"""Vector quantization with a codebook of running averages, as in the paper's configs
(mebt/modules/codebook.py).

Every embedding is the running mean of the features that chose it, and an embedding that hardly any
feature chooses restarts at a random feature of the batch.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mebt_jax.tokenizer.quantizers.learned_codebook import LearnedCodebook
from mebt_jax.tokenizer.quantizers.quantizer import CodebookStat, count_tokens, random_rows
from mebt_jax.tokenizer.tokenizer_config import TokenizerConfig

SMOOTHING = 1e-7  # added to every running count (official value)


class EMAQuantizer(LearnedCodebook):
    """`sums` [V, E] is the running mean of the sum of the features that chose each token."""

    def __init__(self, config: TokenizerConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        codebook = jax.random.normal(rngs.codebook(), (config.codebook_size, config.code_width))
        self.codebook = CodebookStat(codebook)
        self.sums = CodebookStat(jnp.copy(codebook))
        self.commitment_weight = config.commitment_weight
        self.restart_threshold = config.restart_threshold

    def loss_terms(
        self, features: jax.Array, embeddings: jax.Array, commitment: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return self.commitment_weight * commitment, {}

    def set_codebook(self, codebook: jax.Array, counts: jax.Array) -> None:
        super().set_codebook(codebook, counts)
        self.sums[...] = counts[:, None] * codebook

    def update(self, features: jax.Array, tokens: jax.Array, key: jax.Array) -> None:
        """Moves counts and sums, sets every embedding to sum / count, and restarts those whose
        running count is below `restart_threshold`.

        Note: a restarted token gets a new embedding but keeps its count and sum
        (mebt/modules/codebook.py:89), so it is either used often enough from now on or restarted
        again at the next step.
        """
        codebook_size = self.counts.size
        counts = self.decay * self.counts[...] + (1 - self.decay) * count_tokens(
            tokens, codebook_size
        )
        flat = lax.stop_gradient(features).astype(jnp.float32).reshape(-1, features.shape[-1])
        batch_sums = jax.ops.segment_sum(flat, tokens.reshape(-1), codebook_size)
        sums = self.decay * self.sums[...] + (1 - self.decay) * batch_sums

        total = jnp.sum(counts)
        smoothed = (counts + SMOOTHING) / (total + codebook_size * SMOOTHING) * total
        used = jnp.expand_dims(counts >= self.restart_threshold, -1)
        self.codebook[...] = jnp.where(
            used, sums / jnp.expand_dims(smoothed, -1), random_rows(flat, codebook_size, key)
        )
        self.counts[...], self.sums[...] = counts, sums

    @staticmethod
    def usage_advice(config: TokenizerConfig) -> str:
        if config.restart_threshold == 0:
            return (
                "set config.tokenizer.restart_threshold above 0, so that unused embeddings restart "
                "at features"
            )
        return LearnedCodebook.usage_advice(config)
