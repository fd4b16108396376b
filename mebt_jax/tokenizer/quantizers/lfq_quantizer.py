"""Lookup-free quantization (Yu et al. 2023, MAGVIT-v2): the signs of the features are the digits of
the token, and entropy terms spread the features over the codebook.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mebt_jax.tokenizer.quantizers.fixed_grid import FixedGrid
from mebt_jax.tokenizer.tokenizer_config import TokenizerConfig

# Of the token probabilities in the entropy terms, in squared distances to embeddings of entries
# +-1.
TEMPERATURE = 1.0


class LFQQuantizer(FixedGrid):
    def __init__(self, config: TokenizerConfig, *, rngs: nnx.Rngs):
        super().__init__(config, (2,) * config.code_width, centre=0.5, scale=0.5)
        self.commitment_weight = config.commitment_weight
        self.entropy_weight = config.entropy_weight

    def tokenize(self, features: jax.Array) -> jax.Array:
        features = lax.stop_gradient(features).astype(jnp.float32)
        return self.join_digits((features > 0).astype(jnp.int32))

    def loss_terms(
        self, features: jax.Array, embeddings: jax.Array, commitment: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Commitment, and the entropy of one feature's token less that of all tokens (MAGVIT-v2,
        equation 5).
        """
        per_token, of_tokens = sign_entropies(features)
        loss = self.commitment_weight * commitment + self.entropy_weight * (per_token - of_tokens)
        return loss, {"entropy_per_code": per_token, "entropy_of_codes": of_tokens}

    @staticmethod
    def usage_advice(config: TokenizerConfig) -> str:
        return "raise config.tokenizer.entropy_weight"


def sign_entropies(features: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Two entropies in nats of features [..., E]: the mean over the features of the entropy of
    their token, which training makes small, and the entropy of the mean token probabilities, which
    it makes large.

    The probability of a token falls with its squared distance; it is a product over the E signs. So
    the first entropy is a sum over signs, and the mean probability of all 2^E tokens is one matrix
    product of two halves of the signs: exact, where MAGVIT-v2 takes groups of signs as independent.
    """
    flat = features.reshape(-1, features.shape[-1])  # [n, E]
    logits = 4 / TEMPERATURE * flat  # log odds of +1 against -1
    per_token = jnp.sum(_binary_entropy(logits), axis=-1).mean()
    halves = [
        _sign_probabilities(part) for part in jnp.split(logits, [flat.shape[-1] // 2], axis=-1)
    ]  # 2 x [n, 2^(E/2)]
    mean = jnp.matmul(halves[0].T, halves[1], precision=lax.Precision.HIGHEST) / len(flat)
    return per_token, -jnp.sum(mean * jnp.log(mean + 1e-10))


def _binary_entropy(logits: jax.Array) -> jax.Array:
    return jax.nn.softplus(logits) - logits * jax.nn.sigmoid(logits)


def _sign_probabilities(logits: jax.Array) -> jax.Array:
    """Log odds [n, b] of independent signs -> probabilities [n, 2^b] of all their combinations."""
    total = jnp.ones((len(logits), 1))
    for column in (
        jnp.split(jax.nn.sigmoid(logits), logits.shape[1], axis=1) if logits.shape[1] else []
    ):
        total = jnp.concatenate([total * (1 - column), total * column], axis=1)
    return total
