"""The arithmetic that is counted is the arithmetic that is done, and the savings are what they are
said to be.
"""

import dataclasses
import importlib
import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from configs.base import get_config
from mebt_jax.backbones.mebt import cache as cached
from mebt_jax.backbones.mebt.model import MeBT
from mebt_jax.config import from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.methods.masked import cost, decode
from mebt_jax.methods.masked.plan import (
    BOOTSTRAP,
    DRAFT,
    DRAFT_PROGRAMS,
    REVISE,
    Pass,
    Sizes,
    build_plan,
    programs,
    shared_sizes,
)
from mebt_jax.stages.prior import abstract_transformer

# Wide enough for the matrix products to outweigh all else, without repeats, of whose body XLA
# counts one.
MODEL = dataclasses.replace(
    from_config_dict(get_config()).transformer,
    width=256,
    heads=4,
    latents=64,
    dtype="float32",
    layers=("encode", "latent", "update", "decode", "update", "full", "decode"),
)
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
        return model.logits(hidden), cached.write(
            cache, new, cached.keys_and_values(model, new, new)
        )

    graphdef, params = nnx.split(
        nnx.eval_shape(lambda: MeBT(MODEL, num_codes=CODES, grid=(8, 8, 8), rngs=nnx.Rngs(0))),
        nnx.Param,
    )
    tokens = lambda count: jax.ShapeDtypeStruct((1, count), jnp.int32)  # noqa: E731
    cache = jax.eval_shape(
        lambda params: cached.keys_and_values(
            nnx.merge(graphdef, params), jnp.zeros((1, TOKENS), int), jnp.zeros((1, TOKENS), int)
        ),
        params,
    )
    lowered = jax.jit(one_pass).lower(
        params,
        tokens(contexts),
        tokens(contexts),
        cache,
        tokens(SIZES.targets),
        tokens(SIZES.committed),
    )
    one = Pass(kind, SIZES.contexts, SIZES.targets, SIZES.committed, temperature=1.0)
    counted = cost.pass_flops(MODEL, CODES, one, SIZES, TOKENS, plain=plain)
    assert counted == pytest.approx(lowered.cost_analysis()["flops"], rel=0.06)


def test_the_ucf128_preset_takes_a_quarter_less_in_few_programs():
    config = from_config_dict(importlib.import_module("configs.ucf128").get_config())
    plan = build_plan(config.sample, math.prod(config.grid))
    full = cost.plan_flops(
        config.transformer, config.tokenizer.codes, plan, plain=True, padded=False
    )
    assert cost.plan_flops(config.transformer, config.tokenizer.codes, plan) < 0.75 * full
    assert len(programs(plan)) <= DRAFT_PROGRAMS + 2


def traced_pass(config, kind):
    """The ucf128 preset's first pass of a kind as JAX will compile it, and its sizes."""
    plan = build_plan(config.sample, math.prod(config.grid))
    index = next(i for i, one in enumerate(plan.passes) if one.kind == kind)
    one, sizes = plan.passes[index], shared_sizes(plan)[index]
    graphdef, params = abstract_transformer(config)
    keys = jax.eval_shape(lambda: decode.clip_keys(0, jnp.arange(1)))
    tokens, known = (
        jax.ShapeDtypeStruct((1, plan.num_tokens), dtype) for dtype in (jnp.int32, bool)
    )
    state = jax.eval_shape(
        lambda *arrays: decode.start(
            graphdef, *arrays, plan=plan, grid=config.grid, plain=False, sharding=None
        ),
        params,
        keys,
        tokens,
        known,
    )
    traced = decode.pass_on("cpu").trace(
        graphdef,
        params,
        state,
        keys,
        decode.pass_inputs(index, one),
        kind=kind,
        sizes=sizes,
        by_confidence=kind == DRAFT and plan.order == "confidence",
        num_known=0,
        partitions=plan.partitions,
        top_k=plan.top_k,
        top_p=plan.top_p,
        block=decode.LOGITS_BLOCK,
        sharding=None,
    )
    return traced.jaxpr.jaxpr, sizes


def operations(jaxpr, times=1):
    """(operation, how often it runs) of a program and all that it calls, in order."""
    for operation in jaxpr.eqns:
        yield operation, times
        for inner in jax.core.jaxprs_in_params(operation.params):
            yield from operations(inner, times * operation.params.get("length", 1))


@pytest.mark.parametrize(
    "kind, order",
    [(BOOTSTRAP, "confidence"), (DRAFT, "confidence"), (DRAFT, "halton"), (REVISE, "confidence")],
)
def test_the_last_block_and_the_head_run_for_the_asked_tokens_and_all_logits_are_never_made(
    kind, order
):
    config = from_config_dict(importlib.import_module("configs.ucf128").get_config())
    config = dataclasses.replace(config, sample=dataclasses.replace(config.sample, order=order))
    jaxpr, sizes = traced_pass(config, kind)
    assert (sizes.asked == sizes.targets) is (
        order == "confidence" and kind == DRAFT or kind == REVISE
    )
    width, codes = config.transformer.width, config.tokenizer.codes
    rows = {"head": 0, "mlp": 0}
    for operation, times in operations(jaxpr):
        shapes = [variable.aval.shape for variable in operation.invars]
        if operation.primitive.name == "dot_general" and shapes[1] == (
            width,
            cached.CODES_AT_A_TIME,
        ):
            rows["head"] += shapes[0][1] * times * cached.CODES_AT_A_TIME / codes
        if operation.primitive.name == "dot_general" and shapes[1] == (width, 4 * width):
            rows["mlp"] = shapes[0][1]  # of the last block in the end
        for made in (variable.aval for variable in operation.outvars):
            assert made.size < math.prod(config.grid) * codes / 2
            assert (
                made.shape[-1:] != (codes,)
                or made.shape == (width, codes)
                or made.size <= decode.LOGITS_BLOCK * codes
            )
    assert sizes.asked <= rows["head"] < sizes.asked + -(-sizes.asked // decode.LOGITS_BLOCK)
    assert rows["mlp"] == sizes.asked


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
