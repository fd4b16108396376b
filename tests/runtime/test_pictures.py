"""Pictures are read back from the files that were written."""

import av
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mebt_jax.errors import UserError
from mebt_jax.runtime import pictures


def moving_square(frames: int, height: int, width: int) -> np.ndarray:
    video = np.full((frames, height, width, 3), 40, np.uint8)
    for f in range(frames):
        video[f, 4:12, f : f + 8] = (220, 60, 30)
    return video


@pytest.mark.parametrize("height, width", [(32, 32), (33, 35), (129, 131)])
def test_mp4_is_even_visible_and_close_to_its_source(tmp_path, height, width):
    video = moving_square(12, height, width)
    pictures.write_mp4(tmp_path / "clips" / "a.mp4", video, 10.0)
    with av.open(str(tmp_path / "clips" / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == 10
        decoded = np.stack(
            [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        )
    factor = -(-128 // min(height, width))
    assert decoded.shape[0] == 12 and min(decoded.shape[1:3]) >= 128
    assert decoded.shape[1] % 2 == decoded.shape[2] % 2 == 0
    enlarged = video.repeat(factor, 1).repeat(factor, 2)
    difference = np.abs(decoded[:, : height * factor, : width * factor].astype(int) - enlarged)
    assert difference.mean() < 6


def test_gif_keeps_frames_and_speed(tmp_path):
    pictures.write_gif(tmp_path / "a.gif", moving_square(7, 32, 48), 20.0)
    with Image.open(tmp_path / "a.gif") as gif:
        assert (gif.n_frames, gif.size, gif.info["duration"], gif.info["loop"]) == (
            7,
            (192, 128),
            50,
            0,
        )


def test_contact_sheet_places_every_row_and_frame(tmp_path):
    rows = [("real 0", moving_square(8, 32, 32)), ("generated 0", moving_square(40, 32, 32))]
    pictures.contact_sheet(tmp_path / "sheet.png", rows)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (2 * 64 + 2, pictures.LABEL_WIDTH + 16 * 66 - 2, 3)
    # The last of the 16 shown frames is the last frame of the long clip.
    last = sheet[66:, -64:]
    np.testing.assert_array_equal(last, moving_square(40, 32, 32)[-1].repeat(2, 0).repeat(2, 1))
    assert (sheet[:64, : pictures.LABEL_WIDTH] < 128).any(), "the label is not there"


RECORDS = [{"step": s, "train/loss": 5.0 / (1 + s), "note": "text"} for s in range(3)] + [
    {"step": 2, "validation/loss": 1.0, "validation/loss ±": 0.5, "validation/psnr": 20.0},
    {"validation/psnr": 1.0},
]


def test_panels_hold_every_number_of_a_quantity_and_its_error():
    assert pictures.panels_of(RECORDS) == {
        "loss": {
            "train/loss": [(0, 5.0, 0), (1, 2.5, 0), (2, 5 / 3, 0)],
            "validation/loss": [(2, 1.0, 0.5)],
        },
        "psnr": {"validation/psnr": [(2, 20.0, 0)]},
    }


def test_curves_draw_every_line_of_every_panel(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    pictures.curves(tmp_path / "curves.png", RECORDS, title="tokenizer")
    (figure,) = figures
    assert [axes.get_title() for axes in figure.axes] == ["loss", "psnr"]
    loss, psnr = figure.axes
    drawn = [line.get_xydata().tolist() for line in loss.get_lines()]
    assert [[0, 5.0], [1, 2.5], [2, 5 / 3]] in drawn and [[2, 1.0]] in drawn
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["train", "validation"]
    assert [line.get_xydata().tolist() for line in psnr.get_lines()] == [[[2, 20.0]]]


def test_curves_are_written_as_one_picture_or_not_at_all(tmp_path):
    pictures.curves(tmp_path / "curves.png", RECORDS, title="tokenizer")
    assert Image.open(tmp_path / "curves.png").size == (840, 300)
    pictures.curves(tmp_path / "none.png", [{"step": 1}])
    assert not (tmp_path / "none.png").exists()


def test_the_second_clip_of_a_pair_is_below_the_first():
    first, second = (moving_square(2, 8, 8) for _ in range(2))
    pairs = [(first, second), (second, first)]
    labels, videos = zip(*pictures.pair_rows(pairs))
    assert labels == ("real 0", "reconstructed 0", "real 1", "reconstructed 1")
    assert [video is first for video in videos] == [True, False, False, True]
    captions = [("a", "b"), ("c", "d")]
    assert [label for label, _ in pictures.pair_rows(pairs, captions)] == ["a", "b", "c", "d"]


def test_float_video_is_refused_with_the_fix(tmp_path):
    with pytest.raises(UserError, match="to_uint8"):
        pictures.write_gif(tmp_path / "a.gif", np.zeros((2, 8, 8, 3), np.float32), 10.0)
