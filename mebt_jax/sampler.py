"""A trained tokenizer and prior ready to draw clips: every task is one call.

    sampler = mebt_jax.Sampler.load("runs/demo")
    drawn = sampler.generate(4, seed=1)
    drawn = sampler.predict("video.mp4", frames=8)

The sample stage is the program around it.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mebt_jax import config as config_lib
from mebt_jax.config import Config
from mebt_jax.data import inputs
from mebt_jax.errors import UserError
from mebt_jax.methods.interface import Sampled
from mebt_jax.methods.sampling_keys import clip_keys_program, window_keys_program
from mebt_jax.methods.trained_prior import TrainedPrior, load_prior
from mebt_jax.runtime import device_memory, host_arrays, telemetry
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.tasks import masks
from mebt_jax.tasks.masks import Task
from mebt_jax.tokenizer.latent_space import LatentSpace
from mebt_jax.tokenizer.trained_tokenizer import load_tokenizer

Videos = str | Path | np.ndarray | Sequence[np.ndarray]
Condition = Mapping[str, np.ndarray]  # rows [n, ...], one per clip


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Clips on the host; the i-th was drawn with the clip index `indices[i]`."""

    indices: list[int]
    video: np.ndarray  # uint8 [n, F, H, W, 3], all of it decoded, what was given too
    latents: np.ndarray  # [n, T, H, W, ...], int32 tokens of a VQ tokenizer
    # int32 [n, T, H, W], the pass that committed each token, -1 where given; or None
    committed_at: np.ndarray | None


class Sampler:
    """Loaded weights, the mesh they lie on, and a config whose settings hold for every call."""

    def __init__(self, config: Config, space: LatentSpace, prior: TrainedPrior) -> None:
        """Raises UserError if the batch size does not fit the mesh."""
        self.config, self.space, self.prior = config, space, prior
        self.mesh: Mesh = space.mesh
        mesh_lib.check_batch_size(self.mesh, config.sample.batch_size, "config.sample.batch_size")

    @classmethod
    def load(cls, workdir: str | Path, **settings: Any) -> "Sampler":
        """The models of a work directory.

        Args:
            workdir: of a run.
            settings: fields of `config.sample` and `config.decoding` to change, such as
                batch_size=2 or draft_steps=8.

        Raises:
            UserError: there is no trained model, or a setting is unknown.
        """
        path = Path(workdir) / "config.json"
        if not path.exists():
            raise UserError(f"{workdir} is no work directory of a run: it has no config.json.")
        config = config_lib.from_saved(workdir_lib.read_json(path), path)
        return cls.from_workdir(config_lib.with_settings(config, settings), Path(workdir))

    @classmethod
    def from_workdir(cls, config: Config, workdir: Path) -> "Sampler":
        """The models of a work directory, with a config of one's own."""
        space = load_tokenizer(config, workdir, mesh_lib.make_mesh(config.mesh))
        prior = load_prior(config, workdir, space.mesh, space.content_hash)
        prior.method.check_mesh(space.mesh)
        return cls(config, space, prior)

    def changed(self, **settings: Any) -> "Sampler":
        """The same models with other fields of `config.sample` and `config.decoding`.

        A preset is put in before, so a changed field counts beside it.
        """
        config = self.prior.method.resolved(self.config)
        config = config_lib.with_settings(config, settings)
        method = type(self.prior.method).from_config(config)
        return Sampler(config, self.space, dataclasses.replace(self.prior, method=method))

    # ---- tasks -----------------------------------------------------------------------------------

    def generate(self, clips: int = 1, **which: Any) -> Drawn:
        """Clips from nothing.

        Args:
            clips: how many.
            which: here and below: seed; first, the index of the first clip; condition, a dict of
                arrays [n, ...] with a row for each clip.
        """
        return self._draw(masks.generate(self.config), None, clips=clips, **which)

    def predict(self, videos: Videos, frames: int, **which: Any) -> Drawn:
        """What may follow the first `frames` frames of the videos, which `read` takes."""
        return self._draw(masks.predict(self.config, frames), videos, **which)

    def interpolate(self, videos: Videos, first: int, last: int, **which: Any) -> Drawn:
        """What may lie between the first and the last frames."""
        return self._draw(masks.interpolate(self.config, first, last), videos, **which)

    def fill(self, videos: Videos, mask: np.ndarray, **which: Any) -> Drawn:
        """What may be where the mask, bool [F, H, W] or [H, W], is True; they are not seen."""
        return self._draw(masks.fill(self.config, np.asarray(mask)), videos, **which)

    def edit(
        self, videos: Videos, region: tuple[int, int, int, int, int, int], **which: Any
    ) -> Drawn:
        """The videos with a box drawn anew: (first frame, end, top, bottom, left, right)."""
        return self._draw(masks.edit(self.config, tuple(region)), videos, **which)

    def extend(
        self,
        frames: int,
        *,
        clips: int = 1,
        videos: Videos | None = None,
        given: int = 0,
        overlap: int = 0,
        seed: int | None = None,
        first: int = 0,
    ) -> Iterator[np.ndarray]:
        """Chunks uint8 [n, f, H, W, 3] of videos of `frames` frames, as they are drawn.

        The memory does not grow with the length.

        Args:
            frames: length of the whole.
            clips: how many from nothing; with videos as many as these.
            videos: whose beginnings are given.
            given: frames at the start of the videos that are given.
            overlap: frames of a window that the next one sees; 0 is half a window.
            seed, first: see `generate`.
        """
        given_videos = None if videos is None else self.read(videos)
        task = masks.generate(self.config)
        if videos is not None:
            task = masks.first_window(self.config, given)
        count = clips if given_videos is None else len(given_videos)
        indices = list(range(first, first + count))
        for _, video in self.windows(task, indices, given_videos, frames, overlap, seed):
            yield video

    def read(self, videos: Videos) -> list[np.ndarray]:
        """Clips uint8 [F, H, W, 3] from a video file, a folder of frames or of videos, one such
        array, or several.
        """
        if isinstance(videos, (str, Path)):
            return [
                inputs.read_input(video, self.config) for video in inputs.find_inputs(str(videos))
            ]
        return [videos] if isinstance(videos, np.ndarray) and videos.ndim == 4 else list(videos)

    # ---- one device batch ------------------------------------------------------------------------

    def check(self, task: Task) -> None:
        """Raises UserError if the task leaves nothing to draw, or a batch should not fit."""
        method = self.prior.method
        method.num_passes(task.num_known)
        weights = jax.tree.leaves((self.prior.params, self.space.params))
        device_memory.check_batch(
            self.config.sample.batch_size,
            clip_bytes=max(
                method.bytes_per_clip(task.num_known), self.space.bytes_per_clip(self.config)
            ),
            parameter_bytes=sum(leaf.nbytes for leaf in weights),
            shards=self._shards,
            field="config.sample.batch_size",
        )

    def draw_batch(
        self,
        task: Task,
        indices: Sequence[int],
        videos: Sequence[np.ndarray] | None = None,
        *,
        seed: int | None = None,
        condition: Condition | None = None,
        bar: Any = None,
    ) -> Sampled:
        """A batch of clips, still on the devices.

        Args:
            task: what is given of each clip.
            indices: [B] of the clips, a multiple of the mesh's data and fsdp axes (see `batches`);
                each clip follows from the seed and its index, whatever is drawn beside it.
            videos: uint8 [F, H, W, 3] for each, where the task is given anything.
            seed: default `config.sample.seed`.
            condition: rows [B, ...] for the backbone.
            bar: progress bar, advanced by each pass.
        """
        latents = None if videos is None else self.encode(task, videos)
        return self._sample(task, self._keys(seed, indices), latents, condition, bar)

    def windows(
        self,
        task: Task,
        indices: Sequence[int],
        videos: Sequence[np.ndarray] | None,
        frames: int,
        overlap: int = 0,
        seed: int | None = None,
        bar: Any = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Latents [n, t, H, W, ...] and frames uint8 [n, f, H, W, 3] that each window adds to
        videos of `frames` frames.

        Every window after the first is drawn with the last `overlap` frames of the one before as
        given: their latents or, with a causal tokenizer, whose first latent frame is unlike the
        others, the latents that these frames have as the start of a clip.
        """
        if len(indices) > self.config.sample.batch_size:
            raise UserError(
                f"{len(indices)} videos are to be extended at once, but config.sample.batch_size "
                f"is {self.config.sample.batch_size}; extend fewer, or raise it."
            )
        clips, ((indices, videos),) = len(indices), self.batches(indices, videos)
        tokenizer, keys = self.config.tokenizer, self._keys(seed, indices)
        video = np.empty(0)
        latents = None if videos is None else self.encode(task, videos)
        for window, step in enumerate(self.window_tasks(task, frames, overlap)):
            old = 0  # latent frames that the window before has shown
            if window:
                old = int(step.known.any(axis=(1, 2)).sum())
                if tokenizer.causal:
                    latents = self.encode(step, video[:, -tokenizer.frames(old) :])
                else:
                    latents = _shifted(latents, old)
            if not step.known.all():
                later = window_keys_program(self.mesh)(keys, window) if window else keys
                latents = self._sample(step, later, latents, None, bar).latents
            video = self.on_host(self.space.decode(latents))  # [B, F, H, W, 3]
            start = tokenizer.frames(old) if old else 0
            added = video[:clips, start:][:, :frames]  # [n, f, H, W, 3]
            frames -= added.shape[1]
            yield self.on_host(latents)[:clips, old:], added

    def window_tasks(self, task: Task, frames: int, overlap: int = 0) -> list[Task]:
        """What each window of a video of `frames` frames draws.

        The first one draws `task`, or nothing if all of it is given.
        """
        tokenizer, window = self.config.tokenizer, self.config.data.frames
        half = tokenizer.frames(max(1, self.config.grid[0] // 2))
        later = masks.continuation(self.config, overlap or half)
        seen = tokenizer.frames(int(later.known.any(axis=(1, 2)).sum()))
        return [task] + [later] * max(0, -(-(frames - window) // (window - seen)))

    def encode(self, task: Task, videos: Sequence[np.ndarray]) -> jax.Array:
        """Latents [B, T, H, W, ...] of what the task may see of each video."""
        rows = np.stack([task.visible(video) for video in videos])  # [B, F, H, W, 3]
        return self.space.encode({"video": rows[host_arrays.host_rows(self.mesh, len(rows))]})

    def video_of(self, latents: np.ndarray) -> np.ndarray:
        """Latents [B, T, H, W, ...] of a full batch -> uint8 [B, F, H, W, 3]."""
        return self.on_host(self.space.decode(*host_arrays.put_rows(self.mesh, latents)))

    def on_host(self, array: jax.Array) -> np.ndarray:
        """The whole of a sharded array, on every process."""
        return host_arrays.on_host(array, self.mesh)

    def batches(
        self, indices: Sequence[int], videos: Sequence[np.ndarray] | None = None
    ) -> list[tuple[list[int], list[np.ndarray] | None]]:
        """Cuts clips into device batches of one size; the last clip fills up the last batch."""
        size = min(self.config.sample.batch_size, -(-len(indices) // self._shards) * self._shards)
        filled = [*indices, *[indices[-1]] * (-len(indices) % size)]
        given = None if videos is None else [*videos, *[videos[-1]] * (len(filled) - len(videos))]
        return [
            (filled[i : i + size], None if given is None else given[i : i + size])
            for i in range(0, len(filled), size)
        ]

    def _draw(
        self,
        task: Task,
        videos: Videos | None,
        *,
        clips: int = 1,
        seed: int | None = None,
        first: int = 0,
        condition: Condition | None = None,
    ) -> Drawn:
        given = None if videos is None else self.read(videos)
        count = clips if given is None else len(given)
        self.check(task)
        batches = self.batches(list(range(first, first + count)), given)
        passes = len(batches) * self.prior.method.num_passes(task.num_known)
        video, latents, committed_at = [], [], []
        with telemetry.progress_bar(task.name, passes, 0) as bar:
            for indices, given in batches:
                rows = None
                if condition is not None:
                    rows = {
                        name: np.asarray(x)[np.array(indices) - first]
                        for name, x in condition.items()
                    }
                sampled = self.draw_batch(task, indices, given, seed=seed, condition=rows, bar=bar)
                video.append(self.on_host(self.space.decode(sampled.latents)))
                latents.append(self.on_host(sampled.latents))
                if sampled.committed_at is not None:
                    committed_at.append(self.on_host(sampled.committed_at))
        return Drawn(
            list(range(first, first + count)),
            np.concatenate(video)[:count],
            np.concatenate(latents)[:count],
            np.concatenate(committed_at)[:count] if committed_at else None,
        )

    def _sample(
        self,
        task: Task,
        keys: jax.Array,
        latents: jax.Array | None,
        condition: Condition | None,
        bar: Any,
    ) -> Sampled:
        given = {}
        if task.num_known:
            known = np.broadcast_to(task.known, (len(keys), *task.known.shape))
            (known,) = host_arrays.put_rows(self.mesh, known)
            given = {"num_known": task.num_known, "given": latents, "known": known}
        if condition is not None:
            arrays = host_arrays.put_rows(self.mesh, *condition.values())
            condition = dict(zip(condition, arrays))
        try:
            return self.prior.method.sample(
                self.prior.graphdef,
                self.prior.params,
                keys,
                condition=condition,
                mesh=self.mesh,
                on_pass=None if bar is None else bar.update,
                **given,
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            half = max(1, len(keys) // self._shards // 2) * self._shards
            raise UserError(
                f"{len(keys)} clips at a time do not fit the devices' memory; set "
                f"config.sample.batch_size to {half}."
            ) from error

    def _keys(self, seed: int | None, indices: Sequence[int]) -> jax.Array:
        (indices,) = host_arrays.put_rows(self.mesh, np.asarray(indices, np.int32))
        seed = self.config.sample.seed if seed is None else seed
        return clip_keys_program(self.mesh)(seed, indices)

    @property
    def _shards(self) -> int:
        return mesh_lib.num_devices(self.mesh, mesh_lib.BATCH_AXES)


def _shifted(latents: jax.Array, count: int) -> jax.Array:
    """The last `count` latent frames of [B, T, H, W, ...] in front, the rest 0."""
    padding = [(0, 0)] * latents.ndim
    padding[1] = (0, latents.shape[1] - count)
    return jnp.pad(latents[:, -count:], padding)
