import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mebt_jax.config import MeshConfig
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import train_state

OPTIMIZER = optax.sgd(1.0)


def test_a_state_is_born_in_its_shards():
    mesh = mesh_lib.make_mesh(MeshConfig(data=2, fsdp=4, sequence=1, tensor=1))
    optimizer = optax.adam(1.0)
    state, shardings = train_state.create_sharded(
        lambda: train_state.new_state({"kernel": jnp.ones((64, 8))}, optimizer, ema=True),
        mesh,
        min_elements=64,
    )
    for array in (state.params["kernel"], state.ema["kernel"], state.opt_state[0].mu["kernel"]):
        assert array.addressable_shards[0].data.shape == (16, 8)
    assert jax.tree.map(lambda x: x.sharding, state) == shardings


def test_average_follows_the_ramp_and_then_the_decay():
    state = train_state.new_state({"w": jnp.array(0.0)}, OPTIMIZER, ema=True)
    average, weight = 0.0, 0.0
    for step in range(30):
        state = train_state.apply_gradients(state, {"w": jnp.array(-1.0)}, OPTIMIZER, ema_decay=0.5)
        weight += 1.0
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    assert state.step == 30
    np.testing.assert_allclose(state.averaged["w"], average, rtol=1e-5)


def test_without_averaging_the_weights_themselves_are_used():
    state = train_state.new_state({"w": jnp.array(2.0)}, OPTIMIZER, ema=False)
    state = train_state.apply_gradients(state, {"w": jnp.array(1.0)}, OPTIMIZER, ema_decay=0.0)
    assert state.ema is None and state.averaged["w"] == 1.0


@pytest.mark.parametrize("pieces", [1, 2, 4])
def test_accumulation_gives_the_gradient_of_the_whole_batch(pieces):
    x = jax.random.normal(jax.random.key(0), (8, 5))

    def loss_fn(w, piece, _):
        return jnp.tanh(piece @ w).sum(), piece * 2

    gradients, aux = train_state.accumulated_gradients(loss_fn, jnp.ones(5), x, pieces)
    np.testing.assert_allclose(
        gradients, jax.grad(lambda w: jnp.tanh(x @ w).sum())(jnp.ones(5)), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(train_state.join_pieces(aux), x * 2)
