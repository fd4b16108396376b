from pathlib import Path

import cv2
import numpy as np
import pytest

from mebt_jax.data import video_files
from mebt_jax.data.video_files import BrokenVideo, Video
from mebt_jax.errors import UserError

COLOURS = {"R": (255, 0, 0), "G": (0, 255, 0), "B": (0, 0, 255), "W": (255, 255, 255)}


def corners(image: np.ndarray) -> str:
    """Names of the nearest of the four colours near the corners: upper left, upper right, lower
    left, lower right.
    """
    low, high = image.shape[0] // 5, image.shape[0] - image.shape[0] // 5
    pixels = [image[y, x].astype(int) for y in (low, high) for x in (low, high)]
    return "".join(
        min(COLOURS, key=lambda name: np.abs(pixel - COLOURS[name]).sum()) for pixel in pixels
    )


def write_images(folder: Path, names: list[str], frames: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, frame in zip(names, frames, strict=True):
        assert cv2.imwrite(str(folder / name), frame[..., ::-1])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi", ".mov", ".webm", ".gif"])
@pytest.mark.parametrize("size", [(48, 64), (66, 38)])
def test_every_format_decodes_upright_in_order_and_square(
    tmp_path, write_video, quarters, suffix, size
):
    path = write_video(tmp_path / f"clip{suffix}", quarters(12, *size), rate=10)
    (video,) = video_files.find_videos(tmp_path)
    assert video == Video(path.name, (path,))
    frames = np.stack(list(video_files.read_frames(video, 24)))
    assert frames.shape == (12, 24, 24, 3) and frames.dtype == np.uint8
    assert video_files.count_frames(video) == 12
    assert video_files.frames_per_second(video) == pytest.approx(10, rel=0.01)
    assert all(corners(frame) == "RGBW" for frame in frames)
    white = frames[:, 16:21, 16:21].mean((1, 2, 3))
    coarse = suffix == ".gif"  # rgb8 has eight levels of grey
    np.testing.assert_allclose(white, 255 - 4 * np.arange(12), atol=40 if coarse else 6)


@pytest.mark.parametrize(
    ("rotation", "expected"), [(None, "RGBW"), (90, "GWRB"), (180, "WBGR"), (-90, "BRWG")]
)
def test_rotation_metadata_turns_the_picture(tmp_path, write_video, quarters, rotation, expected):
    path = write_video(tmp_path / "phone.mp4", quarters(3, 48, 80), rotation=rotation)
    frames = list(video_files.read_frames(Video("phone", (path,)), 32))
    assert [corners(frame) for frame in frames] == [expected] * 3


def test_enlarges_what_is_smaller(tmp_path, write_video, quarters):
    path = write_video(tmp_path / "small.mp4", quarters(2, 16, 24))
    assert [frame.shape for frame in video_files.read_frames(Video("small", (path,)), 40)] == [
        (40, 40, 3)
    ] * 2


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_folder_of_images_is_one_video_in_natural_order(tmp_path, quarters, suffix):
    write_images(tmp_path / "a" / "walk", [f"frame{i}{suffix}" for i in range(12)], quarters(12))
    (video,) = video_files.find_videos(tmp_path)
    assert video.name == "a/walk"
    assert [file.stem for file in video.files] == [f"frame{i}" for i in range(12)]
    frames = np.stack(list(video_files.read_frames(video, 24)))
    np.testing.assert_allclose(frames[:, 18, 18].mean(-1), 255 - 4 * np.arange(12), atol=4)
    assert video_files.frames_per_second(video) == 0


def test_finds_videos_in_natural_order_and_leaves_the_rest(tmp_path):
    for name in ("b/clip10.MP4", "b/clip2.mkv", "a.webm", "notes.txt", ".hidden/x.mp4", "b/.y.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [video.name for video in video_files.find_videos(tmp_path)] == [
        "a.webm",
        "b/clip2.mkv",
        "b/clip10.MP4",
    ]


def test_frame_list_groups_by_video_and_breaks_at_gaps(tmp_path):
    lines = [f"x/sky_1_{i}.jpg" for i in (10, 9, 8, 2, 1)] + [
        "x/sky_2_0001.png",
        "/elsewhere/sky_1_11.jpg",
    ]
    (tmp_path / "train.txt").write_text("\n".join(lines) + "\n")
    videos = video_files.read_frame_list(tmp_path / "train.txt", "train")
    assert {video.name: [file.name for file in video.files] for video in videos} == {
        "/elsewhere/sky_1_11": ["sky_1_11.jpg"],
        "x/sky_1_1": ["sky_1_1.jpg", "sky_1_2.jpg"],
        "x/sky_1_8": ["sky_1_8.jpg", "sky_1_9.jpg", "sky_1_10.jpg"],
        "x/sky_2_1": ["sky_2_0001.png"],
    }
    assert {video.split for video in videos} == {"train"}
    assert videos[1].files[0] == tmp_path / "x/sky_1_1.jpg" and videos[0].files[0] == Path(
        "/elsewhere/sky_1_11.jpg"
    )


def test_a_line_that_is_no_frame_is_named(tmp_path):
    (tmp_path / "train.txt").write_text("a_1.jpg\nsome words\n")
    with pytest.raises(UserError, match="some words"):
        video_files.read_frame_list(tmp_path / "train.txt", "train")


@pytest.mark.parametrize(
    ("suffix", "options"), [(".mp4", {}), (".mp4", {"movflags": "faststart"}), (".avi", {})]
)
def test_a_file_that_was_cut_is_broken(tmp_path, write_video, suffix, options):
    noise = np.random.default_rng(0).integers(0, 256, (40, 48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / f"cut{suffix}", noise, options=options)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(BrokenVideo):
        video_files.count_frames(Video("cut", (path,)))


def test_text_in_a_video_file_is_broken(tmp_path):
    (tmp_path / "a.mp4").write_text("this is no video " * 100)
    with pytest.raises(BrokenVideo, match="cannot be decoded"):
        video_files.count_frames(Video("a", (tmp_path / "a.mp4",)))


def test_images_that_do_not_make_a_video_are_broken(tmp_path, quarters):
    write_images(tmp_path, ["0.png", "1.png"], quarters(2))
    (tmp_path / "2.png").write_bytes(b"no image")
    with pytest.raises(BrokenVideo, match="2.png is not a readable image"):
        video_files.count_frames(video_files.find_videos(tmp_path)[0])
    write_images(tmp_path, ["2.png"], quarters(1, 20, 20))
    with pytest.raises(BrokenVideo, match="another size"):
        video_files.count_frames(video_files.find_videos(tmp_path)[0])
    (tmp_path / "2.png").unlink()
    with pytest.raises(BrokenVideo, match="2.png"):
        video_files.count_frames(Video("gone", (tmp_path / "0.png", tmp_path / "2.png")))
