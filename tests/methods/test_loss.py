"""The blockwise loss equals the plain one on the whole logits array, in value and gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.base import get_config
from mebt_jax.backbones.interface import TokenGrid
from mebt_jax.backbones.mebt.model import MeBT
from mebt_jax.config import from_config_dict
from mebt_jax.methods.masked.loss import clip_scores, masked_cross_entropy

VOCAB_SIZE, WIDTH, TARGETS = 37, 8, 10
CONFIG = dataclasses.replace(
    from_config_dict(get_config()).backbone,
    layers=(),
    width=WIDTH,
    heads=1,
    num_latents=1,
    dtype="float32",
)
GRAPHDEF, PARAMS = nnx.split(
    MeBT(CONFIG, TokenGrid(VOCAB_SIZE, (TARGETS, 1, 1)), rngs=nnx.Rngs(0)), nnx.Param
)
HIDDEN = 20 * jax.random.normal(jax.random.key(0), (2, TARGETS, WIDTH))
TARGET_TOKENS = jax.random.randint(jax.random.key(1), (2, TARGETS), 0, VOCAB_SIZE)
# Some predictions are right, of the first clip more than of the second.
LIKELIEST = jnp.argmax(nnx.merge(GRAPHDEF, PARAMS).logits(HIDDEN), axis=-1)
TARGET_TOKENS = jnp.where(
    jnp.arange(TARGETS)[None] < jnp.array([[4], [1]]), LIKELIEST, TARGET_TOKENS
)
TARGET_VALID = jnp.arange(TARGETS)[None] < jnp.array([[TARGETS], [7]])


def plain_loss(params, hidden, label_smoothing):
    """torch.nn.functional.cross_entropy(label_smoothing=...) over the valid targets, on the whole
    logits array.
    """
    log_p = jax.nn.log_softmax(nnx.merge(GRAPHDEF, params).logits(hidden))
    target = (1 - label_smoothing) * jax.nn.one_hot(
        TARGET_TOKENS, VOCAB_SIZE
    ) + label_smoothing / VOCAB_SIZE
    return jnp.sum(-jnp.sum(target * log_p, -1) * TARGET_VALID) / jnp.sum(TARGET_VALID)


def block_means(params, hidden, block, label_smoothing):
    sums = masked_cross_entropy(
        nnx.merge(GRAPHDEF, params),
        hidden,
        TARGET_TOKENS,
        TARGET_VALID,
        block=block,
        label_smoothing=label_smoothing,
    )
    return jax.tree.map(lambda total: total / TARGET_VALID.sum(), sums)


@pytest.mark.parametrize("block, label_smoothing", [(1, 0.1), (4, 0.0), (4, 0.1), (1024, 0.1)])
def test_equals_the_plain_loss(block, label_smoothing):
    expected, expected_gradients = jax.value_and_grad(plain_loss, argnums=(0, 1))(
        PARAMS, HIDDEN, label_smoothing
    )
    loss, gradients = jax.value_and_grad(
        lambda p, h: block_means(p, h, block, label_smoothing).loss, argnums=(0, 1)
    )(PARAMS, HIDDEN)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradients, expected_gradients
    )


def test_nll_and_accuracy():
    output = block_means(PARAMS, HIDDEN, 4, 0.1)
    np.testing.assert_allclose(output.nll, plain_loss(PARAMS, HIDDEN, 0.0), rtol=1e-6)
    right = jnp.argmax(nnx.merge(GRAPHDEF, PARAMS).logits(HIDDEN), -1) == TARGET_TOKENS
    np.testing.assert_allclose(
        output.accuracy, np.asarray(right)[np.asarray(TARGET_VALID)].mean(), rtol=1e-6
    )
    of_clips = clip_scores(
        nnx.merge(GRAPHDEF, PARAMS), HIDDEN, TARGET_TOKENS, TARGET_VALID, block=4
    )
    for values, mean in zip(of_clips, (output.nll, output.accuracy), strict=True):
        assert values.shape == (2,)
        np.testing.assert_allclose(
            np.average(values, weights=TARGET_VALID.sum(axis=1)), mean, rtol=1e-6
        )


def test_the_whole_logits_array_is_never_made():
    def loss(params, hidden):
        return block_means(params, hidden, 2, 0.0).loss

    jaxpr = str(jax.make_jaxpr(jax.grad(loss))(PARAMS, HIDDEN))
    assert f"f32[2,2,{VOCAB_SIZE}]" in jaxpr  # logits of one block
    assert f"f32[2,{TARGETS},{VOCAB_SIZE}]" not in jaxpr and f"f32[5,2,2,{VOCAB_SIZE}]" not in jaxpr


def test_without_valid_targets_all_is_zero():
    output = masked_cross_entropy(
        nnx.merge(GRAPHDEF, PARAMS),
        HIDDEN,
        TARGET_TOKENS,
        jnp.zeros_like(TARGET_VALID),
        block=4,
        label_smoothing=0.0,
    )
    assert [float(x) for x in (output.loss, output.nll, output.accuracy)] == [0.0, 0.0, 0.0]
