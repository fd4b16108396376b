"""The compiled sampler against a plain loop with the same keys, and what must hold for every
seed.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from mebt_jax.backbones.interface import MaskedBackbone, MaskedTokens, TokenGrid
from mebt_jax.backbones.mebt.model import MeBT
from mebt_jax.config import default_config, from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.methods.masked import decode as decode_lib
from mebt_jax.methods.masked import plan as plan_lib
from mebt_jax.methods.masked.orders import ORDERS, halton_ranks
from mebt_jax.methods.masked.plan import (
    BOOTSTRAP,
    DRAFT,
    REMASK,
    REVISE,
    Plan,
    build_plan,
    programs,
)
from mebt_jax.methods.sampling_keys import clip_keys
from mebt_jax.runtime import mesh as mesh_lib

GRID, VOCAB_SIZE = (4, 2, 3), 13
NUM_TOKENS = 24
T, H, W = np.indices(GRID)
# What the tasks give of a clip, one in each row of a batch; all give as much, and so share their
# programs.
KNOWN = np.stack(
    [
        T < 2,  # predict, and every window of extend after the first
        (T == 0) | (T == 3),  # interpolate
        (H == 0),  # edit of a box
        (T + H + W) % 2 == 0,  # fill
    ]
)
BATCH, NUM_KNOWN = len(KNOWN), 12
BASE = from_config_dict(default_config())
SETTINGS = dataclasses.replace(
    BASE.decoding,
    draft_steps=5,
    choice_temperature=3.0,
    top_k=6,
    bootstrap_steps=2,
    remask_steps=2,
    remask_at=0.5,
    remask_share=0.1,
    revise_rounds=2,
    revise_partitions=5,
    revise_temperature=0.6,
)
BACKBONE = dataclasses.replace(
    BASE.backbone,
    layers=("encode", "update", "decode"),
    width=16,
    heads=2,
    num_latents=3,
    dtype="float32",
    remat="none",
)


def random_model(config=BACKBONE):
    """(graphdef, params) with weights large enough for tokens to depend on each other."""
    model = nnx.eval_shape(lambda: MeBT(config, TokenGrid(VOCAB_SIZE, GRID), rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(model, nnx.Param)
    rng = np.random.default_rng(0)
    return graphdef, jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0.1, 0.4, leaf.shape), jnp.float32), params
    )


GRAPHDEF, PARAMS = random_model()


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    monkeypatch.setattr(plan_lib, "DRAFT_PROGRAMS", 1)
    plan_lib.shared_sizes.cache_clear()
    yield
    plan_lib.shared_sizes.cache_clear()


def run(plan: Plan, keys: jax.Array, block: int = 7, **options) -> np.ndarray:
    sampled = decode_lib.decode(GRAPHDEF, PARAMS, plan, GRID, keys, block=block, **options)
    return np.asarray(sampled.latents)


@jax.jit
def draws(key: jax.Array, index: int, revise_round: int):
    """All noise of a pass for one clip: per token, over the positions, and for the parts of a
    revise round.
    """
    fold = jax.random.fold_in
    pass_key = fold(fold(key, 0), index)
    token_key, choice_key = fold(pass_key, 0), fold(pass_key, 1)
    per_token = jax.vmap(lambda n: jax.random.gumbel(fold(token_key, n), (8,)))(
        jnp.arange(NUM_TOKENS)
    )
    filtered = jax.vmap(lambda n: jax.random.gumbel(fold(token_key, n), (6,)))(
        jnp.arange(NUM_TOKENS)
    )
    return {
        "all": per_token,
        "filtered": filtered,
        "choice": jax.random.gumbel(choice_key, (NUM_TOKENS,)),
        "pick": jax.random.uniform(choice_key, (NUM_TOKENS,)),
        "hide": jax.random.uniform(fold(choice_key, 0), (NUM_TOKENS,)),
        "part": jax.random.uniform(fold(fold(key, 1), revise_round), (NUM_TOKENS,)),
    }


@jax.jit
def order_noise(key: jax.Array):
    root = jax.random.fold_in(key, 2)
    return (
        jax.random.uniform(jax.random.fold_in(root, 0), (NUM_TOKENS,)),
        jax.random.randint(jax.random.fold_in(root, 1), (3,), 0, jnp.array(GRID)),
    )


@jax.jit
def all_logits(tokens: jax.Array, is_context: jax.Array):
    """Logits [N, V] of every token that is not context: by position, others without meaning."""
    model = nnx.merge(GRAPHDEF, PARAMS)
    positions = jnp.arange(NUM_TOKENS)[None]
    hidden = model(
        MaskedTokens(tokens[None], positions, is_context[None], positions, ~is_context[None])
    )
    return model.logits(hidden)[0]


def plain_draw(logits: np.ndarray, noise: np.ndarray, groups: int) -> tuple[int, float]:
    log_p = logits - np.log(np.exp(logits - logits.max()).sum()) - logits.max()
    grouped = np.pad(log_p, (0, -len(log_p) % 4), constant_values=-np.inf).reshape(groups, 4)
    group = np.argmax(np.log(np.exp(grouped).sum(axis=1)) + noise[:groups])
    entry = np.argmax(grouped[group] + noise[groups:])
    return group * 4 + entry, grouped[group, entry]


def plain_decode(plan: Plan, key: jax.Array, tokens: np.ndarray, known: np.ndarray) -> np.ndarray:
    """One clip in NumPy, no padding, no blocks, no cache, no slots: the algorithm as one would
    write it down.
    """
    tokens, known, given = tokens.copy(), known.copy(), known.copy()
    free = np.flatnonzero(~given)
    noise, shift = jax.device_get(order_noise(key))
    random_order = free[np.argsort(noise[free], kind="stable")]
    order = {"confidence": free, "random": random_order}
    cells = np.stack(np.unravel_index(free, GRID), axis=-1)
    order["halton"] = free[np.argsort(halton_ranks(GRID)[tuple(((cells + shift) % GRID).T)])]
    for index, step in enumerate(plan.passes):
        random = jax.device_get(draws(key, index, step.revise_round))
        targets = np.flatnonzero(~known)
        if step.kind == REVISE:
            targets = free[np.argsort(random["part"][free], kind="stable")][
                step.partition :: plan.partitions
            ]
        logits = (
            np.asarray(all_logits(tokens, ~np.isin(np.arange(NUM_TOKENS), targets)))
            / step.temperature
        )
        drawn, score = {}, {}
        for n in targets:
            if step.kind in (DRAFT, REMASK) and plan.top_k:
                candidates = np.argsort(-logits[n], kind="stable")[: plan.top_k]
                entry, log_p = plain_draw(logits[n][candidates], random["filtered"][n], groups=2)
                drawn[n] = candidates[entry]
            else:
                drawn[n], log_p = plain_draw(logits[n], random["all"][n], groups=4)
            score[n] = log_p + step.choice_temperature * random["choice"][n]
        if step.kind == REVISE:
            chosen = list(targets)
        elif step.kind == BOOTSTRAP:
            chosen = [next(n for n in random_order if not known[n])]
        elif step.kind == REMASK:
            chosen = sorted(targets, key=lambda n: random["pick"][n])[: step.committed]
            hidden = sorted(free[known[free]], key=lambda n: random["hide"][n])[: step.committed]
            known[hidden], tokens[hidden] = False, 0
        elif plan.order == "confidence":
            chosen = sorted(targets, key=lambda n: -score[n])[: step.committed]
        else:
            chosen = [n for n in order[plan.order] if not known[n]][: step.committed]
        assert len(chosen) == step.committed
        for n in chosen:
            tokens[n], known[n] = drawn[n], True
    return tokens.reshape(GRID)


def given_tokens(seed: int) -> tuple[jax.Array, jax.Array]:
    tokens = np.random.default_rng(seed).integers(0, VOCAB_SIZE, KNOWN.shape).astype(np.int32)
    return jnp.asarray(np.where(KNOWN, tokens, 0)), jnp.asarray(KNOWN)


@functools.cache
def plan_of(order: str) -> Plan:
    return build_plan(dataclasses.replace(SETTINGS, order=order), NUM_TOKENS, NUM_KNOWN)


@pytest.mark.parametrize("order", ORDERS)
def test_equals_a_plain_loop(order):
    keys, (tokens, known) = clip_keys(3, jnp.arange(BATCH)), given_tokens(0)
    ours = run(plan_of(order), keys, tokens=tokens, known=known)
    for i in range(BATCH):
        expected = plain_decode(
            plan_of(order), keys[i], np.asarray(tokens[i]).ravel(), np.asarray(known[i]).ravel()
        )
        np.testing.assert_array_equal(ours[i], expected)


def test_the_tokens_are_the_same_without_the_cache():
    """The loop has none either, so with the test above the cache changes no token in any order; the
    kinds left out run alike.
    """
    plan = build_plan(
        dataclasses.replace(SETTINGS, bootstrap_steps=0, remask_steps=0), NUM_TOKENS, NUM_KNOWN
    )
    keys, (tokens, known) = clip_keys(3, jnp.arange(BATCH)), given_tokens(0)
    ours = run(plan, keys, tokens=tokens, known=known, plain=True, block=100)
    for i in range(BATCH):
        expected = plain_decode(
            plan, keys[i], np.asarray(tokens[i]).ravel(), np.asarray(known[i]).ravel()
        )
        np.testing.assert_array_equal(ours[i], expected)


@pytest.mark.parametrize("order", ORDERS)
def test_known_tokens_never_change(order):
    passes = len([step for step in plan_of(order).passes if step.kind != REVISE])
    for seed in range(4):
        keys, (tokens, known) = clip_keys(seed, jnp.arange(BATCH)), given_tokens(seed)
        decoded = decode_lib.decode(
            GRAPHDEF, PARAMS, plan_of(order), GRID, keys, block=7, tokens=tokens, known=known
        )
        np.testing.assert_array_equal(decoded.latents[known], tokens[known])
        assert (
            decoded.latents.min() >= 0
            and decoded.latents.max() < VOCAB_SIZE
            and decoded.latents[~known].any()
        )
        assert (decoded.committed_at[known] == decode_lib.GIVEN).all()
        assert ((decoded.committed_at[~known] >= 0) & (decoded.committed_at[~known] < passes)).all()


def test_a_clip_depends_on_its_own_key_alone():
    plan, (tokens, known) = plan_of("confidence"), given_tokens(0)
    tokens, known = (jnp.broadcast_to(x[:1], x.shape) for x in (tokens, known))
    first = run(plan, clip_keys(5, jnp.arange(BATCH)), tokens=tokens, known=known)
    again = run(plan, clip_keys(5, jnp.array([17, 3, 9, 2])), tokens=tokens, known=known)
    np.testing.assert_array_equal(first[[2, 3]], again[[3, 1]])
    assert (
        len(np.unique(np.concatenate([first, again]).reshape(2 * BATCH, -1), axis=0))
        == 2 * BATCH - 2
    )


def test_batch_split_over_devices_gives_the_same_clips_by_the_programs_of_the_plan():
    plan = build_plan(
        dataclasses.replace(
            SETTINGS, bootstrap_steps=0, draft_steps=2, remask_steps=0, revise_rounds=0
        ),
        NUM_TOKENS,
    )
    mesh = Mesh(np.array(jax.devices()[:BATCH]).reshape(BATCH, 1, 1, 1), mesh_lib.AXES)
    before = decode_lib.pass_program(mesh)._cache_size()
    for seed in range(2):
        keys = clip_keys(seed, jnp.arange(BATCH))
        tokens = decode_lib.decode(GRAPHDEF, PARAMS, plan, GRID, keys, block=7, mesh=mesh).latents
        assert [shard.data.shape for shard in tokens.addressable_shards] == [(1, *GRID)] * BATCH
        expected = plain_decode(
            plan, keys[1], np.zeros(NUM_TOKENS, np.int32), np.zeros(NUM_TOKENS, bool)
        )
        np.testing.assert_array_equal(tokens[1], expected)
    assert decode_lib.pass_program(mesh)._cache_size() - before == len(programs(plan)) == 1


def test_remasking_keeps_a_joint_distribution():
    """Two tokens that are always equal, and a model that knows it: after any number of remask
    passes they still are.
    """

    class Equal(MaskedBackbone):
        """A target is token 3 with probability 0.7 and token 5 with 0.3, or what its neighbour is,
        if that is known.
        """

        def __call__(self, tokens, condition=None, *, key=None):
            prior = jnp.log(jnp.zeros(VOCAB_SIZE).at[3].set(0.7).at[5].set(0.3) + 1e-9)
            seen = jnp.zeros((len(tokens.context_tokens), NUM_TOKENS), jnp.int32)
            rows = jnp.arange(len(seen))[:, None]
            visible = jnp.where(tokens.context_valid, tokens.context_tokens, 0)
            seen = seen.at[rows, tokens.context_positions].max(visible)
            neighbour = seen[rows, tokens.target_positions ^ 1]  # [B, M]
            return jnp.where(
                neighbour[..., None] > 0,
                jnp.log(jax.nn.one_hot(neighbour, VOCAB_SIZE) + 1e-9),
                prior,
            )

        def head_kernel(self):
            return jnp.zeros((0, VOCAB_SIZE))

        def logits(self, hidden, kernel=None):
            return hidden

    graphdef, params = nnx.split(Equal(), nnx.Param)
    settings = dataclasses.replace(
        SETTINGS,
        order="random",
        mask_schedule="linear",
        draft_steps=2 * NUM_TOKENS,
        top_k=0,
        bootstrap_steps=0,
        remask_steps=20,
        remask_share=0.01,
        revise_rounds=0,
    )
    plan = build_plan(settings, NUM_TOKENS)
    assert plan.count(REMASK) == 20 and all(step.committed == 1 for step in plan.passes)
    keys = clip_keys(0, jnp.arange(40))
    decoded = decode_lib.decode(graphdef, params, plan, GRID, keys, block=100, plain=True)
    pairs = np.asarray(decoded.latents).reshape(-1, 2)
    assert (pairs[:, 0] == pairs[:, 1]).all()
    assert 0.6 < (pairs[:, 0] == 3).mean() < 0.8 and set(np.unique(pairs)) == {3, 5}
    assert (np.asarray(decoded.committed_at) >= 0).all()


def test_on_pass_is_called_once_per_pass():
    plan, calls, (tokens, known) = plan_of("confidence"), [], given_tokens(0)
    run(
        plan,
        clip_keys(0, jnp.arange(BATCH)),
        tokens=tokens,
        known=known,
        on_pass=lambda: calls.append(1),
    )
    assert len(calls) == plan.num_passes


def test_wrong_number_of_known_tokens_is_refused():
    tokens, known = given_tokens(0)
    with pytest.raises(UserError, match="12 known tokens per clip, but the clips have 10 to 12"):
        run(
            plan_of("confidence"),
            clip_keys(0, jnp.arange(BATCH)),
            tokens=tokens,
            known=known.at[0, 0, 0, :2].set(False),
        )
