import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_config import tiny_config

from mebt_jax.config import from_config_dict
from mebt_jax.runtime import optimizers

TRAINING = dataclasses.replace(
    from_config_dict(tiny_config()).prior.training, steps=100, learning_rate=0.5
)


@pytest.mark.parametrize(
    ("decay", "warmup", "expected"),
    [
        ("constant", 0, {0: 0.5, 99: 0.5}),
        ("constant", 10, {0: 0.05, 9: 0.5, 10: 0.5, 99: 0.5}),
        ("cosine", 0, {0: 0.5, 50: 0.25, 100: 0.0}),
        ("cosine", 20, {0: 0.025, 19: 0.5, 20: 0.5, 60: 0.25, 100: 0.0}),
    ],
)
def test_learning_rate(decay, warmup, expected):
    schedule = optimizers.learning_rate_schedule(
        dataclasses.replace(TRAINING, decay=decay, warmup_steps=warmup)
    )
    for step, rate in expected.items():
        np.testing.assert_allclose(schedule(step), rate, atol=1e-7)


class Net(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)
        self.embed = nnx.Embed(3, 4, rngs=rngs)
        self.layers = nnx.List([nnx.Conv(4, 4, (3,), rngs=rngs)])
        self.latents = nnx.Param(jnp.ones((2, 4)))


def test_weight_decay_shrinks_kernels_and_nothing_else():
    params = nnx.state(Net(nnx.Rngs(0)), nnx.Param)
    optimizer = optimizers.make_optimizer(
        dataclasses.replace(TRAINING, weight_decay=0.1, grad_clip_norm=0.0), params
    )
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    moved = {path for path, update in nnx.to_flat_state(updates) if jnp.any(update[...] != 0)}
    assert moved == {("linear", "kernel"), ("layers", 0, "kernel")}
    np.testing.assert_allclose(
        updates["linear"]["kernel"][...], -0.5 * 0.1 * params["linear"]["kernel"][...], rtol=1e-6
    )


def test_clipping_bounds_the_gradient_before_adam_sees_it():
    params = {"kernel": jnp.zeros(3)}
    gradients = {"kernel": jnp.array([3.0, 0.0, 4.0])}
    clipped = optimizers.make_optimizer(dataclasses.replace(TRAINING, grad_clip_norm=1.0), params)
    _, state = clipped.update(gradients, clipped.init(params), params)
    moments = next(
        s
        for s in jax.tree.leaves(state, is_leaf=lambda s: isinstance(s, optax.ScaleByAdamState))
        if isinstance(s, optax.ScaleByAdamState)
    )
    np.testing.assert_allclose(
        moments.mu["kernel"], (1 - TRAINING.beta1) * jnp.array([0.6, 0.0, 0.8]), rtol=1e-6
    )
