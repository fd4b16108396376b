import json

import numpy as np
from PIL import Image

from configs import base
from mebt_jax.config import from_config_dict
from mebt_jax.runtime import pictures, workdir
from mebt_jax.stages import data


def make_config(**fields):
    config = base.get_config()
    config.data.update(dict(resolution=16, frames=8, train_clips=12, validation_clips=4) | fields)
    return from_config_dict(config)


def test_moving_shapes_leave_a_preview_and_a_manifest(tmp_path, capsys):
    data.run(make_config(), tmp_path)
    assert "12 clips of moving shapes" in capsys.readouterr().err
    assert json.loads((tmp_path / "data" / "manifest.json").read_text())["settings"]["train_clips"] == 12
    assert np.asarray(Image.open(tmp_path / "data" / "preview.png")).std() > 10


def test_a_folder_is_prepared_and_what_is_skipped_is_said(tmp_path, capsys):
    videos = tmp_path / "videos"
    for i, frames in enumerate((10, 12, 3)):
        pictures.write_mp4(videos / f"{i}.mp4", np.full((frames, 32, 32, 3), 40 * i, np.uint8), 10)
    config = make_config(source="folder", path=str(videos))
    data.run(config, tmp_path / "run")
    said = capsys.readouterr().err
    assert "2 videos, 22 frames" in said and "1 skipped (first: 2.mp4, has 3 frames, but a clip reaches over 8)" in said
    manifest = json.loads((tmp_path / "run" / "data" / "manifest.json").read_text())
    assert manifest["skipped"] == [{"video": "2.mp4", "reason": "has 3 frames, but a clip reaches over 8"}]
    assert (tmp_path / "run" / "data" / "preview.png").exists()
    assert workdir.is_done(config, tmp_path / "run", "data")
