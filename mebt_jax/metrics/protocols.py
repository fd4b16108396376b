"""Named protocols of measuring video generation. A number means nothing without its protocol: the
same model scores 168 or 478.

Each field is one choice in which published evaluations differ; docs/evaluation.md compares them and
names their sources.
"""

import dataclasses
import difflib
from typing import Self

from mebt_jax.config import Config
from mebt_jax.errors import UserError

WEIGHT_FREE = "weight-free"


@dataclasses.dataclass(frozen=True)
class ClipForm:
    """Properties of a clip that change a distance: its length, its size, and which frames of its
    video it takes.
    """

    frames: int
    side: int  # pixels of the square
    stride: int

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """The form of the clips of a run."""
        return cls(config.data.frames, config.data.resolution, config.data.frame_stride)

    def __str__(self) -> str:
        stride = f", one of every {self.stride}" if self.stride > 1 else ""
        return f"{self.frames} frames of {self.side}x{self.side}{stride}"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Everything but the clips themselves that decides a Frechet or kernel distance."""

    name: str
    # "i3d" (Kinetics-400 logits, mean over time) or "random" (metrics/networks/random_features.py).
    network: str
    # Of the BatchNorms: the TensorFlow original has 1e-3, the PyTorch port 1e-5.
    epsilon: float = 1e-3
    # To 224x224 without antialiasing: "half_pixel" (PyTorch) or "corner" (TensorFlow 1).
    resize: str = "half_pixel"
    unbiased: bool = True  # covariance over N - 1, or over N
    clips: int = 0  # N on each side; 0: as many as both sides have
    repeats: int = 1  # independent sets of N generated clips
    # Split of the real clips: "train", "validation", or "data": that of the papers on the data set.
    reals: str = "validation"
    # Every second real clip is mirrored, as if drawn from a set that holds each clip twice.
    mirrored: bool = False

    @property
    def needs_weights(self) -> bool:
        return self.network != "random"

    @property
    def measure(self) -> str:
        """Name of the distance; that of weight-free features is never FVD."""
        return "FVD" if self.network == "i3d" else "random-features Frechet distance (not FVD)"

    def describe(self, count: int, form: ClipForm, repeats: int, reals: str) -> str:
        """The string in every result file and plot: all choices, N, and which clips the real ones
        are.
        """
        if self.network == "i3d":
            features = (
                f"I3D K400 logits, BatchNorm eps {self.epsilon:g}, {self.resize} bilinear to 224"
            )
        else:
            features = "random 3D convolutions"
        covariance = "N-1" if self.unbiased else "N"
        return (
            f"{self.name}: {self.measure}, {features}, covariance over {covariance}, {form}, "
            f"N={count} a side, {repeats} repeat{'s' * (repeats != 1)}, reals: {reals}"
            f"{', half of them mirrored' * self.mirrored}"
        )


_MEBT = Protocol("mebt-paper", "i3d", epsilon=1e-5, clips=2048, repeats=10, reals="data")

PROTOCOLS: dict[str, Protocol] = {
    protocol.name: protocol
    for protocol in (
        # No download: for comparing runs on the same data at the same N, and for tests of
        # everything around the network.
        Protocol(WEIGHT_FREE, "random"),
        # FVD with as many clips as there are: the network of the original program, for first looks.
        # Compare at the same N only.
        Protocol("i3d", "i3d", resize="corner"),
        # google-research/frechet_video_distance with tf-hub deepmind/i3d-kinetics-400/1. It fixes
        # no N and no split.
        Protocol("tf-reference", "i3d", resize="corner", clips=2048, reals="train"),
        # The paper's scripts: 2,048 clips ten times at 16 frames, 512 five times at 128 (see
        # `for_data`); UCF-101 reals from train, Sky and Taichi from test (data/published_sets.py).
        _MEBT,
        Protocol("tats", "i3d", epsilon=1e-5, clips=2048, reals="train"),
        Protocol("styleganv", "i3d", unbiased=False, clips=2048, reals="train", mirrored=True),
        Protocol("magvit10k", "i3d", resize="corner", clips=10_000, repeats=4, reals="train"),
        Protocol("larp", "i3d", unbiased=False, clips=10_000, reals="train"),
        Protocol("cdfvd", "i3d", epsilon=1e-5, unbiased=False, clips=2048, reals="train"),
    )
}


def for_data(name: str, real_split: str, frames: int) -> Protocol:
    """The protocol of that name for clips of `frames` frames.

    Args:
        real_split: the split of the real clips in papers on this data set.

    Raises:
        UserError: there is none of that name.
    """
    if name not in PROTOCOLS:
        near = difflib.get_close_matches(name, PROTOCOLS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(PROTOCOLS)}."
        raise UserError(f"config.evaluate.protocol {name!r} is not known; {hint}")
    protocol = PROTOCOLS[name]
    if protocol.reals == "data":
        protocol = dataclasses.replace(protocol, reals=real_split)
    if name == _MEBT.name and frames >= 128:
        protocol = dataclasses.replace(protocol, clips=512, repeats=5)
    return protocol


def check_counts(protocol: Protocol, real: int, fake: int) -> None:
    """Raises UserError if a side has fewer clips than the protocol compares; clips are never
    repeated to fill up.
    """
    for side, count, how in (
        ("real", real, "give more"),
        ("generated", fake, "generate more with --config.sample.clips"),
    ):
        if count < protocol.clips:
            raise UserError(
                f"Protocol {protocol.name} compares {protocol.clips} clips a side, but there are "
                f"{count} {side} ones; {how}, or compare as many as there are with "
                f"--config.evaluate.protocol=i3d or {WEIGHT_FREE}."
            )
