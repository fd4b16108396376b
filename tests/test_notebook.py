"""The Colab notebook runs from top to bottom on the demo's model."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MINUTES = 5


@pytest.fixture
def workdir(tmp_path):
    """A run of the demo, cut short: what the notebook shows of it is not pretty, but all of it
    works.
    """
    given = os.environ.get("MEBT_JAX_WORKDIR")
    if given:
        return Path(given).resolve()
    fields = [
        f"--config.{name}.training.{field}={steps}"
        for name, steps in (("tokenizer", 100), ("prior", 60))
        for field in ("steps", "checkpoint_every", "validate_every")
    ]
    for stage in ("data", "tokenizer", "prior"):
        subprocess.run(
            [
                sys.executable,
                "-m",
                "mebt_jax.main",
                "--config=configs/demo.py",
                f"--workdir={tmp_path}",
                f"--stage={stage}",
                *fields,
            ],
            cwd=ROOT,
            env=environment(),
            check=True,
        )
    return tmp_path


def environment() -> dict[str, str]:
    """One device, and the package from this checkout."""
    return os.environ | {"XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(workdir, monkeypatch):
    nbformat = pytest.importorskip("nbformat", reason="pip install -e .[notebook]")
    nbclient = pytest.importorskip("nbclient", reason="pip install -e .[notebook]")
    pytest.importorskip("mediapy", reason="pip install -e .[notebook]")
    notebook = nbformat.read(ROOT / "notebooks" / "sampling.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), (
        "commit the notebook without outputs"
    )
    for name, value in (environment() | {"MEBT_JAX_WORKDIR": str(workdir)}).items():
        monkeypatch.setenv(name, value)
    start = time.monotonic()
    client = nbclient.NotebookClient(
        notebook, timeout=60 * MINUTES, resources={"metadata": {"path": str(ROOT / "notebooks")}}
    )
    client.execute()
    print(f"the notebook took {time.monotonic() - start:.0f} s")
    shown = [
        output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])
    ]
    assert sum("video/mp4" in data.get("text/html", "") for data in shown) >= 9
    assert sum("image/png" in data for data in shown) >= 2
