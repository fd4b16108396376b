"""Logits with the context cache, and for some targets alone, equal those of the plain model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_model import CONFIG, POSITIONS, VOCAB_SIZE, build

from mebt_jax.backbones import interface
from mebt_jax.backbones.interface import MaskedBackbone, MaskedTokens, Slots
from mebt_jax.backbones.mebt.mebt_config import FLAVOURS

SLOTS, KNOWN = POSITIONS, 7


def fill(graphdef, params, positions, tokens):
    """A cache filled in parts: all tokens wrong at first, then right, some of them one by one and
    out of order.
    """

    @jax.jit
    def filled(params):
        model = nnx.merge(graphdef, params)
        wrong = (tokens[:, :5] + 1) % VOCAB_SIZE
        cache = model.init_cache(wrong, positions[:, :5], num_slots=SLOTS)
        for slots in ([3, 1, SLOTS], [0, 2, 4, 5, 6]):  # SLOTS is no slot, as padding is
            slots = jnp.array([slots] * 2)
            inside = jnp.minimum(slots, SLOTS - 1)
            new = (jnp.take_along_axis(x, inside, 1) for x in (tokens, positions))
            cache = model.update_cache(cache, slots, *new)
        return cache

    return filled(params)


@pytest.mark.parametrize(
    "flavour, layers",
    [
        # layers in a scan, and alone
        ("modern", ("encode", "latent") * 2 + ("encode", "decode", "update", "decode")),
        # a scan whose decode blocks run for all targets
        ("paper", ("encode", "decode", "encode", "decode")),
        ("paper", ("encode", "encode", "full", "update", "decode", "decode")),
        ("modern", ("encode", "full")),
        ("modern", ("encode", "maskgit", "decode")),  # runs plainly
    ],
)
def test_logits_equal_those_of_the_plain_model(flavour, layers):
    graphdef, params = build(dataclasses.replace(CONFIG, layers=layers, **FLAVOURS[flavour]))
    rng = np.random.default_rng(0)
    positions = jnp.asarray(np.stack([rng.permutation(POSITIONS) for _ in range(2)]))
    tokens = jnp.asarray(rng.integers(VOCAB_SIZE, size=(2, POSITIONS)))
    cache = fill(graphdef, params, positions, tokens)
    # The first 8 slots, one known token hidden.
    visible = jnp.broadcast_to(jnp.arange(8) < KNOWN, (2, 8)).at[1, 2].set(False)
    targets = positions[:, KNOWN:]
    valid = jnp.broadcast_to(jnp.arange(POSITIONS - KNOWN) < 4, targets.shape)
    slots = Slots(tokens[:, :8], positions[:, :8], visible)

    @jax.jit
    def all_ways(params, cache):
        model = nnx.merge(graphdef, params)
        sizes = {"num_contexts": 8, "num_logits": 2}
        plain = model(MaskedTokens(*slots, targets, valid))[:, :2]
        cached = model.from_cache(cache, slots, targets, valid, **sizes)
        default = MaskedBackbone.from_cache(model, (), slots, targets, valid, **sizes)
        return [model.logits(hidden) for hidden in (plain, cached, default)]

    plain, cached, default = all_ways(params, cache)
    np.testing.assert_allclose(cached, plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(default, plain, rtol=1e-5, atol=1e-5)


def test_logits_for_a_part_of_the_vocabulary_at_a_time_are_the_same(monkeypatch):
    monkeypatch.setattr(interface, "VOCABULARY_CHUNK", 4)

    class Head(MaskedBackbone):
        dtype = jnp.dtype("float32")

    rng = np.random.default_rng(0)
    hidden, kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3, 5), (5, 12))
    )
    chunked = jax.jit(lambda hidden, kernel: Head().logits_in_chunks(hidden, kernel))
    assert "scan" in str(jax.make_jaxpr(chunked)(hidden, kernel))
    np.testing.assert_allclose(chunked(hidden, kernel), hidden @ kernel, rtol=1e-5)


def test_maskgit_layers_change_contexts_and_cannot_be_cached():
    for layers, arrays in ((("encode", "decode"), 2), (("encode", "maskgit", "decode"), 0)):
        graphdef, params = build(dataclasses.replace(CONFIG, layers=layers))
        tokens = jax.ShapeDtypeStruct((2, 3), jnp.int32)
        cache = jax.eval_shape(
            lambda p, x, graphdef=graphdef: nnx.merge(graphdef, p).init_cache(x, x, num_slots=9),
            params,
            tokens,
        )
        assert len(jax.tree.leaves(cache)) == arrays
