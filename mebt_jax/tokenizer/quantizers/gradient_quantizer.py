"""Vector quantization with a codebook that is trained by its loss (van den Oord et al. 2017; the
paper's equation 1).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mebt_jax.tokenizer.quantizers.learned_codebook import LearnedCodebook
from mebt_jax.tokenizer.tokenizer_config import TokenizerConfig


class GradientQuantizer(LearnedCodebook):
    """The codebook [V, E] is a parameter like any other."""

    def __init__(self, config: TokenizerConfig, *, rngs: nnx.Rngs):
        super().__init__(config)
        self.codebook = nnx.Param(
            jax.random.normal(rngs.params(), (config.codebook_size, config.code_width))
        )
        self.commitment_weight = config.commitment_weight

    def loss_terms(
        self, features: jax.Array, embeddings: jax.Array, commitment: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """beta |z - sg(e)|^2 + |e - sg(z)|^2, both as means; sg stops the gradient."""
        codebook_loss = jnp.mean(jnp.square(embeddings - lax.stop_gradient(features)))
        return self.commitment_weight * commitment + codebook_loss, {}
