"""What a training loop carries from step to step, created already in its place on the mesh, and the
update of it.
"""

from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from mebt_jax.runtime.mesh import state_sharding

# Optimizing the many random draws of an initialisation takes XLA ten times longer than running
# them.
RUN_ONCE = {"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0}


@flax.struct.dataclass
class TrainState:
    """Leaves are arrays only, so a checkpoint of it needs no code to read.

    step: int32 number of finished steps; params: model weights; ema: their running average, or
    None; opt_state: optax state; statistics: codebook of the tokenizer, or None; adversary: its
    discriminators, or None.
    """

    step: jax.Array
    params: Any
    ema: Any
    opt_state: Any
    statistics: Any = None
    adversary: Any = None

    @property
    def averaged(self) -> Any:
        """The weights to validate, sample and publish with."""
        return self.params if self.ema is None else self.ema


def new_state(
    params: Any,
    optimizer: optax.GradientTransformation,
    *,
    ema: bool,
    statistics: Any = None,
    adversary: Any = None,
) -> TrainState:
    # A copy, not an alias: a donated buffer may appear only once.
    average = jax.tree.map(jnp.copy, params) if ema else None
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        ema=average,
        opt_state=optimizer.init(params),
        statistics=statistics,
        adversary=adversary,
    )


def create_sharded(create: Callable[[], Any], mesh: Mesh, min_elements: int) -> tuple[Any, Any]:
    """Runs `create` under jit so that each device only ever holds its part; returns (state, tree of
    shardings).
    """
    shardings = state_sharding(jax.eval_shape(create), mesh, min_elements)
    return jax.jit(create, out_shardings=shardings, compiler_options=RUN_ONCE)(), shardings


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
        # The ramp forgets the random initial weights in short runs; it passes 0.999 after 9000
        # steps.
        decay = jnp.minimum(ema_decay, (1.0 + state.step) / (10.0 + state.step))
        ema = jax.tree.map(
            lambda average, new: average + (1.0 - decay) * (new - average), ema, params
        )
    return state.replace(step=state.step + 1, params=params, ema=ema, opt_state=opt_state)


def accumulated_gradients(
    loss_fn: Callable[..., tuple[jax.Array, Any]], params: Any, batch: Any, pieces: int
) -> tuple[Any, Any]:
    """Gradients of the sum of `loss_fn(params, piece, index) -> (loss, aux)` over the pieces of a
    batch, and every aux.

    Each leaf [B, ...] of `batch` is cut into `pieces` interleaved pieces (rows i, i + pieces, ...),
    so that every device works on its own rows of every piece. The leaves of the returned aux have a
    leading axis [pieces].
    """
    return accumulated(jax.grad(loss_fn, has_aux=True), params, batch, pieces)


def accumulated(
    gradient: Callable[..., tuple[Any, Any]], params: Any, batch: Any, pieces: int
) -> tuple[Any, Any]:
    """`accumulated_gradients` of a function that computes them itself: (params, piece, index) ->
    (gradients, aux).
    """
    if pieces == 1:
        gradients, aux = gradient(params, batch, 0)
        return gradients, jax.tree.map(lambda x: x[None], aux)

    def body(total: Any, piece: tuple[Any, jax.Array]) -> tuple[Any, Any]:
        gradients, aux = gradient(params, *piece)
        return jax.tree.map(jnp.add, total, gradients), aux

    cut = jax.tree.map(
        lambda x: x.reshape(-1, pieces, *x.shape[1:]).swapaxes(0, 1), batch
    )  # [pieces, B / pieces, ...]
    return jax.lax.scan(body, jax.tree.map(jnp.zeros_like, params), (cut, jnp.arange(pieces)))


def join_pieces(pieces: jax.Array) -> jax.Array:
    """[pieces, B / pieces, ...] -> [B, ...] in the order of the rows before `accumulated_gradients`
    cut them.
    """
    return pieces.swapaxes(0, 1).reshape(-1, *pieces.shape[2:])
