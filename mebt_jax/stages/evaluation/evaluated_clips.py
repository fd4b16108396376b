"""The clips of an evaluation, held-out, training and generated ones, with what is measured of them.

One batch of clips is in memory at a time, beside the few that are shown.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from mebt_jax.data.measured_clips import ClipPerVideo
from mebt_jax.errors import UserError
from mebt_jax.metrics.measures import Measures, Values, batches, compiled, first_rows, join
from mebt_jax.runtime import host_arrays, telemetry
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages.prior import Batch, put_batch
from mebt_jax.tokenizer.latent_space import TokenSpace

Pair = tuple[np.ndarray, np.ndarray]  # real and reconstructed, uint8 [F, H, W, 3]


@dataclasses.dataclass(frozen=True)
class RealClips:
    """Real clips that went through the tokenizer. Host arrays, but for `batches`."""

    text: str  # which clips these are
    shown: list[Pair]  # the first few
    batches: list[Batch]  # of latents, split over the mesh; the last one is filled up
    tokens: np.ndarray  # int32 [n, T, H, W]
    # Values by the names of the `Measures` of the same kind.
    real: Values
    reconstructed: Values
    pairs: Values


@dataclasses.dataclass(frozen=True)
class GeneratedClips:
    tokens: np.ndarray  # int32 [n, T, H, W]
    shown: list[np.ndarray]  # the first few, uint8 [F, H, W, 3]
    values: Values


@dataclasses.dataclass(frozen=True)
class EvaluatedClips:
    """All clips of the evaluation of a run."""

    held_out: RealClips
    train: RealClips
    generated: GeneratedClips
    real_split: str  # where the real clips of the distances are from: "train" or "validation"

    @property
    def real(self) -> RealClips:
        """The real clips of the distances."""
        return self.train if self.real_split == "train" else self.held_out

    @property
    def other_real(self) -> RealClips:
        """Those of the other split, for what real clips reach against real ones."""
        return self.held_out if self.real_split == "train" else self.train


class Evaluator:
    """Sends clips through the tokenizer and the measures, in batches of one size."""

    def __init__(
        self,
        space: TokenSpace,
        measures: Measures,
        batch_size: int,
        conditions: Sequence[str] = (),
    ) -> None:
        """`conditions` are the names of those that the prior has."""
        self.space, self.mesh = space, space.mesh
        self.batch_size, self.conditions = batch_size, conditions
        self._measure_real = compiled(measures.real, self.mesh)
        self._measure_reconstructed = compiled(measures.reconstructed, self.mesh)
        self._measure_pairs = compiled(measures.pairs, self.mesh)
        self._measure_generated = compiled(measures.generated, self.mesh)

    def real_clips(
        self,
        clips: ClipPerVideo,
        count: int,
        *,
        num_shown: int = 0,
        on_batch: Callable[[Values, jax.Array, jax.Array], None] | None = None,
    ) -> RealClips:
        """Measures the first `count` clips, or as many as there are, each once.

        Args:
            num_shown: clips to return as pixels.
            on_batch: called for each batch with the values of its pairs [b, ...] and with the real
                and the reconstructed clips [B, F, H, W, 3], whose rows beyond b only fill up.
        """
        if len(clips) < count:
            telemetry.say(
                f"evaluate: {count} clips are asked for and {len(clips)} are there ({clips.text}); "
                "each is measured once"
            )
        count = min(count, len(clips))
        shown: list[Pair] = []
        encoded, values = [], []
        hosts_batches = clips.batches(self.batch_size, count, host_arrays.host_shard(self.mesh))
        for rows in self._progress(hosts_batches, count, f"{clips.text.split(',')[0]} clips"):
            real = host_arrays.put_batch(self.mesh, rows)["video"]  # [B, F, H, W, 3]
            encoded.append(put_batch(self.space, rows, self.conditions))
            reconstructed = self.space.decode(encoded[-1].latents)
            measured = {
                "real": self._measure_real(real),
                "reconstructed": self._measure_reconstructed(reconstructed),
                "pairs": self._measure_pairs(real, reconstructed),
            }
            filled = self.batch_size * len(values)
            values.append(first_rows(measured, min(self.batch_size, count - filled)))
            if len(shown) < num_shown:
                shown.extend(zip(self._on_host(real), self._on_host(reconstructed)))
            if on_batch is not None:
                on_batch(values[-1]["pairs"], real, reconstructed)
        tokens = join([self._on_host(batch.latents) for batch in encoded])[:count]
        return RealClips(
            clips.text, shown[: min(num_shown, count)], encoded, tokens, **join(values)
        )

    def generated_clips(self, tokens: np.ndarray, num_shown: int) -> GeneratedClips:
        """Decodes and measures tokens [n, T, H, W]; the first `num_shown` clips are returned as
        pixels.
        """
        shown: list[np.ndarray] = []
        values = []
        decoded = self._decoded(tokens)
        for video, count in self._progress(decoded, len(tokens), "generated clips"):
            values.append(first_rows(self._measure_generated(video), count))
            if len(shown) < num_shown:
                shown.extend(self._on_host(video)[:count])
        return GeneratedClips(tokens, shown[:num_shown], join(values))

    def decode(self, tokens: np.ndarray) -> list[np.ndarray]:
        """uint8 [F, H, W, 3] for each of a few tokens [n, T, H, W]."""
        videos = [self._on_host(video)[:count] for video, count in self._decoded(tokens)]
        return [clip for video in videos for clip in video]

    def _decoded(self, tokens: np.ndarray) -> Iterator[tuple[jax.Array, int]]:
        for batch, count in batches(tokens, self.batch_size):
            yield self.space.decode(*host_arrays.put_rows(self.mesh, batch)), count

    def _on_host(self, array: jax.Array) -> np.ndarray:
        return host_arrays.on_host(array, self.mesh)

    def _progress(self, batches: Iterable[Any], count: int, text: str) -> Iterable[Any]:
        return tqdm(
            batches,
            total=-(-count // self.batch_size),
            desc=f"evaluate: {text}",
            unit="batch",
            disable=jax.process_index() != 0,
            mininterval=5,
        )


def load_generated(directory: Path, tokenizer_hash: str) -> np.ndarray:
    """Tokens int32 [n, T, H, W] that the sample stage wrote.

    Raises:
        UserError: there are none, or they are of another tokenizer.
    """
    manifest = workdir_lib.read_json(directory / "manifest.json")
    if manifest["tokenizer"] != tokenizer_hash:
        raise UserError(
            f"The clips in {directory} were generated for tokenizer {manifest['tokenizer']}, but "
            f"the tokenizer here is {tokenizer_hash}; run --stage=sample again, which keeps them."
        )
    with np.load(directory / "tokens.npz") as tokens:
        return tokens["codes"]
