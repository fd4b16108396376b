"""The kinds of decoding passes: what each predicts, and what it does with its predictions.

The tokens of a clip lie in slots: the given ones first, in the order in which they became known,
then the unknown ones. Contexts and targets of most passes are then two runs of neighbouring slots.
A pass has three steps: `select` chooses contexts and targets, the model predicts the targets
(`decode.run_pass`), and `choose` says which predictions are committed into which slots.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from mebt_jax.methods.masked.orders import ORDERS
from mebt_jax.methods.masked.plan import BOOTSTRAP, DRAFT, KINDS, REMASK, REVISE, Pass, Sizes
from mebt_jax.methods.masked.slots import fold, noise_by_position, put, ranks, take
from mebt_jax.methods.sampling_keys import PARTITIONS


@struct.dataclass
class DecodeState:
    """Tokens by slot."""

    positions: jax.Array  # int32 [B, N], flat (t, h, w) index of the token in each slot
    tokens: jax.Array  # int32 [B, N], 0 where not known
    committed_at: jax.Array  # int32 [B, N], the pass that committed the token, -1 if none
    cache: object  # of the backbone


@dataclasses.dataclass(frozen=True)
class PassSpec:
    """All that is static about a pass: one compiled program for each."""

    kind: str  # of PASS_KINDS
    sizes: Sizes
    order: str  # of ORDERS
    num_known: int  # given tokens, which lie in the first slots and stay there
    partitions: int
    top_k: int
    top_p: float
    block: int  # targets per clip whose logits exist at one time
    plain: bool = False  # run the model as in training, without its cache


@struct.dataclass
class PassInputs:
    """The numbers of a pass that need no other program."""

    index: jax.Array  # which pass of the plan
    contexts: jax.Array
    targets: jax.Array
    committed: jax.Array
    temperature: jax.Array
    choice_temperature: jax.Array
    revise_round: jax.Array
    partition: jax.Array

    @classmethod
    def of(cls, index: int, step: Pass) -> "PassInputs":
        return cls(
            index=jnp.int32(index),
            contexts=jnp.int32(step.contexts),
            targets=jnp.int32(step.targets),
            committed=jnp.int32(step.committed),
            temperature=jnp.float32(step.temperature),
            choice_temperature=jnp.float32(step.choice_temperature),
            revise_round=jnp.int32(step.revise_round),
            partition=jnp.int32(step.partition),
        )


class PassKeys(NamedTuple):
    """Random keys [B] of a pass."""

    clips: jax.Array  # those of the clips themselves
    tokens: jax.Array  # for drawing tokens
    choices: jax.Array  # for choosing which tokens


class Selection(NamedTuple):
    """Contexts and targets of a pass."""

    visible: jax.Array  # bool [B, N], the slots of the contexts
    target_slots: jax.Array  # int32 [B, M]; tokens whose draw is needed come first


class Predictions(NamedTuple):
    """What the model predicts for the targets of a pass; the first `num_logits` are drawn."""

    slots: jax.Array  # int32 [B, M]
    positions: jax.Array  # int32 [B, M]
    valid: jax.Array  # bool [B, M]
    tokens: jax.Array  # int32 [B, num_logits]
    log_probabilities: jax.Array  # float32 [B, num_logits]


@struct.dataclass
class Commit:
    """Tokens, and the slots that they lie in from now on."""

    slots: jax.Array  # int32 [B, S]; N (no slot) for padding
    positions: jax.Array  # int32 [B, S]
    tokens: jax.Array  # int32 [B, S]


# ---- select ----------------------------------------------------------------------------------


def select_next(
    state: DecodeState, keys: PassKeys, inputs: PassInputs, spec: PassSpec
) -> Selection:
    """All known tokens are contexts; the slots after them are targets."""
    batch, num_slots = state.tokens.shape
    slots = jnp.arange(num_slots)
    visible = jnp.broadcast_to(slots < inputs.contexts, (batch, num_slots))
    # Padded targets wrap around to the first slots, so that no slot occurs twice.
    target_slots = (inputs.contexts + slots[: spec.sizes.targets]) % num_slots
    return Selection(visible, jnp.broadcast_to(target_slots, (batch, spec.sizes.targets)))


def select_shuffled(
    state: DecodeState, keys: PassKeys, inputs: PassInputs, spec: PassSpec
) -> Selection:
    """As `select_next`, with the targets in random order."""
    visible, target_slots = select_next(state, keys, inputs, spec)
    noise = noise_by_position(jax.random.uniform, keys.choices, state.tokens.shape[1])
    noise = take(noise, take(state.positions, target_slots))
    return Selection(visible, take(target_slots, jnp.argsort(noise, axis=1)))


def select_partition(
    state: DecodeState, keys: PassKeys, inputs: PassInputs, spec: PassSpec
) -> Selection:
    """The targets are one of the random even partitions of the tokens that were not given."""
    round_keys = fold(fold(keys.clips, PARTITIONS), inputs.revise_round)
    noise = noise_by_position(jax.random.uniform, round_keys, state.tokens.shape[1])
    noise = take(noise, state.positions)
    visible = ~in_partition(noise, spec.num_known, inputs.partition, spec.partitions)
    target_slots = jnp.argsort(visible, axis=1, stable=True)[:, : spec.sizes.targets]
    return Selection(visible, target_slots)


def in_partition(
    noise: jax.Array, num_known: int, partition: jax.Array, partitions: int
) -> jax.Array:
    """Bool [B, N] by slot: tokens not given are dealt out by their noise [B, N].

    Note: mask_sampler.py:318 deals in the same way, but only where the number divides.
    """
    given = jnp.arange(noise.shape[1])[None] < num_known  # [1, N]
    dealt = ranks(jnp.where(given, jnp.inf, noise))  # given tokens come last
    return (dealt % partitions == partition) & ~given


# ---- choose ----------------------------------------------------------------------------------


def choose_first(
    state: DecodeState,
    predictions: Predictions,
    keys: PassKeys,
    inputs: PassInputs,
    spec: PassSpec,
) -> tuple[DecodeState, Commit]:
    """The first targets are committed, into the slots that they have."""
    num_slots, size = state.tokens.shape[1], spec.sizes.committed
    valid = jnp.arange(num_slots)[None, :size] < inputs.committed  # [1, S]
    slots = jnp.where(valid, predictions.slots[:, :size], num_slots)
    commit = Commit(slots, predictions.positions[:, :size], predictions.tokens[:, :size])
    return state, commit


def choose_by_order(
    state: DecodeState,
    predictions: Predictions,
    keys: PassKeys,
    inputs: PassInputs,
    spec: PassSpec,
) -> tuple[DecodeState, Commit]:
    """The first targets, or for the order "confidence" those whose draws are the most probable.

    Gumbel noise at the choice temperature is added to the log-probabilities.
    Note: in logarithms, mask_sampler.py:183 (probability over an exponential draw to the power of
    the temperature).
    """
    if not ORDERS[spec.order].by_confidence:
        return choose_first(state, predictions, keys, inputs, spec)
    num_slots = state.tokens.shape[1]
    noise = noise_by_position(jax.random.gumbel, keys.choices, num_slots)
    noise = take(noise, predictions.positions)
    scores = predictions.log_probabilities + inputs.choice_temperature * noise
    chosen = ranks(-jnp.where(predictions.valid, scores, -jnp.inf)) < inputs.committed
    order = jnp.argsort(~chosen, axis=1, stable=True)  # [B, M]; padding stays last
    predictions = predictions._replace(
        tokens=take(predictions.tokens, order), positions=take(predictions.positions, order)
    )
    # The chosen tokens move to the first of the target slots, the others behind them.
    slots = jnp.where(predictions.valid, predictions.slots, num_slots)
    state = state.replace(positions=put(state.positions, slots, predictions.positions))
    return choose_first(state, predictions, keys, inputs, spec)


def choose_and_hide(
    state: DecodeState,
    predictions: Predictions,
    keys: PassKeys,
    inputs: PassInputs,
    spec: PassSpec,
) -> tuple[DecodeState, Commit]:
    """The first targets are committed, and as many decoded tokens are hidden again.

    Each hidden token goes to the slot that one of the committed tokens leaves.
    """
    state, commit = choose_first(state, predictions, keys, inputs, spec)
    num_slots = state.tokens.shape[1]
    noise = noise_by_position(jax.random.uniform, fold(keys.choices, 0), num_slots)
    noise = take(noise, state.positions)
    slots = jnp.arange(num_slots)[None]
    decoded = (slots >= spec.num_known) & (slots < inputs.contexts)
    order = jnp.argsort(jnp.where(decoded, noise, jnp.inf), axis=1)
    hidden_slots = order[:, : commit.slots.shape[1]]  # [B, S]
    state = state.replace(
        positions=put(state.positions, commit.slots, take(state.positions, hidden_slots)),
        tokens=put(state.tokens, commit.slots, jnp.zeros_like(commit.tokens)),
    )
    return state, commit.replace(slots=jnp.where(commit.slots < num_slots, hidden_slots, num_slots))


class PassKind(NamedTuple):
    select: Callable[[DecodeState, PassKeys, PassInputs, PassSpec], Selection]
    choose: Callable[
        [DecodeState, Predictions, PassKeys, PassInputs, PassSpec], tuple[DecodeState, Commit]
    ]
    filtered: bool = False  # by top-k and top-p
    first_commit: bool = True  # writes `committed_at`; a revision keeps the first pass
    contexts_in_order: bool = True  # they are the first slots


PASS_KINDS = {
    BOOTSTRAP: PassKind(select_next, choose_first),
    DRAFT: PassKind(select_next, choose_by_order, filtered=True),
    REMASK: PassKind(select_shuffled, choose_and_hide, filtered=True),
    # Note: the official scripts revise without top-k and top-p (draft_and_revise_videos.py passes
    # none).
    REVISE: PassKind(select_partition, choose_first, first_commit=False, contexts_in_order=False),
}
assert set(PASS_KINDS) == set(KINDS), "every kind of pass of a plan needs its entry here"
