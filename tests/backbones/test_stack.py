"""Repeated units: how layers are grouped, and that scan and remat change nothing but the cost."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.base import get_config
from mebt_jax.backbones.mebt.block import Block, apply_block
from mebt_jax.backbones.mebt.stack import REMAT_POLICIES, Stack, find_units
from mebt_jax.config import from_config_dict

UNIT, REPEATS = ("encode", "decode"), 2
CONFIG = dataclasses.replace(
    from_config_dict(get_config()).backbone,
    width=16,
    heads=2,
    num_latents=3,
    dtype="float32",
    remat="none",
    residual_dropout=0.2,
    attention_dropout=0.0,
)


@pytest.mark.parametrize(
    "layers, units",
    [
        (
            get_config().backbone.layers,
            (
                (("encode", "latent"), 6),
                (("encode",), 1),
                (("decode", "update"), 5),
                (("decode",), 1),
            ),
        ),
        (
            ("encode", "latent", "encode", "decode", "update", "decode"),
            tuple(
                ((kind,), 1)
                for kind in ("encode", "latent", "encode", "decode", "update", "decode")
            ),
        ),
        (
            ("encode", "encode", "latent", "encode", "latent"),
            ((("encode",), 1), (("encode", "latent"), 2)),
        ),
        (("maskgit",) * 5, ((("maskgit",), 5),)),
        ((), ()),
    ],
)
def test_find_units(layers, units):
    assert find_units(layers) == units
    assert tuple(kind for unit, repeats in find_units(layers) for kind in unit * repeats) == tuple(
        layers
    )


@functools.cache
def unrolled():
    """(inputs, loss, gradients) of a plain Python loop over the layers."""
    stack = nnx.eval_shape(lambda: Stack(CONFIG, UNIT, REPEATS, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32),
        nnx.state(stack, nnx.Param),
    )
    sizes = {"latents": 3, "contexts": 4, "targets": 5}
    tokens = {
        name: jnp.asarray(rng.normal(size=(2, size, 16)), jnp.float32)
        for name, size in sizes.items()
    }
    valid = {
        "contexts": jnp.array([[True] * 4, [True, False] * 2]),
        "targets": jnp.array([[True] * 5, [True] * 3 + [False] * 2]),
    }
    keys = jax.random.split(jax.random.key(9), REPEATS * len(UNIT))
    block_graphdef = nnx.graphdef(nnx.eval_shape(lambda: Block(CONFIG, rngs=nnx.Rngs(0))))

    def loss_fn(params, tokens):
        for layer in range(REPEATS * len(UNIT)):
            repeat, i = divmod(layer, len(UNIT))
            block_params = jax.tree.map(lambda x: x[repeat], params["blocks"][i])
            tokens = apply_block(
                nnx.merge(block_graphdef, block_params), UNIT[i], tokens, valid, None, keys[layer]
            )
        return jnp.sum(tokens["targets"] ** 2 * valid["targets"][..., None])

    value_and_grad = jax.jit(jax.value_and_grad(loss_fn, argnums=(0, 1)))
    return (params, tokens, valid, keys), *value_and_grad(params, tokens)


@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_scan_and_remat_equal_the_plain_loop(remat):
    (params, tokens, valid, keys), loss, gradients = unrolled()
    config = dataclasses.replace(CONFIG, remat=remat)
    graphdef = nnx.graphdef(nnx.eval_shape(lambda: Stack(config, UNIT, REPEATS, rngs=nnx.Rngs(0))))

    def loss_fn(params, tokens):
        return jnp.sum(
            nnx.merge(graphdef, params)(tokens, valid, None, keys)["targets"] ** 2
            * valid["targets"][..., None]
        )

    value_and_grad = jax.value_and_grad(loss_fn, argnums=(0, 1))
    jaxpr = str(jax.make_jaxpr(value_and_grad)(params, tokens))
    assert "scan" in jaxpr and ("remat" in jaxpr or "checkpoint" in jaxpr) == (remat != "none")
    scan_loss, scan_gradients = jax.jit(value_and_grad)(params, tokens)
    np.testing.assert_allclose(scan_loss, loss, rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
        scan_gradients,
        gradients,
    )
