"""The sampler of masked backbones: runs a `Plan` and fills the unknown tokens of a batch of clips.

State in, state out; all array sizes come from the plan, so about a dozen compiled programs serve
all passes. `passes` has what the kinds of passes do.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from mebt_jax.backbones.interface import MaskedBackbone, Slots
from mebt_jax.errors import UserError
from mebt_jax.methods.interface import Sampled
from mebt_jax.methods.masked import logit_filters
from mebt_jax.methods.masked.loss import in_blocks, join_blocks
from mebt_jax.methods.masked.orders import ORDERS, Grid
from mebt_jax.methods.masked.passes import (
    PASS_KINDS,
    Commit,
    DecodeState,
    PassInputs,
    PassKeys,
    PassSpec,
    Predictions,
)
from mebt_jax.methods.masked.plan import BOOTSTRAP, Pass, Plan, Sizes, shared_sizes
from mebt_jax.methods.masked.slots import fold, noise_by_position, put, ranks, take
from mebt_jax.methods.sampling_keys import ORDER, PASSES
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.compilation import low_memory_compiler_options
from mebt_jax.runtime.sharding import constrain

GIVEN = -1  # in `Sampled.committed_at`
# Targets per clip whose logits exist at one time. A draw takes a few arrays of this times V, which
# is what fills the memory for short clips; larger matrix products are no faster.
LOGITS_BLOCK = 256


def decode(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    plan: Plan,
    grid: Grid,
    keys: jax.Array,
    *,
    tokens: jax.Array | None = None,
    known: jax.Array | None = None,
    condition: Any = None,
    plain: bool = False,
    block: int = LOGITS_BLOCK,
    mesh: Mesh | None = None,
    on_pass: Callable[[], None] | None = None,
) -> Sampled:
    """Fills the unknown tokens of B clips (paper section 3.3; official transformer.py:354 `sample`
    and :589 `revise`).

    Args:
        graphdef, params: a masked backbone, from `nnx.split(model, nnx.Param)`.
        plan: from `build_plan`, with num_tokens = T*H*W.
        grid: (T, H, W).
        keys: [B] one typed key per clip, see `sampling_keys.clip_keys`.
        tokens, known: [B, T, H, W] int32 and bool; known tokens are given and never change. None
            generates everything.
        condition: dict of arrays [B, ...] for the backbone, or None.
        plain: run the model as in training, without cache and for all targets. The result is the
            same; takes more time and, for long clips, less memory. For tests and benchmarks.
        block: targets per clip whose logits [B, block, V] exist at one time; changes no token.
        mesh: the devices, or None for JAX's default.
        on_pass: called after each pass is handed to the device, for a progress bar.

    Raises:
        UserError: the number of known tokens of a clip is not the plan's, or the filters do not fit
            the vocabulary.
    """
    sharding = None if mesh is None else mesh_lib.batch_sharding(mesh)
    tokens, known = _given(plan, grid, len(keys), tokens, known, sharding)
    if sharding is not None:
        keys = jax.device_put(keys, sharding)
    start, run = start_program(mesh), pass_program(mesh)
    state = start(
        graphdef, params, keys, tokens, known, condition, plan=plan, grid=grid, plain=plain
    )
    finished = []
    for index, (step, sizes) in enumerate(zip(plan.passes, shared_sizes(plan))):
        spec = pass_spec(plan, step, sizes, block=block, plain=plain)
        inputs = PassInputs.of(index, step)
        state, done = run(graphdef, params, state, keys, condition, inputs, spec=spec)
        if on_pass is not None:
            # Waiting for the pass before keeps the bar honest without leaving the device idle.
            jax.block_until_ready(finished[-1:])
            finished.append(done)
            on_pass()
    return finish_program(mesh)(state, grid=grid)


def pass_spec(
    plan: Plan, step: Pass, sizes: Sizes, *, block: int = LOGITS_BLOCK, plain: bool = False
) -> PassSpec:
    """What is static about a pass of the plan."""
    filtered = PASS_KINDS[step.kind].filtered
    return PassSpec(
        kind=step.kind,
        sizes=sizes,
        order=plan.order,
        num_known=plan.num_known,
        partitions=plan.partitions,
        top_k=plan.top_k if filtered else 0,
        top_p=plan.top_p if filtered else 1.0,
        block=block,
        plain=plain,
    )


@functools.cache
def start_program(mesh: Mesh | None) -> Any:
    """`start`, compiled for a mesh."""
    return mesh_lib.jit(
        mesh,
        functools.partial(start, mesh=mesh),
        static_argnames=("graphdef", "plan", "grid", "plain"),
    )


@functools.cache
def pass_program(mesh: Mesh | None) -> Any:
    """`run_pass`, compiled for a mesh."""
    platform = jax.default_backend() if mesh is None else mesh.devices.flat[0].platform
    return mesh_lib.jit(
        mesh,
        functools.partial(run_pass, mesh=mesh),
        donate_argnames="state",
        static_argnames=("graphdef", "spec"),
        compiler_options=low_memory_compiler_options(platform),
    )


def start(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    keys: jax.Array,
    tokens: jax.Array,
    known: jax.Array,
    condition: Any,
    *,
    plan: Plan,
    grid: Grid,
    plain: bool,
    mesh: Mesh | None,
) -> DecodeState:
    """Slots for tokens and known [B, N]: known tokens, those of the bootstrap in random order, the
    rest in the plan's order.
    """
    model = nnx.merge(graphdef, params)
    order_keys = fold(keys, ORDER)
    noise = noise_by_position(jax.random.uniform, fold(order_keys, 0), plan.num_tokens)
    random_ranks = ranks(jnp.where(known, jnp.inf, noise))  # [B, N]
    order_ranks = ORDERS[plan.order].ranks(order_keys, random_ranks, grid)
    bootstrapped = random_ranks < plan.count(BOOTSTRAP)
    unknown_ranks = jnp.where(bootstrapped, random_ranks, plan.num_tokens + order_ranks)
    positions = jnp.argsort(jnp.where(known, -1, unknown_ranks), axis=1, stable=True)
    positions = positions.astype(jnp.int32)
    tokens = take(tokens, positions)
    cache = ()
    if not plain:
        given = slice(0, plan.num_known)
        cache = model.init_cache(
            tokens[:, given], positions[:, given], condition, num_slots=plan.num_tokens
        )
    committed_at = jnp.full(tokens.shape, GIVEN, jnp.int32)
    return _constrained(DecodeState(positions, tokens, committed_at, cache), mesh)


def run_pass(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    state: DecodeState,
    keys: jax.Array,
    condition: Any,
    inputs: PassInputs,
    *,
    spec: PassSpec,
    mesh: Mesh | None,
) -> tuple[DecodeState, jax.Array]:
    """One pass: predicts the targets from the contexts and commits some of them.

    Also returns a scalar to wait for.
    """
    model, kind = nnx.merge(graphdef, params), PASS_KINDS[spec.kind]
    pass_keys = fold(fold(keys, PASSES), inputs.index)
    keys = PassKeys(keys, tokens=fold(pass_keys, 0), choices=fold(pass_keys, 1))

    visible, target_slots = kind.select(state, keys, inputs, spec)
    target_positions = take(state.positions, target_slots)  # [B, M]
    in_range = jnp.arange(spec.sizes.targets) < inputs.targets
    target_valid = jnp.broadcast_to(in_range, target_slots.shape)

    searched = spec.sizes.contexts if kind.contexts_in_order else state.tokens.shape[1]
    slots = Slots(*(x[:, :searched] for x in (state.tokens, state.positions, visible)))
    from_cache = MaskedBackbone.from_cache if spec.plain else type(model).from_cache
    hidden = from_cache(
        model,
        state.cache,
        slots,
        target_positions,
        target_valid,
        condition,
        num_contexts=spec.sizes.contexts,
        num_logits=spec.sizes.num_logits,
    )  # [B, num_logits, D]
    drawn, log_probabilities = _draw_in_blocks(
        model, hidden, target_positions[:, : spec.sizes.num_logits], keys.tokens, inputs, spec
    )

    predictions = Predictions(
        target_slots, target_positions, target_valid, drawn, log_probabilities
    )
    state, commit = kind.choose(state, predictions, keys, inputs, spec)
    state = _write(model, state, commit, spec, inputs.index if kind.first_commit else None)
    return _constrained(state, mesh), inputs.index + 0


def _draw_in_blocks(
    model: MaskedBackbone,
    hidden: Any,
    positions: jax.Array,
    keys: jax.Array,
    inputs: PassInputs,
    spec: PassSpec,
) -> tuple[jax.Array, jax.Array]:
    """Draws a token per target [B, M] and its log-probability, a block of targets at a time.

    So the logits [B, M, V] never exist together. `hidden` is what the backbone's `logits` takes: an
    array [B, M, D], or a pytree of such arrays.
    """
    targets = positions.shape[1]
    kernel = model.head_kernel()

    def draw_block(_: None, block: tuple[Any, jax.Array]) -> tuple[None, Any]:
        block_hidden, block_positions = block  # [B, m, D], [B, m]
        token_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, block_positions)
        logits = model.logits_in_chunks(block_hidden, kernel)
        return None, logit_filters.draw_tokens(
            token_keys, logits, inputs.temperature, top_k=spec.top_k, top_p=spec.top_p
        )

    hidden_blocks = jax.tree.map(lambda x: in_blocks(spec.block, x)[0], hidden)
    (position_blocks,) = in_blocks(spec.block, positions)
    _, drawn = jax.lax.scan(draw_block, None, (hidden_blocks, position_blocks))
    return tuple(join_blocks(x, targets) for x in drawn)


def _write(
    model: MaskedBackbone,
    state: DecodeState,
    commit: Commit,
    spec: PassSpec,
    index: jax.Array | None,
) -> DecodeState:
    """Writes the commit into its slots; `index` is the pass, or None to keep `committed_at`."""
    cache, committed_at = state.cache, state.committed_at
    if not spec.plain:
        cache = model.update_cache(cache, commit.slots, commit.tokens, commit.positions)
    if index is not None:
        now = jnp.broadcast_to(index, commit.slots.shape)
        committed_at = put(committed_at, commit.slots, now)
    return state.replace(
        positions=put(state.positions, commit.slots, commit.positions),
        tokens=put(state.tokens, commit.slots, commit.tokens),
        committed_at=committed_at,
        cache=cache,
    )


@functools.cache
def finish_program(mesh: Mesh | None) -> Any:
    """`_by_position`, compiled for a mesh."""
    return mesh_lib.jit(mesh, _by_position, static_argnames="grid")


def _by_position(state: DecodeState, grid: Grid) -> Sampled:
    tokens, committed_at = (
        put(x, state.positions, x).reshape(-1, *grid) for x in (state.tokens, state.committed_at)
    )
    return Sampled(tokens, committed_at)


def _given(
    plan: Plan,
    grid: Grid,
    batch: int,
    tokens: jax.Array | None,
    known: jax.Array | None,
    sharding: jax.sharding.NamedSharding | None,
) -> tuple[jax.Array, jax.Array]:
    """Tokens and known [B, N], checked against the plan; 0 where not known."""
    num_tokens = grid[0] * grid[1] * grid[2]
    if plan.num_tokens != num_tokens:
        raise ValueError(
            f"the plan is for {plan.num_tokens} tokens, but the grid {grid} has {num_tokens}"
        )
    if (tokens is None) != (known is None):
        raise ValueError("tokens and known are given together or not at all")
    if tokens is None:
        if plan.num_known:
            raise ValueError(f"the plan is for {plan.num_known} known tokens, but none are given")
        shape = (batch, num_tokens)
        return (
            jnp.zeros(shape, jnp.int32, device=sharding),
            jnp.zeros(shape, bool, device=sharding),
        )
    known = known.reshape(batch, num_tokens)
    tokens = jnp.where(known, tokens.reshape(batch, num_tokens), 0).astype(jnp.int32)
    counts = known.sum(axis=1)
    least, most = int(counts.min()), int(counts.max())
    if not least == most == plan.num_known:
        raise UserError(
            f"The sampling plan is for {plan.num_known} known tokens per clip, but the clips have "
            f"{least} to {most}; give every clip of a batch the same number and build the plan "
            "with it."
        )
    return (tokens, known) if sharding is None else jax.device_put((tokens, known), sharding)


def _constrained(state: DecodeState, mesh: Mesh | None) -> DecodeState:
    """The state with its tokens split over clips, and of the cache also the heads."""
    if mesh is None:
        return state
    sharding = mesh_lib.batch_sharding(mesh)
    tokens = jax.lax.with_sharding_constraint(state.replace(cache=()), sharding)
    return tokens.replace(cache=jax.tree.map(_constrained_cache, state.cache))


def _constrained_cache(x: jax.Array) -> jax.Array:
    """Keys and values [B, repeats, slots, K, Dh] split over clips and heads; others over clips."""
    axes = (None, None, "heads", None) if x.ndim == 5 else (None,) * (x.ndim - 1)
    return constrain(x, "batch", *axes)
