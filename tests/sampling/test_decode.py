"""The compiled sampler against a plain loop with the same keys, and what must hold for every seed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mebt_jax.config import SampleConfig
from mebt_jax.errors import UserError
from mebt_jax.sampling import decode as decode_lib
from mebt_jax.sampling.plan import BOOTSTRAP, DRAFT, REVISE, Plan, build_plan

GRID, NUM_CODES = (3, 2, 4), 13
NUM_TOKENS = 24
BATCH = 4
SETTINGS = SampleConfig(clips=3, batch_size=3, seed=0, mask_schedule="cosine", draft_steps=5, choice_temperature=3.0,
                        temperature=1.0, top_k=6, top_p=1.0, bootstrap_steps=2, revise_rounds=2, revise_partitions=5,
                        revise_temperature=0.6, frames_per_second=10.0)


class FakeModel(nnx.Module):
    """Has the call signature of `transformer.model.MeBT`; targets see their position and a sum over the context."""

    def __init__(self, rngs: nnx.Rngs):
        self.codes = nnx.Param(jax.random.normal(rngs.params(), (NUM_CODES, 8)))
        self.positions = nnx.Param(jax.random.normal(rngs.params(), (NUM_TOKENS, 8)))
        self.head = nnx.Param(2 * jax.random.normal(rngs.params(), (8, NUM_CODES)))

    def __call__(self, context_codes, context_positions, context_valid, target_positions, target_valid, *, key=None):
        context = self.codes[...][context_codes] * self.positions[...][context_positions]
        summary = jnp.where(context_valid[..., None], context, 0.0).sum(axis=1, keepdims=True)
        return jnp.tanh(self.positions[...][target_positions] + summary)

    def logits(self, hidden):
        return hidden @ self.head[...]


GRAPHDEF, PARAMS = nnx.split(FakeModel(nnx.Rngs(0)), nnx.Param)


@pytest.fixture(autouse=True)
def quick_compilation(monkeypatch):
    monkeypatch.setattr(decode_lib, "CAPACITY_STEPS", 3)
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def run(plan: Plan, keys: jax.Array, block: int = 7, **options) -> np.ndarray:
    return np.asarray(decode_lib.decode(GRAPHDEF, PARAMS, plan, GRID, keys, block=block, **options))


@jax.jit
def draws(key: jax.Array, revise_key: jax.Array):
    """All noise of a pass for one clip: per token, over the places, and for the parts of a revise round."""
    token_key, choice_key = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    per_token = jax.vmap(lambda n: jax.random.gumbel(jax.random.fold_in(token_key, n), (NUM_CODES,)))(jnp.arange(NUM_TOKENS))
    return (per_token, jax.random.uniform(choice_key, (NUM_TOKENS,)), jax.random.gumbel(choice_key, (NUM_TOKENS,)),
            jax.random.uniform(revise_key, (NUM_TOKENS,)))


def plain_log_probabilities(contexts: np.ndarray, codes: np.ndarray, targets: np.ndarray, temperature: float, top_k: int):
    table = {name: np.asarray(value) for name, value in nnx.to_pure_dict(PARAMS).items()}
    summary = (table["codes"][codes[contexts]] * table["positions"][contexts]).sum(axis=0)
    logits = np.tanh(table["positions"][targets] + summary) @ table["head"] / temperature
    if top_k:
        logits = np.where(logits < np.sort(logits, axis=-1)[:, [-top_k]], -np.inf, logits)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def plain_decode(plan: Plan, key: jax.Array, codes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """One clip in NumPy, no padding, no blocks, no static shapes: the algorithm as one would write it down."""
    codes, known, given = codes.copy(), known.copy(), known.copy()
    draft_root, revise_root = jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)
    for index, one in enumerate(plan.passes):
        token_noise, place, choice_noise, part_noise = jax.device_get(
            draws(jax.random.fold_in(draft_root, index), jax.random.fold_in(revise_root, one.revise_round)))
        targets = np.flatnonzero(~known)
        if one.kind == REVISE:
            free = [n for n in np.argsort(part_noise, kind="stable") if not given[n]]
            targets = np.sort(free[one.part::plan.partitions])
        contexts = np.setdiff1d(np.arange(NUM_TOKENS), targets)
        log_p = plain_log_probabilities(contexts, codes, targets, one.temperature, plan.top_k if one.kind == DRAFT else 0)
        drawn = {n: int(np.argmax(row + token_noise[n])) for n, row in zip(targets, log_p)}
        score = {n: row[drawn[n]] + one.choice_temperature * choice_noise[n] for n, row in zip(targets, log_p)}
        kept = list(targets)
        if one.kind == BOOTSTRAP:
            kept = [max(targets, key=lambda n: place[n])]
        if one.kind == DRAFT:
            kept = sorted(targets, key=lambda n: -score[n])[:one.committed]
        assert len(kept) == one.committed
        for n in kept:
            codes[n], known[n] = drawn[n], True
    return codes.reshape(GRID)


def given_tokens(seed: int, num_known: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, NUM_CODES, (BATCH, NUM_TOKENS)).astype(np.int32)
    known = np.argsort(rng.random((BATCH, NUM_TOKENS)), axis=1) < num_known
    return np.where(known, codes, 0).reshape(BATCH, *GRID), known.reshape(BATCH, *GRID)


@pytest.mark.parametrize("num_known", [0, 9])
def test_equals_a_plain_loop(num_known):
    plan = build_plan(SETTINGS, NUM_TOKENS, num_known)
    keys = decode_lib.clip_keys(3, jnp.arange(BATCH))
    codes, known = given_tokens(0, num_known)
    ours = run(plan, keys, codes=jnp.asarray(codes), known=jnp.asarray(known))
    expected = [plain_decode(plan, keys[i], codes[i].ravel(), known[i].ravel()) for i in range(BATCH)]
    np.testing.assert_array_equal(ours, np.stack(expected))


@pytest.mark.parametrize("seed", range(4))
def test_known_tokens_never_change(seed):
    codes, known = given_tokens(seed, 9)
    keys = decode_lib.clip_keys(seed, jnp.arange(BATCH))
    ours = run(build_plan(SETTINGS, NUM_TOKENS, 9), keys, codes=jnp.asarray(codes), known=jnp.asarray(known))
    np.testing.assert_array_equal(ours[known], codes[known])
    assert ours.min() >= 0 and ours.max() < NUM_CODES and ours[~known].any()


def test_a_clip_depends_on_its_own_key_alone():
    plan = build_plan(SETTINGS, NUM_TOKENS)
    first = run(plan, decode_lib.clip_keys(5, jnp.arange(BATCH)))
    np.testing.assert_array_equal(first, run(plan, decode_lib.clip_keys(5, jnp.arange(BATCH))))
    np.testing.assert_array_equal(first[3], run(plan, decode_lib.clip_keys(5, jnp.array([17, 3, 9, 20])))[1])
    assert len(np.unique(first.reshape(BATCH, -1), axis=0)) == BATCH
    assert (first != run(plan, decode_lib.clip_keys(6, jnp.arange(BATCH)))).any()


def test_padding_and_blocks_change_nothing(monkeypatch):
    plan = build_plan(SETTINGS, NUM_TOKENS)
    keys = decode_lib.clip_keys(0, jnp.arange(BATCH))
    fine = run(plan, keys)
    monkeypatch.setattr(decode_lib, "CAPACITY_STEPS", 1)
    assert decode_lib.compiled_shapes(plan) == {(BOOTSTRAP, 24, 24), (DRAFT, 24, 24), (REVISE, 20, 5)}
    np.testing.assert_array_equal(fine, run(plan, keys, block=100))


def test_batch_split_over_devices_gives_the_same_clips():
    plan = build_plan(dataclasses.replace(SETTINGS, bootstrap_steps=0, draft_steps=2, revise_rounds=1), NUM_TOKENS)
    keys = decode_lib.clip_keys(0, jnp.arange(BATCH))
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:BATCH]), ("data",)), PartitionSpec("data"))
    codes = decode_lib.decode(GRAPHDEF, PARAMS, plan, GRID, keys, block=7, sharding=sharding)
    assert [shard.data.shape for shard in codes.addressable_shards] == [(1, *GRID)] * BATCH
    np.testing.assert_array_equal(codes, run(plan, keys))


def test_a_long_plan_needs_few_programs(monkeypatch):
    monkeypatch.setattr(decode_lib, "CAPACITY_STEPS", 8)
    settings = dataclasses.replace(SETTINGS, draft_steps=32, bootstrap_steps=64, revise_rounds=2, revise_partitions=32)
    plan = build_plan(settings, 8192)
    assert plan.num_passes == 158 and len(decode_lib.compiled_shapes(plan)) <= 12
    for one in plan.passes:
        contexts, targets = decode_lib.capacities(plan, one)
        assert one.contexts <= contexts <= one.contexts + 1024 and one.targets <= targets <= one.targets + 1024


def test_on_pass_is_called_once_per_pass():
    plan, calls = build_plan(SETTINGS, NUM_TOKENS), []
    run(plan, decode_lib.clip_keys(0, jnp.arange(BATCH)), on_pass=lambda: calls.append(1))
    assert len(calls) == plan.num_passes


def test_wrong_number_of_known_tokens_is_refused():
    codes, known = given_tokens(0, 6)
    with pytest.raises(UserError, match="5 known tokens"):
        run(build_plan(SETTINGS, NUM_TOKENS, 5), decode_lib.clip_keys(0, jnp.arange(BATCH)), codes=jnp.asarray(codes),
            known=jnp.asarray(known))
