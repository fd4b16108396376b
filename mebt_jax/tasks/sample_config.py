"""Fields of `config.sample`: what is drawn, and what is written of it."""

import dataclasses

from mebt_jax.config_fields import field

TASKS = ("generate", "predict", "interpolate", "fill", "extend", "edit")
FORMATS = ("mp4", "gif", "npz", "frames")


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """The sample stage; how the method draws is `config.decoding`."""

    task: str = field(
        "generate",
        '"generate"; or with the videos of `input`: "predict" (after given_frames), "interpolate" '
        '(between given_frames and given_last_frames), "fill" (where `mask` is white), "edit" '
        '(draw `region` anew), "extend" (to `frames`, with input or without).',
        one_of=TASKS,
    )
    clips: int = field(
        16,
        "Clips to draw. A clip follows from its number and the seed, so any one can be drawn again "
        "alone; clip i takes the i-th video of `input`, and after the last the first again.",
        least=1,
    )
    first_clip: int = field(0, "Number of the first clip.")
    batch_size: int = field(4, "Clips at a time over all devices.", least=1)
    seed: int = field(0, "Root of the random draws of all clips.")
    input: str = field("", "A video file, a folder of frames, or a folder of videos.")
    given_frames: int = field(
        0,
        "Frames that are given at the start of a clip; whole tokens, so a multiple of "
        "tokenizer.compression[0].",
    )
    given_last_frames: int = field(0, "Frames that are given at the end of a clip, likewise.")
    mask: str = field(
        "",
        "For fill: an image, white where to fill in all frames, or a .npy of [F, H, W] or [H, W], "
        "not 0 where to fill.",
    )
    region: tuple[int, int, int, int, int, int] = field(
        (0, 0, 0, 0, 0, 0),
        "For edit: (first frame, end, top, bottom, left, right), the ends not included.",
    )
    frames: int = field(1024, "For extend: length of the video.")
    overlap_frames: int = field(
        0, "For extend: how many frames of a window the next one sees; 0 is half of the window."
    )
    formats: tuple[str, ...] = field(
        ("mp4", "gif"),
        'What is written of every clip: "mp4", "gif" (not by extend), "npz" (uint8 frames), '
        '"frames" (PNG files); tokens always.',
        one_of=FORMATS,
    )
    frames_per_second: float = field(20.0, "Of the written mp4 and GIF files.")
