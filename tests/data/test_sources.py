import pytest

from mebt_jax.data import preparation, sources
from mebt_jax.data.data_config import folder_field
from mebt_jax.errors import UserError


@pytest.fixture
def videos(tmp_path, write_video, quarters):
    folder = tmp_path / "videos"
    for i in range(3):
        write_video(folder / f"{i}.mp4", quarters(10 + i))
    return folder


def test_preparing_again_does_nothing(tmp_path, make_config, videos, monkeypatch):
    config = make_config(source="folder", path=str(videos))
    sources.prepare(config, tmp_path / "run")
    opened = sources.open_sources(config, tmp_path / "run")
    assert (len(opened.train), len(opened.validation)) == (2, 1)

    def fail(*_):
        raise AssertionError("prepared again")

    monkeypatch.setattr(preparation, "write_records", fail)
    sources.prepare(config, tmp_path / "run")
    videos.rename(tmp_path / "gone")  # training needs the records alone
    sources.prepare(config, tmp_path / "run")
    assert sources.open_sources(config, tmp_path / "run").content_hash == opened.content_hash


def test_other_settings_and_other_files_are_prepared_anew(
    tmp_path, make_config, videos, write_video, quarters, capsys
):
    prepared = str(tmp_path / "prepared")
    config = make_config(source="folder", path=str(videos), prepared_dir=prepared)
    larger = make_config(source="folder", path=str(videos), prepared_dir=prepared, resolution=24)
    for each in (config, larger):
        sources.prepare(each, tmp_path / "run")
    first = sources.open_sources(config, tmp_path / "run")
    assert first.content_hash != sources.open_sources(larger, tmp_path / "run").content_hash
    assert len(list((tmp_path / "prepared").iterdir())) == 2

    write_video(videos / "3.mp4", quarters(10))
    sources.prepare(config, tmp_path / "run")
    assert "changed" in capsys.readouterr().err
    second = sources.open_sources(config, tmp_path / "run")
    assert (
        len(second.train) + len(second.validation) == 4
        and second.content_hash != first.content_hash
    )
    assert len(list((tmp_path / "prepared").iterdir())) == 2


def test_opening_what_was_not_prepared_names_the_stage(tmp_path, make_config, videos):
    with pytest.raises(UserError, match="--stage=data"):
        sources.open_sources(make_config(source="folder", path=str(videos)), tmp_path)


def test_moving_shapes_are_disjoint_and_stay_with_more_clips(tmp_path, make_config):
    few, many = (sources.open_sources(make_config(train_clips=n), tmp_path) for n in (10, 20))
    assert (few.validation[3]["video"] == many.validation[3]["video"]).all()
    assert (few.train[3]["video"] != few.validation[3]["video"]).any()
    assert few.content_hash != many.content_hash
    sources.prepare(make_config(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("source", "path", "problem"),
    [
        (source, path, problem)
        for source in ("folder", "ucf101", "sky_timelapse", "taichi_hd")
        for path, problem in (
            ("", "is empty"),
            ("missing", "is not a folder"),
            ("empty", "holds no videos .no files"),
            ("texts", "holds no videos .2 files"),
        )
        if source != "ucf101" or path  # UCF-101 can be fetched, see test_mirrors.py
    ],
)
def test_no_data_is_one_sentence_with_the_fix(
    tmp_path, make_config, monkeypatch, source, path, problem
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.md"):
        (tmp_path / "texts" / name).write_text("words\n")
    with pytest.raises(UserError, match=problem) as error:
        sources.prepare(
            make_config(source=source, **{folder_field(source): path}), tmp_path / "run"
        )
    fixes = {
        "folder": "folder",
        "ucf101": "UCF101.rar",
        "sky_timelapse": "mdgan",
        "taichi_hd": "taichi-loading",
    }
    assert fixes[source] in str(error.value) and str(error.value).count("\n") == 0
