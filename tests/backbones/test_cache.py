"""Logits with the cache of the known tokens, and for some of the targets alone, equal those of the
plain model.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_model import CODES, CONFIG, POSITIONS, build

from mebt_jax.backbones.mebt import cache as cached

SLOTS, KNOWN = POSITIONS, 7


@pytest.fixture(autouse=True)
def quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def fill(graphdef, params, positions, codes):
    """A cache filled in pieces: all tokens wrong at first, then rightly, some of them one by one
    and out of order.
    """

    @jax.jit
    def filled(params):
        model = nnx.merge(graphdef, params)
        cache = cached.keys_and_values(model, (codes + 1) % CODES, positions)
        for slots in ([3, 1, SLOTS], [0, 2, 4, 5, 6]):  # SLOTS is no slot, as padding is
            slots = jnp.array([slots] * 2)
            inside = jnp.minimum(slots, SLOTS - 1)
            new = cached.keys_and_values(
                model,
                jnp.take_along_axis(codes, inside, 1),
                jnp.take_along_axis(positions, inside, 1),
            )
            cache = cached.write(cache, slots, new)
        return cache

    return filled(params)


@pytest.mark.parametrize(
    "flavour, layers",
    [
        (
            "modern",
            ("encode", "latent") * 2 + ("encode", "decode", "update", "decode"),
        ),  # layers in a scan, and alone
        (
            "paper",
            ("encode", "decode", "encode", "decode"),
        ),  # a scan whose decode blocks run for all targets
        ("paper", ("encode", "encode", "full", "update", "decode", "decode")),
        ("modern", ("encode", "full")),
    ],
)
def test_logits_equal_those_of_the_plain_model(flavour, layers):
    graphdef, params = build(dataclasses.replace(CONFIG, flavour=flavour, layers=layers))
    rng = np.random.default_rng(0)
    positions = jnp.asarray(np.stack([rng.permutation(POSITIONS) for _ in range(2)]))
    codes = jnp.asarray(rng.integers(CODES, size=(2, POSITIONS)))
    cache = fill(graphdef, params, positions, codes)
    visible = (
        jnp.broadcast_to(jnp.arange(8) < KNOWN, (2, 8)).at[1, 2].set(False)
    )  # the first 8 slots, one known token hidden
    targets = positions[:, KNOWN:]
    valid = jnp.broadcast_to(jnp.arange(POSITIONS - KNOWN) < 4, targets.shape)

    @jax.jit
    def both(params, cache):
        model = nnx.merge(graphdef, params)
        plain = model(codes[:, :8], positions[:, :8], visible, targets, valid)
        kept = cached.hidden_states(model, cache, visible, targets, valid, asked=2)
        return model.logits(plain)[:, :2], model.logits(kept)

    plain, kept = both(params, cache)
    np.testing.assert_allclose(kept, plain, rtol=1e-5, atol=1e-5)


def test_logits_for_some_codes_at_a_time_are_the_same(monkeypatch):
    monkeypatch.setattr(cached, "CODES_AT_A_TIME", 4)

    class Head(nnx.Module):
        def logits(self, hidden, kernel):
            return hidden @ kernel

    rng = np.random.default_rng(0)
    hidden, kernel = (
        jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((2, 3, 5), (5, 12))
    )
    np.testing.assert_allclose(
        jax.jit(cached.logits, static_argnums=0)(Head(), hidden, kernel), hidden @ kernel, rtol=1e-5
    )


def test_maskgit_layers_change_contexts_and_cannot_be_cached():
    for layers, possible in (
        (("encode", "decode"), True),
        (("encode", "maskgit", "decode"), False),
    ):
        graphdef, params = build(dataclasses.replace(CONFIG, layers=layers))
        assert cached.can_cache(nnx.merge(graphdef, params)) is possible
