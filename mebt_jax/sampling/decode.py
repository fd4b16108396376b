"""The one sampler: runs a `Plan` with a transformer and fills the unknown tokens of a batch of clips.

State in, state out: (codes, known). Every pass cuts the clip into context and target tokens from a boolean map by a stable
sort, with static capacities that several passes share, so a plan of 160 passes needs about a dozen compiled programs.

The noise of a token follows from its clip's key, the pass and its position only. So a clip comes out the same whatever the
other clips of its batch, the capacities, or the block size are (up to rounding in the model), and any one can be made again
alone.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx, struct

from mebt_jax.errors import UserError
from mebt_jax.sampling import logits as logits_lib
from mebt_jax.sampling.plan import BOOTSTRAP, DRAFT, REVISE, Pass, Plan

CAPACITY_STEPS = 8


@struct.dataclass
class DecodeState:
    codes: jax.Array  # int32 [B, N]; 0 where not known
    known: jax.Array  # bool [B, N]


@struct.dataclass
class PassInputs:
    """The numbers of a pass that need no new compilation."""

    index: jax.Array  # which pass of the plan
    contexts: jax.Array
    targets: jax.Array
    committed: jax.Array
    temperature: jax.Array
    choice_temperature: jax.Array
    revise_round: jax.Array
    part: jax.Array


def clip_keys(seed: int, indices: jax.Array) -> jax.Array:
    """One key per clip [B]: clip i of a run is drawn with fold_in(key(seed), i)."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)


def capacities(plan: Plan, one: Pass) -> tuple[int, int]:
    """(C, M): static context and target sizes of a pass.

    Bootstrap and draft round up to eighths of the clip. Revise passes all have the same size but for one token, so they
    take the largest and need no ladder.
    """
    if one.kind == REVISE:
        sizes = [p.targets for p in plan.passes if p.kind == REVISE]
        return plan.num_tokens - min(sizes), max(sizes)
    rung = -(-plan.num_tokens // CAPACITY_STEPS)
    round_up = lambda count: min(plan.num_tokens, rung * max(1, -(-count // rung)))  # noqa: E731
    return round_up(one.contexts), round_up(one.targets)


def compiled_shapes(plan: Plan) -> set[tuple[str, int, int]]:
    """Every (kind, C, M) that the plan needs: one compiled program each."""
    return {(one.kind, *capacities(plan, one)) for one in plan.passes}


def decode(graphdef: nnx.GraphDef, params: nnx.State, plan: Plan, grid: tuple[int, int, int], keys: jax.Array, *,
           block: int, codes: jax.Array | None = None, known: jax.Array | None = None,
           sharding: jax.sharding.Sharding | None = None, on_pass: Callable[[], None] | None = None) -> jax.Array:
    """Fills the unknown tokens of B clips (paper, section 3.3; mebt/transformer.py:354 `sample` and :589 `revise`).

    Args:
        graphdef, params: the transformer, from `nnx.split(model, nnx.Param)`.
        plan: from `build_plan`, with num_tokens = T*H*W.
        grid: (T, H, W).
        keys: [B] one typed key per clip, see `clip_keys`.
        block: tokens per clip whose logits [B, block, V] exist at one time.
        codes, known: [B, T, H, W] int32 and bool; known tokens are given and never change. None: generate everything.
        sharding: of arrays [B, ...], for instance `runtime.mesh.batch_sharding`; None leaves the placement to JAX.
        on_pass: called after each pass is handed to the device, for a progress bar.

    Returns:
        codes int32 [B, T, H, W].

    Raises:
        UserError: the number of known tokens of a clip is not the plan's, or the filters do not fit the codes.
    """
    state = _initial_state(plan, grid, len(keys), codes, known, sharding)
    if sharding is not None:
        keys = jax.device_put(keys, sharding)
    given = state.known
    for index, one in enumerate(plan.passes):
        inputs = PassInputs(
            index=jnp.int32(index), contexts=jnp.int32(one.contexts), targets=jnp.int32(one.targets),
            committed=jnp.int32(one.committed), temperature=jnp.float32(one.temperature),
            choice_temperature=jnp.float32(one.choice_temperature), revise_round=jnp.int32(one.revise_round),
            part=jnp.int32(one.part))
        before = state.codes
        state = run_pass(graphdef, params, state, given, keys, inputs, kind=one.kind, sizes=capacities(plan, one),
                         partitions=plan.partitions, top_k=plan.top_k, top_p=plan.top_p, block=block)
        if on_pass is not None:
            # Waiting for the pass before keeps the bar honest without leaving the device idle.
            jax.block_until_ready(before)
            on_pass()
    return state.codes.reshape(len(keys), *grid)


def _initial_state(plan: Plan, grid: tuple[int, int, int], batch: int, codes: jax.Array | None, known: jax.Array | None,
                   sharding: jax.sharding.Sharding | None) -> DecodeState:
    num_tokens = grid[0] * grid[1] * grid[2]
    if plan.num_tokens != num_tokens:
        raise ValueError(f"the plan is for {plan.num_tokens} tokens, but the grid {grid} has {num_tokens}")
    if (codes is None) != (known is None):
        raise ValueError("codes and known are given together or not at all")
    if codes is None:
        if plan.num_known:
            raise ValueError(f"the plan is for {plan.num_known} known tokens, but none are given")
        return DecodeState(codes=jnp.zeros((batch, num_tokens), jnp.int32, device=sharding),
                           known=jnp.zeros((batch, num_tokens), bool, device=sharding))
    known = known.reshape(batch, num_tokens)
    state = DecodeState(codes=jnp.where(known, codes.reshape(batch, num_tokens), 0).astype(jnp.int32), known=known)
    counts = known.sum(axis=1)
    least, most = int(counts.min()), int(counts.max())
    if not least == most == plan.num_known:
        raise UserError(f"The sampling plan is for {plan.num_known} known tokens per clip, but the clips have {least} to "
                        f"{most}; give every clip of a batch the same number and build the plan with it.")
    return state if sharding is None else jax.device_put(state, sharding)


@functools.partial(jax.jit, static_argnames=("graphdef", "kind", "sizes", "partitions", "top_k", "top_p", "block"))
def run_pass(graphdef: nnx.GraphDef, params: nnx.State, state: DecodeState, given: jax.Array, keys: jax.Array,
             inputs: PassInputs, *, kind: str, sizes: tuple[int, int], partitions: int, top_k: int, top_p: float,
             block: int) -> DecodeState:
    """One pass: predict the targets from the context, keep some. `given` [B, N] marks the tokens that never change."""
    model = nnx.merge(graphdef, params)
    draft_root, revise_root = (jax.vmap(jax.random.fold_in, (0, None))(keys, i) for i in range(2))  # [B] each
    token_keys, choice_keys = (_fold(_fold(draft_root, inputs.index), i) for i in range(2))
    visible = state.known  # [B, N]
    if kind == REVISE:
        visible = ~in_part(_fold(revise_root, inputs.revise_round), given, inputs.part, partitions)
    # [B, N]: contexts, then targets, each in rising order.
    order = jnp.argsort(~visible, axis=1, stable=True).astype(jnp.int32)
    context_positions, context_valid = _take(order, 0, inputs.contexts, sizes[0])  # [B, C]
    target_positions, target_valid = _take(order, inputs.contexts, inputs.targets, sizes[1])  # [B, M]
    hidden = model(jnp.take_along_axis(state.codes, context_positions, axis=1), context_positions, context_valid,
                   target_positions, target_valid)  # [B, M, D]

    num_tokens = visible.shape[1]
    if kind == BOOTSTRAP:  # the token to keep is chosen blindly (mask_sampler.py:206), so only its logits are made
        place = jax.vmap(lambda key: jax.random.uniform(key, (num_tokens,)))(choice_keys)
        place = jnp.where(target_valid, jnp.take_along_axis(place, target_positions, axis=1), -1.0)
        slot = jnp.argmax(place, axis=1)[:, None]  # [B, 1]
        hidden = jnp.take_along_axis(hidden, slot[..., None], axis=1)  # [B, 1, D]
        target_positions = jnp.take_along_axis(target_positions, slot, axis=1)
        target_valid = jnp.ones_like(target_positions, bool)
    filters = {"top_k": top_k, "top_p": top_p} if kind == DRAFT else {"top_k": 0, "top_p": 1.0}
    # Note: the official scripts revise without top-k and top-p (draft_and_revise_videos.py passes none).
    new_codes, log_probabilities = _draw_blocks(model, hidden, target_positions, token_keys, inputs.temperature, block,
                                                filters)
    keep = target_valid
    if kind == DRAFT:
        noise = jax.vmap(lambda key: jax.random.gumbel(key, (num_tokens,), jnp.float32))(choice_keys)
        noise = jnp.take_along_axis(noise, target_positions, axis=1)
        # Note: in logarithms, mask_sampler.py:183 (probability over an exponential draw to the power of the temperature).
        scores = jnp.where(target_valid, log_probabilities + inputs.choice_temperature * noise, -jnp.inf)
        keep = _ranks(-scores) < inputs.committed
    rows = jnp.arange(len(keys))[:, None]
    old_codes = jnp.take_along_axis(state.codes, target_positions, axis=1)
    codes = state.codes.at[rows, target_positions].set(jnp.where(keep, new_codes, old_codes))
    known = state.known.at[rows, target_positions].max(keep)
    return DecodeState(codes=codes, known=known)


def in_part(keys: jax.Array, given: jax.Array, part: jax.Array, partitions: int) -> jax.Array:
    """Bool [B, N]: the tokens of part `part` when those not given are dealt to even random parts (mask_sampler.py:318)."""
    noise = jax.vmap(lambda key: jax.random.uniform(key, given.shape[1:]))(keys)
    ranks = _ranks(jnp.where(given, jnp.inf, noise))  # given tokens come last
    return (ranks % partitions == part) & ~given


def _fold(keys: jax.Array, data: jax.Array | int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def _take(order: jax.Array, first: jax.Array | int, count: jax.Array, capacity: int) -> tuple[jax.Array, jax.Array]:
    """`count` positions int32 [B, capacity] from `order` [B, N] on from slot `first`, and which slots are not padding.

    Padding repeats no position: it goes round to the start, so writing to padded slots touches each token once.
    """
    slots = (first + jnp.arange(capacity)) % order.shape[1]
    return order[:, slots], jnp.broadcast_to(jnp.arange(capacity) < count, (order.shape[0], capacity))


def _ranks(scores: jax.Array) -> jax.Array:
    """int32 [B, M]: place of each score in rising order, ties in order of position."""
    order = jnp.argsort(scores, axis=1, stable=True)
    places = jnp.broadcast_to(jnp.arange(scores.shape[1], dtype=jnp.int32), scores.shape)
    return jnp.zeros(scores.shape, jnp.int32).at[jnp.arange(len(scores))[:, None], order].set(places)


def _draw_blocks(model: nnx.Module, hidden: jax.Array, positions: jax.Array, keys: jax.Array, temperature: jax.Array,
                 block: int, filters: dict[str, float]) -> tuple[jax.Array, jax.Array]:
    """Draws a code per target [B, M] and its log-probability, `block` targets at a time: [B, M, V] is never made."""
    batch, targets, width = hidden.shape
    blocks = -(-targets // block)
    block = -(-targets // blocks)  # even blocks: the padding is less than one token per block
    padding = blocks * block - targets
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0))).reshape(batch, blocks, block, width)
    positions = jnp.pad(positions, ((0, 0), (0, padding))).reshape(batch, blocks, block)

    def draw_block(_, one):
        block_hidden, block_positions = one  # [B, block, D], [B, block]
        token_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, block_positions)
        log_probabilities = logits_lib.filtered_log_probabilities(model.logits(block_hidden), temperature, **filters)
        return None, logits_lib.draw(token_keys, log_probabilities)

    _, drawn = jax.lax.scan(draw_block, None, (hidden.swapaxes(0, 1), positions.swapaxes(0, 1)))
    return tuple(x.swapaxes(0, 1).reshape(batch, blocks * block)[:, :targets] for x in drawn)
