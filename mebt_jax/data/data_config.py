"""Fields of `config.data`, with what must hold among them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mebt_jax.config_fields import field
from mebt_jax.errors import UserError

if TYPE_CHECKING:
    from mebt_jax.config import Config

# Source -> the field of config.data that names its folder: of the user's own files, of a published
# set, or none where the clips are drawn.
SOURCE_FOLDERS = {
    "moving_shapes": "",
    "folder": "path",
    "ucf101": "source_dir",
    "sky_timelapse": "source_dir",
    "taichi_hd": "source_dir",
    "images": "path",
}


@dataclasses.dataclass(frozen=True)
class MixturePart:
    """One source of several."""

    source: str = field(dataclasses.MISSING, "As data.source.", one_of=SOURCE_FOLDERS)
    path: str = field(dataclasses.MISSING, "Its folder.")
    weight: float = field(dataclasses.MISSING, "Clips come from it in proportion to the weight.")


def folder_field(source: str) -> str:
    """The field of config.data that names the folder of a source."""
    return SOURCE_FOLDERS[source]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where clips come from, and their size."""

    source: str = field(
        "moving_shapes",
        '"moving_shapes" (built in), "folder" (any videos or frames), "ucf101", "sky_timelapse", '
        '"taichi_hd", or "images", each of them a clip of one frame.',
        one_of=SOURCE_FOLDERS,
    )
    path: str = field(
        "",
        'Folder of your own videos, frame folders, frame lists ("folder") or images ("images").',
    )
    source_dir: str = field(
        "",
        'Folder where the files of a published set ("ucf101", "sky_timelapse", "taichi_hd") are, '
        "packed or not.",
    )
    mixture: tuple[MixturePart, ...] = field(
        (),
        'Several sources instead of that one: ({"source": "ucf101", "path": "DIR", "weight": '
        "3.0}, {...}, ...). Clips come from each in proportion to the weights; images, beside "
        "videos, train the tokenizer alone, in batches of their own (docs/data.md).",
    )
    prepared_dir: str = field(
        "",
        'Where the prepared records go; "" is <workdir>/data. Point several runs at one folder to '
        "prepare once.",
        no_result=True,
    )
    resolution: int = field(
        128, "Pixels of the square frame: shorter side resized, centre cropped (paper: 128)."
    )
    frames: int = field(128, "Frames per training clip (paper: 16 or 128).")
    frame_stride: int = field(
        1, "Every n-th frame of the video is used (paper: 1; Taichi at 16 frames: 4).", least=1
    )
    validation_fraction: float = field(
        0.1,
        "Share of the videos held out where the data set has no split of its own; a video is "
        "never in both.",
    )
    train_clips: int = field(4096, "Number of generated clips for moving_shapes.", least=1)
    validation_clips: int = field(
        256, "Number of generated clips held out for moving_shapes.", least=1
    )
    jpeg_quality: int = field(
        95,
        "JPEG quality of prepared frames, 1 to 100; 95 costs 0.4 dB against lossless. 0 keeps the "
        "pixels as they are, at about ten times the size.",
    )
    record_frames: int = field(
        256,
        "Longest run of frames in one prepared record; longer videos become overlapping records.",
        least=1,
    )
    workers: int = field(
        0,
        "Worker processes that decode; 0 decodes in threads of the main process.",
        no_result=True,
    )
    tokens: bool = field(
        False,
        "Encode the set once with the tokenizer, and train the prior from the stored tokens "
        "(docs/data.md).",
        no_result=True,
    )
    seed: int = field(
        0,
        "Order of the clips, position of the crops, and the generated shapes all follow from this.",
    )

    @property
    def parts(self) -> tuple[MixturePart, ...]:
        """The sources of the mixture, or the one source."""
        folder = folder_field(self.source)
        return self.mixture or (
            MixturePart(self.source, getattr(self, folder) if folder else "", weight=1.0),
        )

    def check(self, config: Config, path: str) -> None:
        """Raises UserError if the folders or the sources do not go together."""
        used = folder_field(self.source) if not self.mixture else ""
        for name in ("path", "source_dir"):
            if getattr(self, name) and name != used:
                fix = f"use config.data.{used}" if used else "leave it empty"
                sources = "a mixture" if self.mixture else f"the source {self.source!r}"
                raise UserError(
                    f"config.data.{name} is {getattr(self, name)!r}, which {sources} does not "
                    f"read; {fix}."
                )
        for i, part in enumerate(self.mixture):
            if not 0 < part.weight < float("inf"):
                raise UserError(
                    f"config.data.mixture[{i}].weight is {part.weight}, but must be a number "
                    "above 0; leave the source out to use none of it."
                )
        self._check_images(
            one_frame=config.tokenizer.causal or config.tokenizer.compression[0] == 1
        )
        if not 0 <= self.jpeg_quality <= 100:
            raise UserError(
                f"config.data.jpeg_quality is {self.jpeg_quality}, but must lie between 1 and "
                "100, or be 0 to keep the pixels as they are."
            )

    def _check_images(self, one_frame: bool) -> None:
        """`one_frame`: the tokenizer takes clips of one frame."""
        images = [part.source == "images" for part in self.parts]
        if not any(images) or self.frames == 1:
            return
        if all(images):
            raise UserError(
                f"config.data.frames is {self.frames}, but images are clips of one frame; add a "
                "source of videos to config.data.mixture, or set config.data.frames to 1."
            )
        if not one_frame:
            raise UserError(
                "config.data.mixture has images, clips of one frame, which the tokenizer cannot "
                "take; set config.tokenizer.causal to True, or the first of "
                "config.tokenizer.compression to 1."
            )
