"""Part of the fifth stage: measures a tokenizer alone, in a workdir in which no prior is trained
yet.
"""

from pathlib import Path

import jax
import numpy as np

from mebt_jax.config import Config
from mebt_jax.data import measured_clips
from mebt_jax.metrics import protocols, report, results, uncertainty
from mebt_jax.metrics.measures import Measures, Values
from mebt_jax.metrics.protocols import ClipForm, Protocol
from mebt_jax.metrics.results import Result
from mebt_jax.runtime import host_arrays, pictures
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages.evaluation import feature_networks
from mebt_jax.stages.evaluation.evaluated_clips import Evaluator, Pair, RealClips
from mebt_jax.stages.evaluation.reconstruction_results import paired_frechet, token_numbers
from mebt_jax.tokenizer.trained_tokenizer import load_tokenizer

# Not the stage's own folder: its results are computed again when there is a prior.
FOLDER = "evaluate_tokenizer"
WORST_CLIPS = 4  # of each split that are shown


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
    measures = feature_networks.load_for_tokenizer(protocol, config)
    space = load_tokenizer(config, workdir, mesh)
    evaluator = Evaluator(space, measures, size)

    found: dict[str, Result] = {}
    rows: list[report.Clips] = []
    for split, name in measured_clips.SPLITS.items():
        worst = WorstClips(mesh)
        clips = evaluator.real_clips(
            measured_clips.open_clips(config, workdir, split),
            config.evaluate.clips,
            on_batch=worst.add,
        )
        found |= split_results(name, clips, measures, protocol, config)
        rows.append(
            report.Clips(
                f"Worst {name} clips",
                "With the lowest PSNR, each before its reconstruction.",
                worst.rows(),
            )
        )
    if jax.process_index() == 0:
        show(config, workdir, space.content_hash, found, rows)


def show(
    config: Config,
    workdir: Path,
    tokenizer_hash: str,
    found: dict[str, Result],
    rows: list[report.Clips],
) -> None:
    """Writes the files, and prints the table."""
    directory = workdir / FOLDER
    workdir_lib.write_json(
        directory / "metrics.json", results.to_json(found) | {"tokenizer": tokenizer_hash}
    )
    pictures.contact_sheet(
        directory / "worst_clips.png",
        [(f"{row.title.split()[1]} {label}", video) for row in rows for label, video in row.clips],
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
        f"  there is no prior in {workdir}: the tokenizer alone is measured\n  "
        f"everything on one page {directory / 'report.html'}\n  "
        f"the worst clips {directory / 'worst_clips.png'}"
    )


class WorstClips:
    """Keeps the pixels of the clips with the lowest PSNR, of batches that are added in order."""

    def __init__(self, mesh: jax.sharding.Mesh) -> None:
        self._mesh = mesh
        self._count = 0
        self._kept: list[tuple[float, int, Pair]] = []  # (PSNR, index of the clip, pixels)

    def add(self, values: Values, real: jax.Array, reconstructed: jax.Array) -> None:
        """Takes the "psnr" [b] of a batch, and its clips [B, F, H, W, 3] with B >= b."""
        scores = values["psnr"]
        highest_kept = self._kept[-1][0] if len(self._kept) == WORST_CLIPS else np.inf
        if (scores < highest_kept).any():
            pixels = (host_arrays.on_host(video, self._mesh) for video in (real, reconstructed))
            rows = [
                (float(score), self._count + i, pair)
                for i, (score, *pair) in enumerate(zip(scores, *pixels))
            ]
            self._kept = sorted(self._kept + rows, key=lambda row: row[:2])[:WORST_CLIPS]
        self._count += len(scores)

    def rows(self) -> list[tuple[str, np.ndarray]]:
        """(caption, clip) with each real clip before its reconstruction, the worst first."""
        return pictures.pair_rows(
            [pair for _, _, pair in self._kept],
            [(f"{index} real", f"{index} {score:.1f} dB") for score, index, _ in self._kept],
        )


def split_results(
    split: str, clips: RealClips, measures: Measures, protocol: Protocol, config: Config
) -> dict[str, Result]:
    """How close reconstructions are to the clips of a split, and how the codebook is used there."""
    found = results.clip_means(measures.pairs, clips.pairs, f"{split} clips")
    found |= results.clip_means(
        measures.reconstructed, clips.reconstructed, f"reconstructed {split} clips", clips.real
    )
    if len(clips.tokens) > 1:
        form = ClipForm.from_config(config)
        found["reconstruction_frechet"] = paired_frechet(split, clips, clips.text, protocol, form)
    for name, number in token_numbers(config.tokenizer.codebook_size, split).items():
        estimate = uncertainty.from_samples(number.measure, clips.tokens, biased=number.biased)
        found[name] = Result(estimate, number.definition)
    return {f"{split}/{name}": result for name, result in found.items()}
