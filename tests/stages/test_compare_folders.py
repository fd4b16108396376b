"""Folder against folder: what is measured, what is left out and said, and what is refused."""

import base64
import io
import json
import re
from html.parser import HTMLParser

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mebt_jax.config import from_config_dict
from mebt_jax.data.worlds.moving_shapes import MovingShapes
from mebt_jax.errors import UserError
from mebt_jax.metrics import clip_numbers, measures
from mebt_jax.metrics.networks import random_features
from mebt_jax.runtime import pictures
from mebt_jax.stages.evaluation import compare_folders, folder_clips
from tests.tiny_config import tiny_config

REALS, FAKES = MovingShapes(14, 12, 32, seed=0), MovingShapes(6, 12, 32, seed=1)


def write_frames(folder, name, video):
    (folder / name).mkdir(parents=True)
    for f, frame in enumerate(video):
        Image.fromarray(frame).save(folder / name / f"{f:03d}.png")


def config_of(real, fake, **overrides):
    settings = {"evaluate__window": 4, "evaluate__window_every": 4} | overrides
    return from_config_dict(
        tiny_config(evaluate__real=str(real), evaluate__fake=str(fake), **settings)
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of frames: 14 real clips; 6 generated ones, one too short and one of another size
    beside them.
    """
    path = tmp_path_factory.mktemp("folders")
    for i in range(len(REALS)):
        write_frames(path / "real", f"class{i % 2}/clip{i}", REALS[i]["video"])
    for i in range(len(FAKES)):
        write_frames(path / "fake", f"clip{i}", FAKES[i]["video"][:8])
    write_frames(path / "fake", "short", FAKES[0]["video"][:5])
    write_frames(path / "fake", "large", np.zeros((8, 48, 48, 3), np.uint8))
    return path


@pytest.fixture(scope="module")
def compared(folders, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("compared")
    compare_folders.run(config_of(folders / "real", folders / "fake"), workdir)
    return workdir / "compare"


def test_numbers_are_of_every_usable_clip_once_and_the_rest_is_listed(compared, folders):
    metrics = json.loads((compared / "metrics.json").read_text())
    distance = metrics["generated/frechet"]
    assert distance["count"] == 6 and distance["real_floor_count"] == 6
    assert (
        f"reals: {folders / 'real'}, one clip per video at a random start, stored as png"
        in distance["protocol"]
    )
    assert (
        "8 frames of 32x32, N=6" in distance["protocol"]
        and "generated clips stored as png" in distance["protocol"]
    )
    assert (
        metrics["generated/coverage"]["real_floor_count"] == 6
        and 0 <= metrics["generated/coverage"]["real_floor"] <= 1
    )
    assert {(entry["video"], entry["reason"]) for entry in metrics["skipped"]["generated"]} == {
        ("short", "is too short for 8 frames at stride 1"),
        ("large", "is 48x48, the others 32x32"),
    }
    fakes = np.stack([FAKES[i]["video"][:8] for i in range(6)])
    with np.load(
        next(path for path in (compared / "features").iterdir() if len(np.load(path)["used"]) == 6)
    ) as arrays:
        order = [int(re.search(r"\d+", name)[0]) for name in arrays["used"]]
        np.testing.assert_allclose(
            arrays["frechet"], random_features.random_features(fakes[order]), rtol=1e-4, atol=1e-5
        )
        assert arrays["windows"].shape == (6, 2, 224)
    assert (
        metrics["over_time"]["first_frame"] == [0, 4]
        and metrics["over_time"]["real_floor_count"] == 6
    )
    assert min(metrics["over_time"]["standard_error"] + metrics["over_time"]["real_floor"]) > 0


def test_a_folder_against_itself_is_at_zero_and_features_are_not_computed_again(
    folders, tmp_path, monkeypatch
):
    config = config_of(folders / "fake", folders / "fake", data__frames=8)
    compare_folders.run(config, tmp_path)
    first = json.loads((tmp_path / "compare" / "metrics.json").read_text())
    assert first["generated/frechet"]["value"] == pytest.approx(0.0, abs=1e-6)
    monkeypatch.setattr(measures, "measure_clips", None)
    compare_folders.run(config, tmp_path)
    assert json.loads((tmp_path / "compare" / "metrics.json").read_text()) == first


def test_a_plain_number_of_clips_is_one_entry_of_a_table(folders, tmp_path, monkeypatch):
    change = clip_numbers.clip_number(
        "change", lambda x: jnp.abs(x[:, 1:] - x[:, :-1]).mean(axis=(1, 2, 3, 4)), "of {clips}"
    )
    monkeypatch.setitem(clip_numbers.CLIP_NUMBERS, "change", change)
    compare_folders.run(config_of(folders / "real", folders / "fake"), tmp_path)
    entry = json.loads((tmp_path / "compare" / "metrics.json").read_text())["generated/change"]
    fakes = np.stack([FAKES[i]["video"][:8] for i in range(len(FAKES))]).astype(np.float32) / 255
    assert entry["value"] == pytest.approx(np.abs(np.diff(fakes, axis=1)).mean(), rel=1e-4)
    assert entry["count"] == 6 and entry["real_floor_count"] == 14
    assert entry["definition"] == "of generated clips"


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.sources, self.text, self.links = [], "", []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.sources += [attrs["src"]] if "src" in attrs else []
        self.links += [attrs[name] for name in ("href", "srcset") if name in attrs]

    def handle_data(self, data):
        self.text += data


def test_page_holds_all_that_it_shows(compared):
    page = Page()
    page.feed((compared / "report.html").read_text())
    kinds = [re.match(r"data:image/(\w+);base64,(.*)", source).groups() for source in page.sources]
    assert not page.links and [kind for kind, _ in kinds] == ["gif"] * 6 + ["png"] * 2
    for kind, content in kinds:
        with Image.open(io.BytesIO(base64.b64decode(content))) as image:
            assert image.format == kind.upper() and getattr(image, "n_frames", 1) == (
                8 if kind == "gif" else 1
            )
    for text in (
        "generated/frechet",
        "not FVD",
        "best: clip",
        "worst: clip",
        "its nearest real clip",
        "2 left out",
    ):
        assert text in page.text


def test_real_clips_start_anywhere_generated_ones_at_the_first_frame(folders):
    rule = folder_clips.ClipRule(8, 1, (32, 32), 32, "random")
    videos = folder_clips.find(str(folders / "real"), "real")
    starts = []
    for video in videos:
        clip, whole = (
            folder_clips.read_clip(video, rule),
            REALS[int(re.search(r"clip(\d+)", video.name)[1])]["video"],
        )
        np.testing.assert_array_equal(clip, folder_clips.read_clip(video, rule))
        starts += [s for s in range(5) if (whole[s : s + 8] == clip).all()]
    assert len(starts) >= 14 and len(set(starts)) > 2


def test_what_cannot_be_compared_is_refused(folders, tmp_path):
    real, fake = folders / "real", folders / "fake"
    write_frames(tmp_path / "large", "a", np.zeros((8, 48, 48, 3), np.uint8))
    write_frames(tmp_path / "large", "b", np.zeros((8, 48, 48, 3), np.uint8))
    (tmp_path / "empty").mkdir()
    for name, rate in (("slow", 8.0), ("fast", 25.0)):
        for i in range(2):
            pictures.write_mp4(
                tmp_path / name / f"{i}.mp4", np.zeros((8, 32, 32, 3), np.uint8), rate
            )
    cases = (
        ((real, ""), {}, "config.evaluate.fake is empty.*both --config.evaluate.real=DIR"),
        ((tmp_path / "no", fake), {}, "no' is not a folder"),
        ((real, tmp_path / "empty"), {}, "holds no videos"),
        (
            (real, tmp_path / "large"),
            {},
            "Real clips are 32x32 and generated ones 48x48.*--config.evaluate.resolution=32",
        ),
        (
            (tmp_path / "slow", tmp_path / "fast"),
            {},
            "8 frames per second and generated ones at 25.*any_frame_rate=True",
        ),
        (
            (real, fake),
            {"data__frames": 40},
            "Only 0 of the real videos can be used.*too short for 40 frames.*data.frames",
        ),
        (
            (real, fake),
            {"evaluate__protocol": "tats"},
            "compares 2048 clips a side, but there are 14 real ones",
        ),
        ((real, fake), {"evaluate__protocol": "i3d"}, "weights are not here"),
        (
            (real, fake),
            {"evaluate__protocol": "fvd"},
            "config.evaluate.protocol 'fvd' is not known",
        ),
    )
    for (one, other), overrides, message in cases:
        with pytest.raises(UserError, match=message):
            compare_folders.run(config_of(one, other, **overrides), tmp_path / "out")


def test_compression_of_one_side_alone_is_told(folders, tmp_path, capsys):
    for i in range(3):
        pictures.write_mp4(
            tmp_path / "mp4" / f"{i}.mp4", REALS[i]["video"].repeat(4, axis=1).repeat(4, axis=2), 8
        )
    config = config_of(folders / "real", tmp_path / "mp4", evaluate__resolution=16, data__frames=4)
    compare_folders.run(config, tmp_path / "out")
    told = "Real clips are stored as png and generated ones as mp4"
    assert (
        told in capsys.readouterr().err
        and told in (tmp_path / "out" / "compare" / "report.html").read_text()
    )


def test_clips_brought_to_one_size_are_all_compared_and_the_table_is_printed(
    folders, tmp_path, capsys
):
    compare_folders.run(
        config_of(folders / "real", folders / "fake", evaluate__resolution=16), tmp_path
    )
    printed = capsys.readouterr().out
    assert "generated/frechet" in printed and "report.html" in printed
    assert (
        json.loads((tmp_path / "compare" / "metrics.json").read_text())["generated/frechet"][
            "count"
        ]
        == 7
    )
