"""The arithmetic that is counted is the arithmetic that is done, and so is the memory."""

import dataclasses
import functools
import importlib
import math

import jax
import numpy as np
import pytest

from mebt_jax.backbones import interface
from mebt_jax.config import default_config, from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.methods.masked import cost, decode
from mebt_jax.methods.masked.masked_method import MaskedMethod
from mebt_jax.methods.masked.passes import PassInputs
from mebt_jax.methods.masked.plan import BOOTSTRAP, DRAFT, DRAFT_PROGRAMS, REVISE, programs
from mebt_jax.methods.trained_prior import abstract_prior
from mebt_jax.runtime.device_memory import check_batch
from mebt_jax.runtime.flops import matrix_flops


def method_of(config, **decoding) -> MaskedMethod:
    decoding = dataclasses.replace(config.decoding, **decoding)
    return MaskedMethod.from_config(dataclasses.replace(config, decoding=decoding))


@functools.cache
def ucf128(order="confidence") -> MaskedMethod:
    config = from_config_dict(importlib.import_module("configs.ucf128").get_config())
    return method_of(MaskedMethod.from_config(config).resolved(config), order=order)


@functools.cache
def small() -> MaskedMethod:
    """Wide enough for the matrix products to outweigh all else, without repeats, of whose body XLA
    counts one.
    """
    config = default_config()
    config.data.frames, config.data.resolution = 32, 64
    config.tokenizer.codebook_size = 512
    config.backbone.update(width=256, heads=4, num_latents=64, dtype="float32")
    config.backbone.layers = ("encode", "latent", "update", "decode", "update", "full", "decode")
    return method_of(from_config_dict(config), draft_steps=1, revise_rounds=1, revise_partitions=4)


def distinct(method: MaskedMethod, kind: str):
    """(plan, pass, sizes) of the first pass of a kind."""
    plan = method.plan()
    step, sizes, _ = next(x for x in cost.distinct_passes(plan) if x[0].kind == kind)
    return plan, step, sizes


def compiled_pass(method: MaskedMethod, kind: str, *, plain: bool = False, clips: int = 1):
    """The first pass of a kind for some clips, as XLA compiles it."""
    graphdef, params = abstract_prior(method)
    plan, step, sizes = distinct(method, kind)
    state = cost.abstract_state(graphdef, params, plan, method.grid, clips=clips, plain=plain)
    inputs = jax.eval_shape(functools.partial(PassInputs.of, 0, step))
    spec = decode.pass_spec(plan, step, sizes, plain=plain)
    arguments = (graphdef, params, state, cost.abstract_keys(clips), None, inputs)
    return decode.pass_program(None).lower(*arguments, spec=spec)


@pytest.mark.parametrize("kind, plain", [(DRAFT, False), (DRAFT, True), (REVISE, False)])
def test_counted_operations_are_those_of_the_compiler(kind, plain):
    method = small()
    graphdef, params = abstract_prior(method)
    plan, step, sizes = distinct(method, kind)
    jaxpr = cost.traced_pass(graphdef, params, plan, method.grid, step, sizes, plain=plain)
    # Random numbers, sorting and filters are the rest; loops over blocks of targets have one turn.
    compiled = compiled_pass(method, kind, plain=plain).cost_analysis()["flops"]
    blocks = -(-sizes.num_logits // decode.LOGITS_BLOCK)
    head = 2 * sizes.num_logits * method.backbone_config.width * method.vocab_size
    assert matrix_flops(jaxpr) == pytest.approx(compiled + head * (1 - 1 / blocks), rel=0.1)


def test_the_cache_saves_a_sixth_of_the_ucf128_preset_in_few_programs():
    method = ucf128()
    graphdef, params = abstract_prior(method)
    count = functools.partial(cost.plan_flops, graphdef, params, method.plan(), method.grid)
    assert count() < 0.85 * count(plain=True)
    assert len(programs(method.plan())) <= DRAFT_PROGRAMS + 2
    report = method.sampling_report([0])
    assert report["teraflop_per_clip"] == pytest.approx(count() / 1e12)


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
def test_the_last_block_and_the_head_run_for_the_drawn_tokens_alone_in_blocks(kind, order):
    method = ucf128(order)
    graphdef, params = abstract_prior(method)
    plan, step, sizes = distinct(method, kind)
    jaxpr = cost.traced_pass(graphdef, params, plan, method.grid, step, sizes)
    draws_all = order == "confidence" and kind == DRAFT or kind == REVISE
    assert (sizes.num_logits == sizes.targets) is draws_all
    width, vocab_size = method.backbone_config.width, method.vocab_size
    chunk = interface.VOCABULARY_CHUNK
    rows = {"head": 0, "mlp": 0}
    for operation, times in operations(jaxpr):
        shapes = [variable.aval.shape for variable in operation.invars]
        if operation.primitive.name == "dot_general" and shapes[1] == (width, chunk):
            rows["head"] += shapes[0][1] * times * chunk / vocab_size
        if operation.primitive.name == "dot_general" and shapes[1] == (width, 4 * width):
            rows["mlp"] = shapes[0][1]  # of the last block in the end
        for result in (variable.aval for variable in operation.outvars):
            assert result.size < math.prod(method.grid) * vocab_size / 2
            assert (
                result.shape[-1:] != (vocab_size,)
                or result.shape == (width, vocab_size)
                or result.size <= decode.LOGITS_BLOCK * vocab_size
            )
    blocks = -(-sizes.num_logits // decode.LOGITS_BLOCK)
    assert sizes.num_logits <= rows["head"] < sizes.num_logits + blocks
    assert rows["mlp"] == sizes.num_logits


@pytest.mark.parametrize("kind", [DRAFT, REVISE])
def test_the_estimate_of_memory_is_near_the_compilers(kind):
    method = small()
    graphdef, params = abstract_prior(method)
    # Several clips, so that the copies of weights that XLA makes for a product weigh little.
    clips = 8
    analysis = compiled_pass(method, kind, clips=clips).compile().memory_analysis()
    weights = sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
    needed = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes - weights
    needed /= clips
    plan, step, sizes = distinct(method, kind)
    alone = dataclasses.replace(plan, passes=(step,))
    estimate = cost.clip_bytes(graphdef, params, alone, method.grid)
    assert needed / 1.5 < estimate < 1.5 * needed


def test_a_batch_too_large_for_the_device_is_refused_with_the_largest_that_is_not():
    check = functools.partial(
        check_batch, 4, clip_bytes=2**30, parameter_bytes=1000, shards=2, field="config.size"
    )
    check(limit=1000 + 2 * 2**30)
    with pytest.raises(UserError, match="config.size 4 .* the largest that should is 2"):
        check(limit=999 + 2 * 2**30)
    with pytest.raises(UserError, match="not a single clip does, as it takes about 1.0 GiB"):
        check(limit=2**30)
    assert np.isfinite(MaskedMethod.bytes_per_clip(small()))
