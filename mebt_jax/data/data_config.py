"""The fields of `config.data`, part of config.py, with what must hold among them; configs/base.py
explains each.
"""

import dataclasses

from mebt_jax.errors import UserError

DATA_SOURCES = ("moving_shapes", "folder", "ucf101", "sky_timelapse", "taichi_hd", "images")
OWN_FILES = ("folder", "images")  # the others are built in or published


@dataclasses.dataclass(frozen=True)
class MixturePart:
    source: str
    path: str
    weight: float


def folder_field(source: str) -> str:
    """The field of config.data that names the folder of a source: of one's own files, or of a
    published set.
    """
    return "path" if source in OWN_FILES else "source_dir"


@dataclasses.dataclass(frozen=True)
class DataConfig:
    source: str
    path: str
    source_dir: str
    mixture: tuple[MixturePart, ...]
    prepared_dir: str
    resolution: int
    frames: int
    frame_stride: int
    validation_fraction: float
    train_clips: int
    validation_clips: int
    jpeg_quality: int
    record_frames: int
    workers: int
    tokens: bool
    seed: int

    @property
    def parts(self) -> tuple[MixturePart, ...]:
        """The sources of the mixture, or the one source."""
        return self.mixture or (
            MixturePart(self.source, getattr(self, folder_field(self.source)), weight=1.0),
        )


def check_data(data: DataConfig, one_frame: bool) -> None:
    """Raises UserError if the folders or the sources do not go together; `one_frame`: the tokenizer
    takes clips of one frame.
    """
    used = () if data.mixture or data.source == "moving_shapes" else (folder_field(data.source),)
    for name in ("path", "source_dir"):
        if getattr(data, name) and name not in used:
            mend = f"use config.data.{used[0]}" if used else "leave it empty"
            sources = "a mixture" if data.mixture else f"the source {data.source!r}"
            raise UserError(
                f"config.data.{name} is {getattr(data, name)!r}, which {sources} does not read; "
                f"{mend}."
            )
    for i, part in enumerate(data.mixture):
        if not 0 < part.weight < float("inf"):
            raise UserError(
                f"config.data.mixture[{i}].weight is {part.weight}, but must be a number above 0; "
                "leave the source out "
                f"to use none of it."
            )
    images = [part.source == "images" for part in data.parts]
    if any(images) and data.frames > 1:
        if all(images):
            raise UserError(
                f"config.data.frames is {data.frames}, but images are clips of one frame; add a "
                "source of videos to "
                f"config.data.mixture, or set config.data.frames to 1."
            )
        if not one_frame:
            raise UserError(
                "config.data.mixture has images, clips of one frame, which the tokenizer cannot "
                "take; set "
                "config.tokenizer.causal to True, or the first of config.tokenizer.compression to "
                "1."
            )
