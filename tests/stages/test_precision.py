"""Training in bfloat16 ends where training in float32 does: the demo, smaller and shorter."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mebt_jax.runtime import telemetry

ROOT = Path(__file__).parents[2]
# Validation and checkpoints but at the end are left out.
SMALL = {
    "data.resolution": 32,
    "tokenizer.compression": "(4,8,8)",
    "tokenizer.patch": "(4,8,8)",
    "tokenizer.codebook_size": 64,
    "tokenizer.training.steps": 20,
    "tokenizer.training.warmup_steps": 20,
    "tokenizer.training.validate_every": 1000,
    "tokenizer.training.checkpoint_every": 1000,
    "backbone.width": 64,
    "prior.training.steps": 300,
    "prior.training.batch_size": 16,
    "prior.training.validate_every": 1000,
    "prior.training.checkpoint_every": 1000,
}


def run(workdir: Path, *stages: str, **fields):
    fields = SMALL | {name.replace("__", "."): value for name, value in fields.items()}
    for stage in stages:
        subprocess.run(
            [
                sys.executable,
                "-m",
                "mebt_jax.main",
                "--config=configs/demo.py",
                f"--workdir={workdir}",
                f"--stage={stage}",
                *(f"--config.{name}={value}" for name, value in fields.items()),
            ],
            cwd=ROOT,
            env=os.environ | {"XLA_FLAGS": ""},
            check=True,
        )


@pytest.mark.slow
def test_bfloat16_reaches_the_loss_of_float32(tmp_path):
    run(tmp_path, "data", "tokenizer")
    nll = {}
    for dtype in ("float32", "bfloat16"):
        run(
            tmp_path / dtype,
            "data",
            "tokenizer",
            "prior",
            backbone__dtype=dtype,
            tokenizer__checkpoint=tmp_path,
        )
        (nll[dtype],) = (
            record["validation/nll"]
            for record in telemetry.read_metrics(tmp_path / dtype / "prior" / "metrics.jsonl")
            if "validation/nll" in record
        )
    print(nll)
    assert nll["bfloat16"] == pytest.approx(nll["float32"], rel=0.01)
    assert nll["float32"] < 1.5  # it has learned something: the codes alone have more
