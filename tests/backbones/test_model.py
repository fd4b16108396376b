"""The whole model: any order of layers, padding, precision, dropout, both residuals and positions,
and the full-size shapes.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.base import get_config
from mebt_jax.backbones.interface import MaskedTokens, TokenGrid
from mebt_jax.backbones.mebt.block import ATTENTION_PATTERNS
from mebt_jax.backbones.mebt.mebt_config import FLAVOURS
from mebt_jax.backbones.mebt.model import MeBT
from mebt_jax.config import from_config_dict
from mebt_jax.methods.masked.loss import masked_cross_entropy

BASE = from_config_dict(get_config()).backbone
BLOCK_KINDS = tuple(ATTENTION_PATTERNS)
CONFIG = dataclasses.replace(
    BASE,
    layers=("encode", "decode", "update", "decode"),
    width=16,
    heads=2,
    num_latents=3,
    dtype="float32",
    remat="none",
)
VOCAB_SIZE, GRID, POSITIONS = 11, (2, 3, 2), 12


def abstract(config, vocab_size=VOCAB_SIZE, grid=GRID):
    tokens = TokenGrid(vocab_size, grid)
    model = nnx.eval_shape(lambda: MeBT(config, tokens, rngs=nnx.Rngs(0)))
    return nnx.split(model, nnx.Param)


def build(config):
    """(graphdef, params) with random weights everywhere, larger than those of a fresh model."""
    graphdef, params = abstract(config)
    rng = np.random.default_rng(0)
    return graphdef, jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.1, 0.3, leaf.shape), jnp.float32), params
    )


def inputs(contexts=5, targets=6):
    """Tokens of two clips; the second has one context token fewer and two targets
    fewer.
    """
    rng = np.random.default_rng(1)
    positions = np.stack([rng.permutation(POSITIONS) for _ in range(2)])
    tokens = rng.integers(VOCAB_SIZE, size=(2, contexts))
    context_valid = np.arange(contexts) < contexts - np.array([[0], [1]])
    target_valid = np.arange(targets) < targets - np.array([[0], [2]])
    return MaskedTokens(
        tokens,
        positions[:, :contexts],
        context_valid,
        positions[:, contexts : contexts + targets],
        target_valid,
    )


def pad(tokens, contexts, targets, value):
    """The same with more padded slots, which hold `value`."""
    sizes = (contexts, contexts, contexts, targets, targets)
    return MaskedTokens(
        *(
            np.pad(x, [(0, 0), (0, size)], constant_values=value if x.dtype != bool else False)
            for x, size in zip(tokens, sizes)
        )
    )


def forward(graphdef, params, tokens, key=None):
    def logits(params, tokens, key):
        model = nnx.merge(graphdef, params)
        return model.logits(model(tokens, key=key))

    return jax.jit(logits)(params, tokens, key)


@pytest.mark.parametrize(
    "flavour, layers",
    [
        ("paper", BLOCK_KINDS),
        ("modern", tuple(reversed(BLOCK_KINDS))),
        ("modern", ("update", "decode")),
        ("paper", ("full", "full")),
    ],
)
def test_any_order_of_layers_and_padding_changes_nothing(flavour, layers):
    graphdef, params = build(dataclasses.replace(CONFIG, layers=layers, **FLAVOURS[flavour]))
    tokens = inputs()
    valid = tokens.target_valid
    logits = forward(graphdef, params, tokens)
    assert logits.shape == (2, 6, VOCAB_SIZE) and np.isfinite(logits).all()
    padded = forward(graphdef, params, pad(tokens, 4, 3, value=2))
    np.testing.assert_allclose(padded[:, :6][valid], logits[valid], atol=1e-5)


def test_loss_and_gradients_do_not_depend_on_the_bucket_or_the_padding():
    graphdef, params = build(dataclasses.replace(CONFIG, layers=("encode", "update", "maskgit")))
    # The first clip has no context at all, the second has some: both in one batch.
    tokens = inputs()
    tokens = tokens._replace(context_valid=tokens.context_valid & np.array([[False], [True]]))
    target_tokens = np.random.default_rng(2).integers(VOCAB_SIZE, size=(2, 6))

    def loss_and_gradients(params, tokens, target_tokens):
        def loss_fn(params):
            model = nnx.merge(graphdef, params)
            return masked_cross_entropy(
                model,
                model(tokens),
                target_tokens,
                tokens.target_valid,
                block=4,
                label_smoothing=0.1,
            ).loss

        return jax.value_and_grad(loss_fn)(params)

    loss_and_gradients = jax.jit(loss_and_gradients)
    loss, gradients = loss_and_gradients(params, tokens, target_tokens)
    for value in (0, 7):
        padded = pad(tokens, 4, 2, value)
        padded_loss, padded_gradients = loss_and_gradients(
            params, padded, np.pad(target_tokens, [(0, 0), (0, 2)])
        )
        np.testing.assert_allclose(padded_loss, loss, rtol=1e-5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), padded_gradients, gradients
        )


def test_empty_context_equals_padding_alone():
    graphdef, params = build(CONFIG)
    tokens = inputs()
    none_valid = tokens._replace(context_valid=np.zeros_like(tokens.context_valid))
    without = MaskedTokens(*(x[:, :0] for x in tokens[:3]), *tokens[3:])
    padded, empty = (forward(graphdef, params, each) for each in (none_valid, without))
    valid = tokens.target_valid
    np.testing.assert_allclose(padded[valid], empty[valid], atol=1e-6)


def test_flavours_share_parameters_but_not_results():
    graphdef, params = build(CONFIG)
    modern, modern_params = build(dataclasses.replace(CONFIG, **FLAVOURS["modern"]))
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, modern_params)
    assert not np.allclose(
        forward(graphdef, params, inputs()), forward(modern, params, inputs()), atol=1e-3
    )


def test_initial_values():
    config = dataclasses.replace(CONFIG, layers=("encode", "encode"))
    create = jax.jit(
        lambda: nnx.state(
            MeBT(config, TokenGrid(VOCAB_SIZE, (2, 5, 5)), rngs=nnx.Rngs(0)), nnx.Param
        )
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(create())):
        if path[-1].key in ("bias", "scale"):
            assert np.all(leaf == (path[-1].key == "scale")), path
        else:
            assert np.std(leaf) == pytest.approx(0.02, rel=0.4), path
        if path[0].key == "stacks" and path[-1].key == "kernel":
            assert not np.array_equal(leaf[0], leaf[1]), (
                "repeated layers start from different weights"
            )


def test_dropout_is_a_function_of_the_key():
    config = dataclasses.replace(
        CONFIG,
        layers=("encode", "decode"),
        embedding_dropout=0.3,
        residual_dropout=0.3,
        attention_dropout=0.3,
    )
    graphdef, params = build(config)
    first, again, other = (
        forward(graphdef, params, inputs(), jax.random.key(seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    without, _ = build(dataclasses.replace(CONFIG, layers=config.layers))
    np.testing.assert_array_equal(
        forward(graphdef, params, inputs()), forward(without, params, inputs())
    )


def test_bfloat16_is_close_to_float32_and_keeps_float32_parameters():
    graphdef, params = build(CONFIG)
    bfloat16, bfloat16_params = build(dataclasses.replace(CONFIG, dtype="bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(bfloat16_params)} == {jnp.dtype("float32")}
    expected, ours = forward(graphdef, params, inputs()), forward(bfloat16, params, inputs())
    assert ours.dtype == jnp.float32
    assert np.abs(ours - expected).max() < 0.05 * np.abs(expected).max()
    hidden = jax.eval_shape(lambda p: nnx.merge(bfloat16, p)(inputs()), params)
    assert hidden.dtype == jnp.bfloat16


def test_full_size_model_has_the_expected_shapes():
    width, latents, vocab_size, positions = 1024, 256, 16_384, 8_192
    graphdef, params = abstract(BASE, vocab_size, (32, 16, 16))
    block = 4 * (width**2 + width) + (8 * width**2 + 5 * width) + 4 * width
    expected = 24 * block + (2 * vocab_size + positions + latents + 1 + 2) * width
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == expected == 344_517_632
    integers, booleans = (
        jax.ShapeDtypeStruct((4, 2048), jnp.int32),
        jax.ShapeDtypeStruct((4, 2048), bool),
    )
    hidden = jax.eval_shape(
        lambda p, i, b: nnx.merge(graphdef, p)(MaskedTokens(i, i, b, i, b)),
        params,
        integers,
        booleans,
    )
    assert hidden.shape == (4, 2048, width) and hidden.dtype == jnp.bfloat16
