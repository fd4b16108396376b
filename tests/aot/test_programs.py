"""The programs by themselves on eight CPU devices; compiled for TPUs in `python -m pytest -m
slow`.
"""

import os
import subprocess
import sys

import jax
import pytest

from mebt_jax.aot import programs
from mebt_jax.config import from_config_dict
from mebt_jax.methods.masked.cost import plan_flops
from mebt_jax.methods.masked.masked_method import MaskedMethod
from mebt_jax.methods.masked.plan import build_plan
from mebt_jax.methods.trained_prior import abstract_prior
from mebt_jax.runtime import mesh as mesh_lib
from tests.tiny_config import tiny_config


@pytest.mark.slow
def test_the_programs_are_those_of_a_run_and_count_what_decoding_costs():
    config = from_config_dict(tiny_config())
    found = {
        step: programs.programs(step, config, jax.devices())
        for step in ("prior", "tokenizer", "sample")
    }
    for step in ("prior", "tokenizer"):
        (program,) = found[step]
        assert program.clips == 8 and 0 < program.useful_flops <= program.flops
    plan = build_plan(config.decoding, 32)
    passes = found["sample"][:-1]
    assert sum(program.runs for program in passes) == plan.num_passes
    graphdef, params = abstract_prior(MaskedMethod.from_config(config))
    expected = 8 * plan_flops(graphdef, params, plan, config.grid)
    assert sum(program.useful_flops * program.runs for program in passes) == expected
    # The program also computes the keys and values of what it commits, in whole blocks.
    flops = sum(program.flops * program.runs for program in passes)
    assert flops == pytest.approx(expected, rel=0.25)


@pytest.mark.slow
def test_evaluation_is_every_measure_of_every_kind_of_clips():
    # Weights of networks are not there, and need not be.
    overrides = {"data__frames": 16, "evaluate__protocol": "i3d", "evaluate__window": 12}
    folders = {"evaluate__c3d": "none", "evaluate__lpips": "none"}
    config = from_config_dict(tiny_config(evaluate__window_every=2, **overrides, **folders))
    found = {p.name: p for p in programs.programs("evaluate", config, jax.devices())}
    measures = {
        "real": ["frechet", "inception", "windows"],
        "reconstructed": ["frechet"],
        "pairs": ["psnr", "ssim", "l1", "lpips"],
        "generated": ["frechet", "inception", "windows"],
    }
    for kind, names in measures.items():
        assert {f"{name} of {kind} clips" for name in names} <= set(found)
    # Scores at four mask ratios, of whatever sizes.
    scores = [program for name, program in found.items() if name.startswith("scores")]
    assert sum(program.runs for program in scores) == 4 and found["latents to frames"].runs == 2
    assert len(found) == 2 + len(scores) + sum(map(len, measures.values()))
    # A window has 12 of 16 frames, of which I3D takes every second; generated clips have three.
    one, three = (found[f"windows of {kind} clips"].flops for kind in ("real", "generated"))
    assert three == 3 * one


@pytest.mark.slow
def test_state_that_is_split_takes_its_share():
    config = from_config_dict(tiny_config())
    whole, split = (
        programs.prior_step(config, mesh_lib.make_mesh(mesh, jax.devices()[:4]))[0].resident_bytes
        for mesh in (config.mesh, from_config_dict(tiny_config(mesh__data=1, mesh__fsdp=4)).mesh)
    )
    assert whole / 4 < split < 0.6 * whole  # small arrays are not split


def report(*arguments):
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "mebt_jax.aot", *arguments],
        env=environment,
        text=True,
        capture_output=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("step", list(programs.STEPS))
def test_every_step_compiles_for_a_tpu(step):
    pytest.importorskip("libtpu")
    status, output = report("--config=tests/tiny_config.py", "--topology=v5e:2x2", f"--step={step}")
    assert status == 0 and "clips a second by the whole 4 chips" in output, output


@pytest.mark.slow
def test_two_slices_pay_for_what_they_send_each_other():
    pytest.importorskip("libtpu")
    status, output = report("--config=tests/tiny_config.py", "--topology=v5e:2x2", "--slices=2")
    assert status == 0 and "all-reduce" in output, output


@pytest.mark.slow
def test_what_does_not_fit_exits_with_status_1_and_a_fix():
    pytest.importorskip("libtpu")
    # Logits of all targets at one time, float32, in one product: 32 x 2048 x 2^18 of them on each
    # chip are 64 GiB.
    status, output = report(
        "--config=tests/tiny_config.py",
        "--topology=v5e:2x2",
        "--config.tokenizer.codebook_size=262144",
        "--config.data.resolution=128",
        "--config.data.frames=8",
        "--config.method.loss_block=2048",
        "--config.prior.training.batch_size=128",
    )
    assert status == 1 and "raise config.prior.training.microbatches up to 32" in output, output


@pytest.mark.slow
def test_ucf128_fits_sixteen_v5e_chips():
    pytest.importorskip("libtpu")
    status, output = report("--config=configs/ucf128.py", "--topology=v5e:4x4", "--effort=-1")
    assert status == 0 and "GiB of the 15.75 GiB" in output, output
