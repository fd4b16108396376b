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


@pytest.mark.parametrize("source", ["folder", "ucf101", "sky_timelapse", "taichi_hd"])
@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("", "is empty"),
        ("missing", "is not a folder"),
        ("empty", "holds no videos .no files"),
        ("texts", "holds no videos .2 files"),
    ],
)
def test_no_data_is_one_sentence_with_the_mend(
    tmp_path, make_config, monkeypatch, source, path, problem
):
    if source == "ucf101" and not path:
        pytest.skip("it can be fetched, see test_mirrors.py")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.md"):
        (tmp_path / "texts" / name).write_text("words\n")
    with pytest.raises(UserError, match=problem) as error:
        sources.prepare(
            make_config(source=source, **{folder_field(source): path}), tmp_path / "run"
        )
    mends = {
        "folder": "folder",
        "ucf101": "UCF101.rar",
        "sky_timelapse": "mdgan",
        "taichi_hd": "taichi-loading",
    }
    assert mends[source] in str(error.value) and str(error.value).count("\n") == 0


@pytest.mark.parametrize(
    ("train", "held_out"), [("train", "test"), ("Train", "val"), ("sky/sky_train", "sky/sky_test")]
)
def test_subfolders_train_and_test_split_the_videos(tmp_path, make_config, train, held_out):
    for name in (f"{train}/a.mp4", f"{held_out}/x/c.mp4", f"{held_out}/d/0001.jpg", "e.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    config = make_config(source="folder", path=str(tmp_path))
    assert {v.name: v.split for v in sources.list_videos(config.data, tmp_path)} == {
        f"{train}/a.mp4": "train", f"{held_out}/x/c.mp4": "validation", f"{held_out}/d": "validation", "e.mp4": "",
    }  # fmt: skip


@pytest.mark.parametrize("source", ["folder", "sky_timelapse"])
def test_official_frame_lists_are_used(tmp_path, make_config, source):
    (tmp_path / "train.txt").write_text("x/a_1.jpg\nx/a_2.jpg\n")
    (tmp_path / "test.txt").write_text("x/b_1.jpg\n")
    videos = sources.list_videos(
        make_config(source=source, **{folder_field(source): str(tmp_path)}).data, tmp_path
    )
    assert {v.name: (v.split, len(v.files)) for v in videos} == {
        "x/a_1": ("train", 2),
        "x/b_1": ("validation", 1),
    }


def ucf_folder(path):
    for name in (
        "Archery/v_Archery_g01_c01.avi",
        "Archery/v_Archery_g08_c02.avi",
        "Biking/v_Biking_g07_c03.avi",
    ):
        (path / "UCF-101" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "UCF-101" / name).touch()
    return path


def test_ucf101_uses_the_official_lists(tmp_path, make_config):
    lists = ucf_folder(tmp_path) / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "trainlist01.txt").write_text(
        "Archery/v_Archery_g08_c02.avi 1\nBiking/v_Biking_g07_c03.avi 2\n"
    )
    (lists / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
    videos = sources.list_videos(
        make_config(source="ucf101", source_dir=str(tmp_path)).data, tmp_path
    )
    assert [v.split for v in videos] == ["validation", "train", "train"]


def test_ucf101_without_lists_never_splits_a_group(tmp_path, make_config):
    videos = sources.list_videos(
        make_config(source="ucf101", source_dir=str(ucf_folder(tmp_path))).data, tmp_path
    )
    assert [v.split for v in videos] == ["validation", "train", "validation"]
