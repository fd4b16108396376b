"""The one sampler: runs a `Plan` with a transformer and fills the unknown tokens of a batch of
clips.

State in, state out. The tokens of a clip lie in slots: the known ones first, in the order in which
they became known, then the unknown ones. So contexts and targets of a pass are two runs of slots,
which need no gathering, and where the tokens to commit are known before the pass they are simply
the first targets. All sizes come from the plan.

The noise of a token follows from its clip's key, the pass and its position only. So a clip comes
out the same whatever the other clips of its batch, the padding, or the block size are (up to
rounding in the model), and any one can be made again alone.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from mebt_jax.backbones.mebt import cache as cached
from mebt_jax.errors import UserError
from mebt_jax.methods.masked import logit_filters as logits_lib
from mebt_jax.methods.masked.orders import halton_ranks
from mebt_jax.methods.masked.plan import (
    BOOTSTRAP,
    DRAFT,
    REMASK,
    REVISE,
    Pass,
    Plan,
    Sizes,
    shared_sizes,
)
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.compilation import frugal_options

GIVEN = -1  # in `Decoded.committed_at`
# Targets per clip whose logits exist at one time. The draw takes a few arrays of this times V
# codes, which is what fills the memory of short clips; larger matrix products are no faster.
LOGITS_BLOCK = 256
# Roots of a clip's random numbers, by fold_in.
PASSES, PARTS, ORDER, WINDOW = range(4)


@struct.dataclass
class DecodeState:
    """Tokens by slot; the cache is None where the model runs plainly."""

    positions: jax.Array  # int32 [B, N], flat (t, h, w) index of the token in each slot
    codes: jax.Array  # int32 [B, N], 0 where not known
    committed_at: jax.Array  # int32 [B, N]
    cache: cached.Cache | None


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


@struct.dataclass
class Decoded:
    """Clips as codes, and the pass of the plan that first committed each token (with remasking the
    last): -1 where given.
    """

    codes: jax.Array  # int32 [B, T, H, W]
    committed_at: jax.Array  # int32 [B, T, H, W]


@struct.dataclass
class Commit:
    """What a pass found: codes for some tokens, and in which slots these lie from now on."""

    slots: jax.Array  # int32 [B, S]; N (no slot) for padding
    positions: jax.Array  # int32 [B, S]
    codes: jax.Array  # int32 [B, S]


def clip_keys(seed: int, indices: jax.Array) -> jax.Array:
    """One key per clip [B]: clip i of a run is drawn with fold_in(key(seed), i)."""
    return jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), indices)


def decode(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    plan: Plan,
    grid: tuple[int, int, int],
    keys: jax.Array,
    *,
    codes: jax.Array | None = None,
    known: jax.Array | None = None,
    plain: bool = False,
    block: int = LOGITS_BLOCK,
    sharding: jax.sharding.NamedSharding | None = None,
    on_pass: Callable[[], None] | None = None,
) -> Decoded:
    """Fills the unknown tokens of B clips (paper, section 3.3; mebt/transformer.py:354 `sample` and
    :589 `revise`).

    Args:
        graphdef, params: the transformer, from `nnx.split(model, nnx.Param)`.
        plan: from `build_plan`, with num_tokens = T*H*W.
        grid: (T, H, W).
        keys: [B] one typed key per clip, see `clip_keys`.
        codes, known: [B, T, H, W] int32 and bool; known tokens are given and never change. None:
            generate everything.
        plain: run the model as in training, without cache and for all targets. The result is the
            same; takes more time and, for long clips, less memory. Models with maskgit blocks
            always run so.
        block: tokens per clip whose logits [B, block, V] exist at one time; changes no token.
        sharding: of arrays [B, ...], for instance `runtime.mesh.batch_sharding`; None leaves the
            placement to JAX.
        on_pass: called after each pass is handed to the device, for a progress bar.

    Raises:
        UserError: the number of known tokens of a clip is not the plan's, or the filters do not fit
            the codes.
    """
    codes, known = _given(plan, grid, len(keys), codes, known, sharding)
    if sharding is not None:
        keys = jax.device_put(keys, sharding)
    state = start(
        graphdef, params, keys, codes, known, plan=plan, grid=grid, plain=plain, sharding=sharding
    )
    compiled, finished = pass_on(next(iter(keys.devices())).platform), []
    for index, (one, sizes) in enumerate(zip(plan.passes, shared_sizes(plan))):
        state, done = compiled(
            graphdef,
            params,
            state,
            keys,
            pass_inputs(index, one),
            kind=one.kind,
            sizes=sizes,
            by_confidence=one.kind == DRAFT and plan.order == "confidence",
            num_known=plan.num_known,
            partitions=plan.partitions,
            top_k=plan.top_k,
            top_p=plan.top_p,
            block=block,
            sharding=sharding,
        )
        if on_pass is not None:
            # Waiting for the pass before keeps the bar honest without leaving the device idle.
            jax.block_until_ready(finished[-1:])
            finished.append(done)
            on_pass()
    return _by_position(state, grid)


def pass_inputs(index: int, one: Pass) -> PassInputs:
    return PassInputs(
        index=jnp.int32(index),
        contexts=jnp.int32(one.contexts),
        targets=jnp.int32(one.targets),
        committed=jnp.int32(one.committed),
        temperature=jnp.float32(one.temperature),
        choice_temperature=jnp.float32(one.choice_temperature),
        revise_round=jnp.int32(one.revise_round),
        part=jnp.int32(one.part),
    )


def _on_its_mesh(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` with its `sharding` telling the model inside which mesh it runs on."""

    @functools.wraps(function)
    def placed(*args: Any, sharding: jax.sharding.NamedSharding | None, **kwargs: Any) -> Any:
        mesh = None if sharding is None else sharding.mesh
        return mesh_lib.on_mesh(mesh, function)(*args, sharding=sharding, **kwargs)

    return placed


@functools.partial(jax.jit, static_argnames=("graphdef", "plan", "grid", "plain", "sharding"))
@_on_its_mesh
def start(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    keys: jax.Array,
    codes: jax.Array,
    known: jax.Array,
    *,
    plan: Plan,
    grid: tuple[int, int, int],
    plain: bool,
    sharding: jax.sharding.NamedSharding | None,
) -> DecodeState:
    """Slots for codes and known [B, N]: known tokens, those of the bootstrap in random order, the
    rest in the plan's order.
    """
    model = nnx.merge(graphdef, params)
    root = _fold(keys, ORDER)
    noise = _per_position(jax.random.uniform, _fold(root, 0), plan.num_tokens)
    random_ranks = _ranks(jnp.where(known, jnp.inf, noise))  # [B, N]
    ranks = {
        "confidence": jnp.broadcast_to(jnp.arange(plan.num_tokens), known.shape),
        "random": random_ranks,
    }
    if plan.order == "halton":
        ranks["halton"] = shifted_halton(_fold(root, 1), grid)
    later = jnp.where(
        random_ranks < plan.count(BOOTSTRAP), random_ranks, plan.num_tokens + ranks[plan.order]
    )
    positions = jnp.argsort(jnp.where(known, -1, later), axis=1, stable=True).astype(jnp.int32)
    codes = jnp.take_along_axis(codes, positions, axis=1)
    cache = None
    if not plain and cached.can_cache(model):
        made = cached.keys_and_values(
            model, codes[:, : plan.num_known], positions[:, : plan.num_known]
        )
        unknown = plan.num_tokens - plan.num_known
        cache = jax.tree.map(
            lambda x: jnp.pad(x, ((0, 0), (0, 0), (0, unknown), (0, 0), (0, 0))), made
        )
    committed_at = jnp.full(codes.shape, GIVEN, jnp.int32)
    return _constrained(
        DecodeState(positions=positions, codes=codes, committed_at=committed_at, cache=cache),
        sharding,
    )


@functools.cache
def pass_on(platform: str) -> Any:
    """`run_pass`, jitted for "cpu", "gpu" or "tpu"."""
    return jax.jit(
        _on_its_mesh(run_pass),
        donate_argnames="state",
        static_argnames=(
            "graphdef",
            "kind",
            "sizes",
            "by_confidence",
            "num_known",
            "partitions",
            "top_k",
            "top_p",
            "block",
            "sharding",
        ),
        compiler_options=frugal_options(platform),
    )


def run_pass(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    state: DecodeState,
    keys: jax.Array,
    inputs: PassInputs,
    *,
    kind: str,
    sizes: Sizes,
    by_confidence: bool,
    num_known: int,
    partitions: int,
    top_k: int,
    top_p: float,
    block: int,
    sharding: jax.sharding.NamedSharding | None,
) -> tuple[DecodeState, jax.Array]:
    """One pass: predicts the targets from the context and commits some. Also returns a scalar to
    wait for.

    The given tokens lie in the first `num_known` slots and stay there.
    """
    model = nnx.merge(graphdef, params)
    pass_keys = _fold(_fold(keys, PASSES), inputs.index)
    token_keys, choice_keys = _fold(pass_keys, 0), _fold(pass_keys, 1)
    num_slots = state.codes.shape[1]
    slots = jnp.arange(num_slots)

    # ---- contexts and targets: the targets to be committed come first, where they are known ------
    if kind == REVISE:
        noise = _per_position(
            jax.random.uniform, _fold(_fold(keys, PARTS), inputs.revise_round), num_slots
        )
        visible = ~in_part(
            _at(noise, state.positions), num_known, inputs.part, partitions
        )  # [B, N]
        target_slots = jnp.argsort(visible, axis=1, stable=True)[:, : sizes.targets]  # [B, M]
    else:
        visible = jnp.broadcast_to(slots < inputs.contexts, state.codes.shape)
        # Padding repeats no slot: it goes round to the start.
        target_slots = jnp.broadcast_to(
            (inputs.contexts + slots[: sizes.targets]) % num_slots, (len(keys), sizes.targets)
        )
    if kind == REMASK:
        noise = _per_position(jax.random.uniform, choice_keys, num_slots)
        target_slots = _at(
            target_slots, jnp.argsort(_at(noise, _at(state.positions, target_slots)), axis=1)
        )
    target_positions = _at(state.positions, target_slots)  # [B, M]
    target_valid = jnp.broadcast_to(slots[: sizes.targets] < inputs.targets, target_slots.shape)

    # ---- predict ---------------------------------------------------------------------------------
    if state.cache is None:
        hidden = _plain_hidden(
            model, state, visible, sizes.contexts, target_positions, target_valid
        )  # [B, M, D]
    else:
        contexts = num_slots if kind == REVISE else sizes.contexts
        hidden = cached.hidden_states(
            model,
            state.cache,
            visible[:, :contexts],
            target_positions,
            target_valid,
            asked=sizes.asked,
        )  # [B, asked, D]
    # Note: the official scripts revise without top-k and top-p (draft_and_revise_videos.py passes
    # none).
    filters = (
        {"top_k": top_k, "top_p": top_p} if kind in (DRAFT, REMASK) else {"top_k": 0, "top_p": 1.0}
    )
    drawn, log_probabilities = _draw_blocks(
        model,
        hidden,
        target_positions[:, : hidden.shape[1]],
        token_keys,
        inputs.temperature,
        block,
        filters,
    )

    # ---- commit ----------------------------------------------------------------------------------
    if by_confidence:
        noise = _at(_per_position(jax.random.gumbel, choice_keys, num_slots), target_positions)
        # Note: in logarithms, mask_sampler.py:183 (probability over an exponential draw to the
        # power of the temperature).
        scores = jnp.where(
            target_valid, log_probabilities + inputs.choice_temperature * noise, -jnp.inf
        )
        keep = _ranks(-scores) < inputs.committed
        kept_first = jnp.argsort(~keep, axis=1, stable=True)  # [B, M]; padding stays last
        drawn, target_positions = _at(drawn, kept_first), _at(target_positions, kept_first)
        state = state.replace(
            positions=_put(
                state.positions, jnp.where(target_valid, target_slots, num_slots), target_positions
            )
        )
    chosen = slice(0, sizes.committed)
    valid = slots[None, chosen] < inputs.committed  # [1, S]
    commit = Commit(
        slots=jnp.where(valid, target_slots[:, chosen], num_slots),
        positions=target_positions[:, chosen],
        codes=drawn[:, chosen],
    )
    if kind == REMASK:
        state, commit = _swap_with_known(state, commit, choice_keys, num_known, inputs.contexts)
    state = _committed(model, state, commit, None if kind == REVISE else inputs.index)
    return _constrained(state, sharding), inputs.index + 0


def in_part(noise: jax.Array, num_known: int, part: jax.Array, partitions: int) -> jax.Array:
    """Bool [B, N] by slot: the tokens not given are dealt to even parts by their noise [B, N]
    (mask_sampler.py:318).
    """
    given = jnp.arange(noise.shape[1])[None] < num_known  # [1, N]
    ranks = _ranks(jnp.where(given, jnp.inf, noise))  # given tokens come last
    return (ranks % partitions == part) & ~given


def shifted_halton(keys: jax.Array, grid: tuple[int, int, int]) -> jax.Array:
    """Halton ranks int32 [B, N], moved around the grid by a random distance per clip, which keeps
    them evenly spread.
    """
    shift = jax.vmap(lambda key: jax.random.randint(key, (3,), 0, jnp.array(grid)))(keys)  # [B, 3]
    places = jnp.stack(jnp.meshgrid(*map(jnp.arange, grid), indexing="ij"), axis=-1).reshape(
        1, -1, 3
    )  # [1, N, 3]
    t, h, w = jnp.moveaxis((places + shift[:, None]) % jnp.array([[grid]]), -1, 0)  # [B, N] each
    return jnp.asarray(halton_ranks(grid))[t, h, w]


def _given(
    plan: Plan,
    grid: tuple[int, int, int],
    batch: int,
    codes: jax.Array | None,
    known: jax.Array | None,
    sharding: jax.sharding.NamedSharding | None,
) -> tuple[jax.Array, jax.Array]:
    """Codes and known [B, N], checked against the plan; 0 where not known."""
    num_tokens = grid[0] * grid[1] * grid[2]
    if plan.num_tokens != num_tokens:
        raise ValueError(
            f"the plan is for {plan.num_tokens} tokens, but the grid {grid} has {num_tokens}"
        )
    if (codes is None) != (known is None):
        raise ValueError("codes and known are given together or not at all")
    if codes is None:
        if plan.num_known:
            raise ValueError(f"the plan is for {plan.num_known} known tokens, but none are given")
        return (
            jnp.zeros((batch, num_tokens), jnp.int32, device=sharding),
            jnp.zeros((batch, num_tokens), bool, device=sharding),
        )
    known = known.reshape(batch, num_tokens)
    codes = jnp.where(known, codes.reshape(batch, num_tokens), 0).astype(jnp.int32)
    counts = known.sum(axis=1)
    least, most = int(counts.min()), int(counts.max())
    if not least == most == plan.num_known:
        raise UserError(
            f"The sampling plan is for {plan.num_known} known tokens per clip, but the clips have "
            f"{least} to "
            f"{most}; give every clip of a batch the same number and build the plan with it."
        )
    return (codes, known) if sharding is None else jax.device_put((codes, known), sharding)


def _plain_hidden(
    model: nnx.Module,
    state: DecodeState,
    visible: jax.Array,
    contexts: int,
    target_positions: jax.Array,
    target_valid: jax.Array,
) -> jax.Array:
    """Hidden states [B, M, D] from `MeBT.__call__`, with everything computed anew."""
    context_slots = jnp.argsort(~visible, axis=1, stable=True)[:, :contexts]  # [B, C]
    return model(
        _at(state.codes, context_slots),
        _at(state.positions, context_slots),
        _at(visible, context_slots),
        target_positions,
        target_valid,
    )


def _swap_with_known(
    state: DecodeState, commit: Commit, choice_keys: jax.Array, num_known: int, contexts: jax.Array
) -> tuple[DecodeState, Commit]:
    """Hides as many decoded tokens as the commit has: each goes to the slot that one of the
    commit's tokens leaves.
    """
    batch, num_slots = state.codes.shape
    noise = _at(
        _per_position(jax.random.uniform, _fold(choice_keys, 0), num_slots), state.positions
    )
    slots = jnp.arange(num_slots)[None]
    decoded = (slots >= num_known) & (slots < contexts)
    hidden_slots = jnp.argsort(jnp.where(decoded, noise, jnp.inf), axis=1)[
        :, : commit.slots.shape[1]
    ]  # [B, S]
    state = state.replace(
        positions=_put(state.positions, commit.slots, _at(state.positions, hidden_slots)),
        codes=_put(state.codes, commit.slots, jnp.zeros_like(commit.codes)),
    )
    return state, commit.replace(slots=jnp.where(commit.slots < num_slots, hidden_slots, num_slots))


def _committed(
    model: nnx.Module, state: DecodeState, commit: Commit, index: jax.Array | None
) -> DecodeState:
    """Writes codes, positions, pass and keys and values into the slots of the commit; a revision
    keeps the first pass.
    """
    cache, committed_at = state.cache, state.committed_at
    if cache is not None:
        cache = cached.write(
            cache, commit.slots, cached.keys_and_values(model, commit.codes, commit.positions)
        )
    if index is not None:
        committed_at = _put(committed_at, commit.slots, jnp.broadcast_to(index, commit.slots.shape))
    return state.replace(
        positions=_put(state.positions, commit.slots, commit.positions),
        codes=_put(state.codes, commit.slots, commit.codes),
        committed_at=committed_at,
        cache=cache,
    )


@functools.partial(jax.jit, static_argnames="grid")
def _by_position(state: DecodeState, grid: tuple[int, int, int]) -> Decoded:
    codes, committed_at = (
        _put(x, state.positions, x).reshape(-1, *grid) for x in (state.codes, state.committed_at)
    )
    return Decoded(codes=codes, committed_at=committed_at)


def _constrained(state: DecodeState, sharding: jax.sharding.NamedSharding | None) -> DecodeState:
    if sharding is None:
        return state
    tokens = jax.lax.with_sharding_constraint(state.replace(cache=None), sharding)
    return tokens.replace(
        cache=jax.tree.map(
            lambda x: mesh_lib.constrain(x, "batch", None, None, "heads", None), state.cache
        )
    )


def _fold(keys: jax.Array, data: jax.Array | int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(keys, data)


def _per_position(draw: Callable[..., jax.Array], keys: jax.Array, num_tokens: int) -> jax.Array:
    """Noise float32 [B, N] by position."""
    return jax.vmap(lambda key: draw(key, (num_tokens,), jnp.float32))(keys)


def _at(x: jax.Array, places: jax.Array) -> jax.Array:
    """x [B, N] at places [B, S]."""
    return jnp.take_along_axis(x, places, axis=1)


def _put(x: jax.Array, places: jax.Array, values: jax.Array) -> jax.Array:
    """x [B, N] with values [B, S] at places [B, S]; places out of range are left out."""
    return x.at[jnp.arange(len(x))[:, None], places].set(values, mode="drop")


def _ranks(scores: jax.Array) -> jax.Array:
    """int32 [B, M]: place of each score in rising order, ties in order of position."""
    order = jnp.argsort(scores, axis=1, stable=True)
    places = jnp.broadcast_to(jnp.arange(scores.shape[1], dtype=jnp.int32), scores.shape)
    return _put(jnp.zeros(scores.shape, jnp.int32), order, places)


def _draw_blocks(
    model: nnx.Module,
    hidden: jax.Array,
    positions: jax.Array,
    keys: jax.Array,
    temperature: jax.Array,
    block: int,
    filters: dict[str, float],
) -> tuple[jax.Array, jax.Array]:
    """Draws a code per target [B, M] and its log-probability, `block` targets at a time: [B, M, V]
    is never made.
    """
    batch, targets, width = hidden.shape
    blocks = -(-targets // block)
    block = -(-targets // blocks)  # even blocks: the padding is less than one token per block
    padding = blocks * block - targets
    # Every n-th target, so that where targets are split over devices each has its share of every
    # block.
    hidden = jnp.pad(hidden, ((0, 0), (0, padding), (0, 0))).reshape(batch, block, blocks, width)
    positions = jnp.pad(positions, ((0, 0), (0, padding))).reshape(batch, block, blocks)
    kernel = model.head_kernel()

    def draw_block(_, one):
        block_hidden, block_positions = one  # [B, block, D], [B, block]
        token_keys = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)))(keys, block_positions)
        return None, logits_lib.draw_codes(
            token_keys, cached.logits(model, block_hidden, kernel), temperature, **filters
        )

    _, drawn = jax.lax.scan(
        draw_block, None, (jnp.moveaxis(hidden, 2, 0), jnp.moveaxis(positions, 2, 0))
    )
    return tuple(jnp.moveaxis(x, 0, 2).reshape(batch, blocks * block)[:, :targets] for x in drawn)
