"""Every program of every stage compiles for the chips of one slice, and of two."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

# Programs that the stages must have met; those with attention use the kernel of TPUs.
WITH_KERNEL = {
    ("prior", "train_step"),
    ("prior", "validation_step"),
    ("sample", "run_pass"),
    ("evaluate", "validation_step"),
}
OTHERS = {
    ("tokenizer", "create_state"),
    ("tokenizer", "fit_start"),
    ("tokenizer", "train_step"),
    ("tokenizer", "validation_step"),
    ("prior", "encode_video"),
    ("prior", "decode_tokens"),
    ("sample", "start"),
    ("sample", "clip_keys"),
}
MEASURES = {"random_features", "i3d", "c3d", "lpips", "psnr", "ssim", "l1", "windowed"}


@pytest.mark.parametrize("slices", [1, 2])
def test_every_program_of_every_stage_compiles_for_tpus(slices, tmp_path):
    pytest.importorskip("libtpu")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [
            sys.executable,
            "tests/aot/every_program.py",
            f"--slices={slices}",
            f"--workdir={tmp_path}",
        ],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-8000:]
    print(done.stdout)
