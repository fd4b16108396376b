"""Part of the fifth stage: measures a tokenizer alone, in a workdir in which no transformer is
trained yet.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from mebt_jax.config import Config
from mebt_jax.data import measured_clips
from mebt_jax.metrics import protocols, report, results, uncertainty
from mebt_jax.metrics.distances import codebook_usage as code_metrics
from mebt_jax.metrics.distances.frechet import frechet_distance
from mebt_jax.metrics.protocols import ClipForm, Protocol
from mebt_jax.metrics.results import Result, mean
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import pictures
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.runtime.mesh import on_host
from mebt_jax.stages.evaluation import feature_networks
from mebt_jax.stages.evaluation.evaluated_clips import (
    COMPARED,
    MeasuredClips,
    compiled_measure,
    measure_clips,
)
from mebt_jax.stages.prior import TokenizerOnMesh
from mebt_jax.stages.tokenizer import load_tokenizer

FOLDER = (
    "evaluate_tokenizer"  # not the stage's: its results are made anew when there is a transformer
)
WORST_CLIPS = 4  # of each split that are shown

Pair = tuple[np.ndarray, np.ndarray]  # real and reconstructed, uint8 [F, H, W, 3]


def run(config: Config, workdir: Path) -> None:
    """Writes metrics.json, report.html and worst_clips.png to <workdir>/evaluate_tokenizer, and
    prints a table.

    Raises:
        UserError: the mesh, the batch size or the checkpoint do not fit, or the protocol's weights
            are not here.
    """
    mesh = mesh_lib.make_mesh(config.mesh)
    size = config.evaluate.batch_size
    mesh_lib.check_batch_size(mesh, size, "config.evaluate.batch_size")
    protocol = protocols.for_data(
        config.evaluate.protocol, measured_clips.real_split(config, workdir), config.data.frames
    )
    network = {COMPARED: feature_networks.load(protocol, config)[COMPARED]}
    measured = compiled_measure(network, feature_networks.load_lpips(config), mesh)
    tokenizer = load_tokenizer(config, workdir, mesh)
    pixels = TokenizerOnMesh(tokenizer, mesh)

    found: dict[str, Result] = {}
    rows: list[report.Clips] = []
    for split in ("validation", "train"):
        clips = measured_clips.open_clips(config, workdir, split)
        name = measured_clips.SPLITS[split]
        worst = WorstClips(measured, mesh, min(config.evaluate.clips, len(clips)))
        through = measure_clips(pixels, worst, clips, config.evaluate.clips, size, 0)
        found |= numbers(name, through, clips.text, protocol, config)
        rows.append(
            report.Clips(
                f"Worst {name} clips",
                "With the lowest PSNR, each before its reconstruction.",
                worst.rows(),
            )
        )

    if jax.process_index() == 0:
        directory = workdir / FOLDER
        workdir_lib.write_json(
            directory / "metrics.json",
            results.to_json(found) | {"tokenizer": tokenizer.content_hash},
        )
        pictures.contact_sheet(
            directory / "worst_clips.png",
            [
                (f"{row.title.split()[1]} {label}", video)
                for row in rows
                for label, video in row.clips
            ],
        )
        report.write_page(
            directory / "report.html",
            f"Tokenizer of {config.name}",
            found,
            rows,
            {"Training": workdir / "tokenizer" / "curves.png"},
            frames_per_second=config.sample.frames_per_second,
        )
        print(results.table(found))
        print(
            f"  there is no transformer in {workdir}: the tokenizer alone is measured\n  "
            "everything on one page "
            f"{directory / 'report.html'}\n  the worst clips {directory / 'worst_clips.png'}"
        )


class WorstClips:
    """A measure of batches that passes on another's numbers and keeps the clips with the lowest
    PSNR.
    """

    def __init__(
        self, measured: Callable[..., dict[str, jax.Array]], mesh: jax.sharding.Mesh, distinct: int
    ):
        self._measured, self._mesh, self._distinct = measured, mesh, distinct
        self._done = 0
        self._kept: list[tuple[float, int, Pair]] = []  # (PSNR, number of the clip, pixels)

    def __call__(self, real: jax.Array, rebuilt: jax.Array) -> dict[str, jax.Array]:
        """Numbers [B] of uint8 clips [B, F, H, W, 3] and their reconstructions."""
        values = self._measured(real, rebuilt)
        scores = np.asarray(values["psnr"])[
            : max(self._distinct - self._done, 0)
        ]  # the rest only fill the last batch
        worst_kept = self._kept[-1][0] if len(self._kept) == WORST_CLIPS else np.inf
        if (scores < worst_kept).any():
            pixels = zip(on_host(real, self._mesh), on_host(rebuilt, self._mesh))
            rows = [
                (float(score), self._done + i, pair)
                for i, (score, pair) in enumerate(zip(scores, pixels))
            ]
            self._kept = sorted(self._kept + rows, key=lambda row: row[:2])[:WORST_CLIPS]
        self._done += len(values["psnr"])
        return values

    def rows(self) -> list[tuple[str, np.ndarray]]:
        """(caption, clip) with each real clip before its reconstruction, the worst first."""
        return [
            row
            for score, number, (real, rebuilt) in self._kept
            for row in ((f"{number} real", real), (f"{number} {score:.1f} dB", rebuilt))
        ]


def numbers(
    split: str, clips: MeasuredClips, text: str, protocol: Protocol, config: Config
) -> dict[str, Result]:
    """How near reconstructions come to the clips of a split, which `text` describes, and how the
    codes are used there.
    """
    found = reconstruction_numbers(split, clips)
    if len(clips.measures[f"{COMPARED}/real"]) > 1:
        form = ClipForm(config.data.frames, config.data.resolution, config.data.frame_stride)
        found["reconstruction_frechet"] = paired_frechet(split, clips, text, protocol, form)
    for name, (measure, biased, definition) in code_measures(config.tokenizer.codes, split).items():
        found[name] = Result(
            uncertainty.of_samples(measure, clips.codes, biased=biased), definition
        )
    return {f"{split}/{name}": result for name, result in found.items()}


def reconstruction_numbers(split: str, clips: MeasuredClips) -> dict[str, Result]:
    """Pixels, and LPIPS where it was measured."""
    definitions = {
        "psnr": f"dB, peak 1: mean over {split} clips of the PSNR of each whole clip, uint8 against uint8",
        "ssim": f"mean over {split} clips, their frames and channels; Gaussian window 11, sigma 1.5",
        "l1": f"mean absolute difference of values in [0, 1] over {split} clips",
        "lpips": f"mean over {split} clips and their frames; VGG16, pixels in [-1, 1]",
    }
    return {
        name: mean(clips.measures[name], text)
        for name, text in definitions.items()
        if name in clips.measures
    }


def paired_frechet(
    split: str, clips: MeasuredClips, text: str, protocol: Protocol, form: ClipForm
) -> Result:
    """Distance of features before and after the tokenizer, of the same clips, which `text`
    describes.
    """
    real, rebuilt = clips.measures[f"{COMPARED}/real"], clips.measures[f"{COMPARED}/rebuilt"]
    distance = uncertainty.of_samples(
        lambda after, before: frechet_distance(after, before, protocol.unbiased), rebuilt, real
    )
    return Result(
        dataclasses.replace(
            distance, real_floor=0.0, real_floor_count=len(real)
        ),  # clips that come out as they went in
        f"{protocol.measure} of {split} clips after the tokenizer and the same clips before it; "
        "on I3D features this is rFVD",
        protocol.describe(len(real), form, 1, f"{text}, each against itself"),
    )


def code_measures(
    vocabulary: int, split: str
) -> dict[str, tuple[Callable[[np.ndarray], float], bool | None, str]]:
    """By name: a number of codes [n, T, H, W], whether few clips bias it (None: unknown), and its
    definition.
    """

    def of_counts(measure: Callable[[np.ndarray], float]) -> Callable[[np.ndarray], float]:
        return lambda codes: measure(code_metrics.count_codes(codes, vocabulary))

    return {
        "usage": (
            of_counts(code_metrics.usage),
            None,
            f"share of the {vocabulary} codes that occur in the {split} clips",
        ),
        "dead_codes": (
            of_counts(code_metrics.dead),
            None,
            f"codes of {vocabulary} that never occur in the {split} clips",
        ),
        "perplexity": (
            of_counts(code_metrics.perplexity),
            True,
            f"exp(entropy) of the code frequencies of the {split} clips",
        ),
    }
