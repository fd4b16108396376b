"""The state that a training loop carries from step to step: its creation in shards on the mesh, and
its update.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.sharding import state_sharding

# Optimizing the many random draws of an initialisation takes XLA ten times longer than running
# them.
RUN_ONCE = {"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0}


@flax.struct.dataclass
class TrainState:
    """Leaves are arrays only, so a checkpoint of it needs no code to read.

    Attributes:
        step: int32 number of finished steps.
        params: weights of the model, which the optimizer moves.
        ema: their running average, or None.
        opt_state: optax state.
        model_state: variables of the model that no gradient trains, or None. The tokenizer has a
            codebook and statistics of BatchNorms.
        disc_state: the tokenizer's discriminators, or None.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    model_state: Any = None
    disc_state: Any = None

    @property
    def averaged(self) -> Any:
        """The weights to validate, sample and publish with."""
        return self.params if self.ema is None else self.ema


def new_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    ema: bool,
    model_state: Any = None,
    disc_state: Any = None,
) -> TrainState:
    # A copy, not an alias: a donated buffer may appear only once.
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=average,
        opt_state=optimizer.init(params),
        model_state=model_state,
        disc_state=disc_state,
    )


def create_sharded(create: Callable[[], Any], mesh: Mesh, min_elements: int) -> tuple[Any, Any]:
    """Runs `create` under jit so that each device only ever holds its part; returns (state, tree of
    shardings).
    """
    shardings = state_sharding(jax.eval_shape(create), mesh, min_elements)
    program = mesh_lib.jit(mesh, create, out_shardings=shardings, compiler_options=RUN_ONCE)
    return program(), shardings


def abstract(state: Any) -> Any:
    """ShapeDtypeStructs with shardings of a tree of arrays: the target to restore a checkpoint
    into.
    """
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def apply_gradients(
    state: TrainState, gradients: Any, optimizer: optax.GradientTransformation, ema_decay: float
) -> TrainState:
    """One optimizer step, and the average of the weights moved towards the result."""
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = state.ema
    if ema is not None:
        # With this ramp the average forgets the random initial weights in short runs; it passes
        # 0.999 after 9000 steps. optax.incremental_update is the same formula with two roundings
        # of the weights, where this form rounds their difference.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(
            lambda average, new: average + (1.0 - decay) * (new - average), ema, params
        )
    return state.replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)


Scale = Callable[[jax.Array], jax.Array]


def accumulated_gradients(
    loss_fn: Callable[..., tuple[jax.Array, tuple[dict[str, jax.Array], Any]]],
    params: Any,
    batch: Any,
    microbatches: int,
    row_weights: jax.Array | None = None,
) -> tuple[Any, dict[str, jax.Array], Any]:
    """Gradients of the mean of a loss over a batch that is worked through in `microbatches`.

    Args:
        loss_fn: (params, microbatch, index) -> (loss, (metrics, aux)): the mean loss of the
            microbatch, scalar metrics, which are means too, and any tree of arrays.
        params: differentiated with respect to.
        batch: tree of arrays [B, ...].
        microbatches: a divisor of B.
        row_weights: [B] weight of each row in the mean of its microbatch, for instance its number
            of targets; None if all rows count alike.

    Returns:
        (gradients, metrics, aux): gradients and metrics of the whole batch; the leaves of aux have
        a leading axis [microbatches], see `join_microbatches`.
    """

    def gradient_fn(
        params: Any, microbatch: Any, index: jax.Array | int, scale: Scale
    ) -> tuple[Any, dict[str, jax.Array], Any]:
        def scaled_loss_fn(params: Any) -> tuple[jax.Array, Any]:
            loss, rest = loss_fn(params, microbatch, index)
            return scale(loss), rest

        gradients, (metrics, aux) = jax.grad(scaled_loss_fn, has_aux=True)(params)
        return gradients, metrics, aux

    return accumulate(gradient_fn, params, batch, microbatches, row_weights)


def accumulate(
    gradient_fn: Callable[..., tuple[Any, dict[str, jax.Array], Any]],
    params: Any,
    batch: Any,
    microbatches: int,
    row_weights: jax.Array | None = None,
) -> tuple[Any, dict[str, jax.Array], Any]:
    """`accumulated_gradients` of a function that computes the gradients itself.

    Args:
        gradient_fn: (params, microbatch, index, scale) -> (gradients, metrics, aux). The function
            `scale` multiplies an array by the share of the microbatch in the batch; `gradient_fn`
            applies it to the loss or to the gradients, and not to the metrics.

    Note: microbatch i has the rows i, i + microbatches, ..., so that every device works on its own
    rows of every microbatch.
    """
    shares = None
    if row_weights is not None:
        shares = _split_rows(row_weights, microbatches).sum(axis=1) / row_weights.sum()

    def scale_of(index: jax.Array | int) -> Scale:
        return lambda x: x / microbatches if shares is None else x * shares[index]

    if microbatches == 1:
        gradients, metrics, aux = gradient_fn(params, batch, 0, scale_of(0))
        return gradients, metrics, jax.tree.map(lambda x: x[None], aux)

    def body(total: Any, turn: tuple[Any, jax.Array]) -> tuple[Any, Any]:
        microbatch, index = turn
        gradients, metrics, aux = gradient_fn(params, microbatch, index, scale_of(index))
        return jax.tree.map(jnp.add, total, gradients), (metrics, aux)

    turns = jax.tree.map(lambda x: _split_rows(x, microbatches), batch), jnp.arange(microbatches)
    start = jax.tree.map(jnp.zeros_like, params)
    gradients, (metrics, aux) = jax.lax.scan(body, start, turns)
    means = jax.tree.map(
        lambda x: x.mean(axis=0) if shares is None else (x * shares).sum(axis=0), metrics
    )
    return gradients, means, aux


def join_microbatches(aux: jax.Array) -> jax.Array:
    """[microbatches, B / microbatches, ...] -> [B, ...] in the order of the rows of the batch."""
    return aux.swapaxes(0, 1).reshape(-1, *aux.shape[2:])


def _split_rows(x: jax.Array, microbatches: int) -> jax.Array:
    """[B, ...] -> [microbatches, B / microbatches, ...], the inverse of `join_microbatches`."""
    return x.reshape(-1, microbatches, *x.shape[1:]).swapaxes(0, 1)
