"""Videos, splits and classes of data sets as they lie on disk; the files are empty."""

import pytest

from mebt_jax.data import layouts
from mebt_jax.errors import UserError


def touch(folder, names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def write_list(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("train", "held_out"), [("train", "test"), ("Train", "val"), ("sky/sky_train", "sky/sky_test")]
)
def test_subfolders_train_and_test_split_the_videos(tmp_path, train, held_out):
    touch(tmp_path, [f"{train}/a.mp4", f"{held_out}/x/c.mp4", f"{held_out}/d/0001.jpg", "e.mp4"])
    assert {video.name: video.split for video in layouts.any_folder(tmp_path)} == {
        f"{train}/a.mp4": "train",
        f"{held_out}/x/c.mp4": "validation",
        f"{held_out}/d": "validation",
        "e.mp4": "",
    }


@pytest.mark.parametrize("layout", [layouts.any_folder, layouts.sky_timelapse])
def test_official_frame_lists_are_used(tmp_path, layout):
    write_list(tmp_path / "train.txt", ["x/a_1.jpg", "x/a_2.jpg"])
    write_list(tmp_path / "test.txt", ["x/b_1.jpg"])
    assert {video.name: (video.split, len(video.files)) for video in layout(tmp_path)} == {
        "x/a_1": ("train", 2),
        "x/b_1": ("validation", 1),
    }


def test_every_image_is_a_video_of_one_frame(tmp_path):
    touch(tmp_path, ["train/a.png", "train/x/b.jpg", "val/c.jpeg", "d.mp4", "e.txt"])
    videos = layouts.images(tmp_path)
    assert {video.name: (video.split, video.files) for video in videos} == {
        "train/a.png": ("train", (tmp_path / "train/a.png",)),
        "train/x/b.jpg": ("train", (tmp_path / "train/x/b.jpg",)),
        "val/c.jpeg": ("validation", (tmp_path / "val/c.jpeg",)),
    }


@pytest.fixture
def ucf_folder(tmp_path):
    """Groups 1 and 8 of one class, group 7 of another, whose name is written in other cases."""
    clips = ("Archery/v_Archery_g01_c01", "Archery/v_Archery_g08_c02", "Biking/v_biking_g07_c03")
    touch(tmp_path, [f"UCF-101/{clip}.avi" for clip in clips])
    return tmp_path


def test_ucf101_uses_the_official_lists(ucf_folder):
    lists = ucf_folder / "ucfTrainTestlist"
    train = ["Archery/v_Archery_g08_c02.avi 1", "Biking/v_Biking_g07_c03.avi 2"]
    write_list(lists / "trainlist01.txt", train)
    write_list(lists / "testlist01.txt", ["Archery/v_Archery_g01_c01.avi"])
    write_list(lists / "classInd.txt", ["2 Biking", "1 Archery"])
    videos = layouts.ucf101(ucf_folder)
    assert [video.split for video in videos] == ["validation", "train", "train"]
    assert [video.label for video in videos] == ["Archery", "Archery", "Biking"]
    assert layouts.ucf101_classes(ucf_folder) == ["Archery", "Biking"]


def test_ucf101_without_lists_never_splits_a_group(ucf_folder):
    videos = layouts.ucf101(ucf_folder)
    assert [video.split for video in videos] == ["validation", "train", "validation"]
    assert layouts.ucf101_classes(ucf_folder) == []


def test_taichi_is_split_by_its_folders(tmp_path):
    chunks = ("aDyyTMUBoLE#000168#000352.mp4", "aDyyTMUBoLE#000500#000640.mp4/0000000.png")
    touch(tmp_path, [f"train/{chunk}" for chunk in chunks])
    touch(tmp_path, ["test/Zt4gsa#1#000002#000130.mp4"])
    splits = [video.split for video in layouts.taichi_hd(tmp_path)]
    assert splits == ["validation", "train", "train"]


def test_taichi_is_split_by_its_table(tmp_path):
    names = ("aDyyTMUBoLE#000168#000352", "Zt4gsa#000002#000130", "a#b#000002#000130", "no#1#2")
    touch(tmp_path, [f"{name}.mp4" for name in names])
    rows = ["video_id,start,partition", "aDyyTMUBoLE,168,train", "Zt4gsa,2,test", "b#a,2,test"]
    write_list(tmp_path / "taichi-metadata.csv", rows)
    assert {video.name[:4]: video.split for video in layouts.taichi_hd(tmp_path)} == {
        "aDyy": "train",
        "Zt4g": "validation",
        "a#b#": "validation",  # the loader writes the parts of a name in reverse
        "no#1": "",
    }
    write_list(tmp_path / "taichi-metadata.csv", ["id,part", "a,train"])
    with pytest.raises(UserError, match="no columns video_id and partition"):
        layouts.taichi_hd(tmp_path)
