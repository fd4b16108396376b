"""The gradient that trains the codebook."""

import jax
import numpy as np
from flax import nnx
from quantizer_configs import CONFIGS

from mebt_jax.tokenizer.quantizers.gradient_quantizer import GradientQuantizer


def test_the_codebook_is_pulled_to_the_features():
    graphdef, params, rest = nnx.split(
        GradientQuantizer(CONFIGS["gradient"], rngs=nnx.Rngs(0)), nnx.Param, ...
    )
    features = jax.random.normal(jax.random.key(2), (64, 6))

    @jax.jit
    @jax.grad
    def gradient(params):
        return nnx.merge(graphdef, params, rest)(features).quantizer_loss

    codebook = params["codebook"][...]
    tokens = nnx.merge(graphdef, params, rest).tokenize(features)
    expected = jax.ops.segment_sum(2 * (codebook[tokens] - features) / features.size, tokens, 20)
    np.testing.assert_allclose(gradient(params)["codebook"][...], expected, rtol=1e-4, atol=1e-6)
