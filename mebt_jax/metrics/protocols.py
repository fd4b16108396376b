"""Named ways to measure video generation. A number without its protocol means nothing: the same
model scores 168 or 478.

Each field is one choice in which published evaluations differ; docs/evaluation.md sets them side by
side with their sources.
"""

import dataclasses
import difflib

from mebt_jax.errors import UserError

WEIGHT_FREE = "weight-free"


@dataclasses.dataclass(frozen=True)
class ClipForm:
    """What a clip is, as far as it moves a distance: its length, its size, and which frames of its
    video it takes.
    """

    frames: int
    side: int  # pixels of the square
    stride: int

    def __str__(self) -> str:
        return f"{self.frames} frames of {self.side}x{self.side}{f', one of every {self.stride}' if self.stride > 1 else ''}"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """All that decides the value of a Frechet or kernel distance, but for the clips themselves."""

    name: str
    network: (
        str  # "i3d" (Kinetics-400 logits, mean over time) or "random" (metrics/random_features.py)
    )
    epsilon: float = (
        1e-3  # of the BatchNorms; the TensorFlow original has 1e-3, the PyTorch port 1e-5
    )
    resize: str = "half_pixel"  # to 224x224 without antialiasing: "half_pixel" (PyTorch) or "corner" (TensorFlow 1)
    unbiased: bool = True  # covariance over N - 1, or over N
    clips: int = 0  # N on each side; 0: as many as both sides have
    repeats: int = 1  # independent sets of N generated clips
    reals: str = "validation"  # split that the real clips are from: "train", "validation", or "data": as the set's papers do
    mirrored: bool = (
        False  # every second real clip is mirrored, as if drawn from a set that holds each twice
    )

    @property
    def needs_weights(self) -> bool:
        return self.network != "random"

    @property
    def measure(self) -> str:
        """Name of the distance; weight-free features never go by the name of FVD."""
        return "FVD" if self.network == "i3d" else "random-features Frechet distance (not FVD)"

    def describe(self, count: int, form: ClipForm, repeats: int, reals: str) -> str:
        """The string that stands in every result file and plot: what was done, with N, and which
        clips the reals are.
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
            f"N={count} a side, "
            f"{repeats} repeat{'s' * (repeats != 1)}, reals: "
            f"{reals}{', half of them mirrored' * self.mirrored}"
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
        # `for_data`); UCF-101 reals from train, Sky and Taichi from test (data/official.py).
        _MEBT,
        Protocol("tats", "i3d", epsilon=1e-5, clips=2048, reals="train"),
        Protocol("styleganv", "i3d", unbiased=False, clips=2048, reals="train", mirrored=True),
        Protocol("magvit10k", "i3d", resize="corner", clips=10_000, repeats=4, reals="train"),
        Protocol("larp", "i3d", unbiased=False, clips=10_000, reals="train"),
        Protocol("cdfvd", "i3d", epsilon=1e-5, unbiased=False, clips=2048, reals="train"),
    )
}


def for_data(name: str, real_split: str, frames: int) -> Protocol:
    """The protocol of that name for clips of `frames` frames of a set whose papers take their reals
    from `real_split`.

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
    """Raises UserError if a side has fewer clips than the protocol asks for; they are never
    repeated to fill up.
    """
    for side, count, how in (
        ("real", real, "give more"),
        ("generated", fake, "generate more with --config.sample.clips"),
    ):
        if count < protocol.clips:
            raise UserError(
                f"Protocol {protocol.name} compares {protocol.clips} clips a side, but there are "
                f"{count} {side} "
                f"ones; {how}, or compare as many as there are with --config.evaluate.protocol=i3d "
                "or "
                f"{WEIGHT_FREE}."
            )
