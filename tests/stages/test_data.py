import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mebt_jax.config import default_config, from_config_dict
from mebt_jax.runtime import pictures, workdir
from mebt_jax.stages import data


def make_config(**fields):
    config = default_config()
    config.data.update(dict(resolution=16, frames=8, train_clips=12, validation_clips=4) | fields)
    return from_config_dict(config)


def test_moving_shapes_leave_a_preview_and_a_manifest(tmp_path, capsys):
    data.run(make_config(), tmp_path)
    assert "12 clips of moving shapes" in capsys.readouterr().err
    assert (
        json.loads((tmp_path / "data" / "manifest.json").read_text())["settings"]["train_clips"]
        == 12
    )
    assert np.asarray(Image.open(tmp_path / "data" / "preview.png")).std() > 10


def test_a_folder_is_prepared_and_what_is_skipped_is_said(tmp_path, capsys):
    videos = tmp_path / "videos"
    for i, frames in enumerate((10, 12, 3)):
        pictures.write_mp4(videos / f"{i}.mp4", np.full((frames, 32, 32, 3), 40 * i, np.uint8), 10)
    config = make_config(source="folder", path=str(videos))
    data.run(config, tmp_path / "run")
    said = capsys.readouterr().err
    assert (
        "2 videos, 22 frames" in said
        and "1 skipped (first: 2.mp4, has 3 frames, but a clip reaches over 8)" in said
    )
    manifest = json.loads((tmp_path / "run" / "data" / "manifest.json").read_text())
    assert manifest["skipped"] == [
        {"video": "2.mp4", "reason": "has 3 frames, but a clip reaches over 8"}
    ]
    assert (tmp_path / "run" / "data" / "preview.png").exists()
    assert workdir.is_done(config, tmp_path / "run", "data")


@pytest.mark.slow
def test_a_preparation_that_is_killed_goes_on_where_it_was(tmp_path):
    """The command on 300 videos, killed twice: what was finished is kept, and the records are those
    of one never killed.
    """
    rng = np.random.default_rng(0)
    videos = tmp_path / "videos" / "UCF-101"
    for kind in range(5):
        noise = rng.integers(0, 256, (40, 12, 16, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
        pictures.write_mp4(videos / "x.mp4", noise, 25)
        for i in range(60):
            (
                videos / f"v_Kind{chr(65 + kind)}_g{i % 25 + 1:02d}_c{i // 25 + 1:02d}.mp4"
            ).write_bytes((videos / "x.mp4").read_bytes())
    (videos / "x.mp4").unlink()
    (videos / "v_KindA_g01_c09.mp4").write_bytes(b"no video")

    def command(name):
        root = Path(__file__).parents[2]
        return subprocess.Popen(
            [
                sys.executable,
                "-m",
                "mebt_jax.main",
                f"--config={root}/tests/tiny_config.py",
                f"--workdir={tmp_path / name}",
                "--stage=data",
                "--config.data.source=ucf101",
                f"--config.data.source_dir={tmp_path / 'videos'}",
            ],
            cwd=root,
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def finish(name):
        process = command(name)
        output, _ = process.communicate(timeout=240)
        assert process.returncode == 0, output
        return output

    def finished():
        return {
            path: path.stat().st_mtime_ns
            for path in (tmp_path / "killed").glob("data/*.unfinished/parts/[!.]*.json")
        }

    kept = {}
    for _ in range(2):
        process, before = command("killed"), len(finished())
        while len(finished()) < before + 20 and process.poll() is None:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, process.stdout.read()
        assert kept.items() <= finished().items()
        kept = finished()
        assert not list((tmp_path / "killed").glob("data/records_*/manifest.json"))
    assert len(kept) < 250
    files = {
        path.with_suffix("").stat().st_mtime_ns
        for path in kept
        if json.loads(path.read_text())["records"]
    }
    finish("killed")
    finish("whole")
    killed, whole = (
        json.loads((tmp_path / name / "data" / "manifest.json").read_text())
        for name in ("killed", "whole")
    )
    for name in ("content_hash", "records", "videos", "used", "skipped"):
        assert killed[name] == whole[name]
    # Not the digests themselves: protocol buffers write the fields of a record in any order.
    assert killed["files"].keys() == whole["files"].keys()
    assert killed["videos"] == {"train": 195, "validation": 105} and len(killed["skipped"]) == 1
    written = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*array_record*")
    }
    assert files <= set(written.values())  # those of the killed runs themselves
    assert "data: done already" in finish("killed")
    assert written == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "killed").rglob("*array_record*")
    }
