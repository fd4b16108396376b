"""The arithmetic that is counted is the arithmetic that is done, and the savings are what they are said to be."""

import dataclasses
import importlib
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from configs.base import get_config
from mebt_jax.config import from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.sampling import cost
from mebt_jax.sampling.plan import DRAFT, DRAFT_PROGRAMS, REVISE, Pass, Sizes, build_plan, programs
from mebt_jax.transformer import cached
from mebt_jax.transformer.model import MeBT

# Wide enough for the matrix products to outweigh all else, without repeats, of whose body XLA counts one.
MODEL = dataclasses.replace(from_config_dict(get_config()).transformer, width=256, heads=4, latents=64, dtype="float32",
                            layers=("encode", "latent", "update", "decode", "update", "full", "decode"))
CODES, TOKENS = 512, 512
SIZES = Sizes(contexts=256, targets=128, asked=32, committed=32)


@pytest.mark.parametrize("kind, plain", [(DRAFT, False), (DRAFT, True), (REVISE, False)])
def test_counted_operations_are_those_of_the_compiler(kind, plain):
    contexts = TOKENS if kind == REVISE and not plain else SIZES.contexts

    def one_pass(params, codes, positions, cache, targets, new):
        model = nnx.merge(graphdef, params)
        valid = jnp.ones_like(codes, bool), jnp.ones_like(targets, bool)
        if plain:
            return model.logits(model(codes, positions, valid[0], targets, valid[1]))
        hidden = cached.hidden_states(model, cache, valid[0], targets, valid[1], asked=SIZES.asked)
        return model.logits(hidden), cached.write(cache, new, cached.keys_and_values(model, new, new))

    graphdef, params = nnx.split(nnx.eval_shape(lambda: MeBT(MODEL, num_codes=CODES, grid=(8, 8, 8), rngs=nnx.Rngs(0))),
                                 nnx.Param)
    tokens = lambda count: jax.ShapeDtypeStruct((1, count), jnp.int32)  # noqa: E731
    cache = jax.eval_shape(lambda params: cached.keys_and_values(
        nnx.merge(graphdef, params), jnp.zeros((1, TOKENS), int), jnp.zeros((1, TOKENS), int)), params)
    lowered = jax.jit(one_pass).lower(params, tokens(contexts), tokens(contexts), cache, tokens(SIZES.targets),
                                      tokens(SIZES.committed))
    one = Pass(kind, SIZES.contexts, SIZES.targets, SIZES.committed, temperature=1.0)
    counted = cost.pass_flops(MODEL, CODES, one, SIZES, TOKENS, plain=plain)
    assert counted == pytest.approx(lowered.cost_analysis()["flops"], rel=0.06)


def test_the_ucf128_preset_takes_a_quarter_less_in_few_programs():
    config = from_config_dict(importlib.import_module("configs.ucf128").get_config())
    plan = build_plan(config.sample, math.prod(config.grid))
    full = cost.plan_flops(config.transformer, config.tokenizer.codes, plan, plain=True, padded=False)
    assert cost.plan_flops(config.transformer, config.tokenizer.codes, plan) < 0.75 * full
    assert len(programs(plan)) <= DRAFT_PROGRAMS + 2


def test_a_batch_too_large_for_the_device_is_refused_with_the_largest_that_is_not():
    config = from_config_dict(get_config())
    plan = build_plan(config.sample, 8192)
    each = cost.clip_bytes(config, plan, 8192)
    assert 2**29 < each < 2**32
    cost.check_batch(config, plan, 1000, shards=2, limit=1000 + 2 * each)
    with pytest.raises(UserError, match="the largest that should is 2"):
        cost.check_batch(config, plan, 1000, shards=2, limit=999 + 2 * each)
    with pytest.raises(UserError, match="not one does"):
        cost.check_batch(config, plan, 1000, shards=2, limit=each)
