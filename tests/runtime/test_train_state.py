import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import train_state
from mebt_jax.runtime.runtime_config import MeshConfig

OPTIMIZER = optax.sgd(1.0)


def test_a_state_is_created_in_shards():
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


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_accumulation_gives_the_gradient_and_the_metrics_of_the_whole_batch(microbatches):
    x = jax.random.normal(jax.random.key(0), (8, 5))

    def loss_fn(w, rows, _):
        loss = jnp.tanh(rows @ w).mean()
        return loss, ({"loss": loss}, rows * 2)

    gradients, metrics, aux = train_state.accumulated_gradients(
        loss_fn, jnp.ones(5), x, microbatches
    )
    expected = jax.grad(lambda w: jnp.tanh(x @ w).mean())(jnp.ones(5))
    np.testing.assert_allclose(gradients, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], jnp.tanh(x @ jnp.ones(5)).mean(), rtol=1e-5)
    np.testing.assert_array_equal(train_state.join_microbatches(aux), x * 2)


@pytest.mark.parametrize("microbatches", [1, 2, 4])
def test_rows_count_by_their_weights(microbatches):
    x = jax.random.normal(jax.random.key(0), (8, 5))
    weights = jnp.array([1, 5, 2, 8, 3, 1, 0, 4])

    def loss_fn(w, batch, _):
        rows, weights = batch
        loss = (jnp.tanh(rows @ w) * weights).sum() / weights.sum()
        return loss, ({"loss": loss}, None)

    gradients, metrics, _ = train_state.accumulated_gradients(
        loss_fn, jnp.ones(5), (x, weights), microbatches, row_weights=weights
    )
    loss, expected = jax.value_and_grad(lambda w: loss_fn(w, (x, weights), 0)[0])(jnp.ones(5))
    np.testing.assert_allclose(gradients, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)


@pytest.mark.parametrize("microbatches", [1, 4])
def test_gradients_that_a_function_computes_itself_are_scaled_by_it(microbatches):
    x = jax.random.normal(jax.random.key(0), (8, 5))

    def gradient_fn(w, rows, _, scale):
        return scale(rows.mean(axis=0) * w), {}, None

    gradients, _, _ = train_state.accumulate(gradient_fn, jnp.ones(5), x, microbatches)
    np.testing.assert_allclose(gradients, x.mean(axis=0), rtol=1e-5, atol=1e-6)
