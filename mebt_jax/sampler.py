"""A trained tokenizer and transformer ready to draw clips: every task is one call. The program
around it is `sample`.

sampler = Sampler.load("runs/demo")
drawn = sampler.generate(4, seed=1)
drawn = sampler.predict("video.mp4", frames=8)
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mebt_jax import config as config_lib
from mebt_jax.config import Config
from mebt_jax.errors import UserError
from mebt_jax.methods.masked import cost, decode
from mebt_jax.methods.masked.plan import Plan, build_plan
from mebt_jax.methods.masked.presets import with_preset
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import telemetry
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages.prior import TokenizerOnMesh, TrainedTransformer, load_transformer
from mebt_jax.stages.tokenizer import TrainedTokenizer, load_tokenizer
from mebt_jax.tasks import masks
from mebt_jax.tasks.masks import Task

STAGE = "sample"

Videos = str | Path | np.ndarray | Sequence[np.ndarray]


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Clips on the host; clip i was drawn with number `numbers[i]`."""

    numbers: list[int]
    video: np.ndarray  # uint8 [n, F, H, W, 3], all of it through the tokenizer, what was given too
    codes: np.ndarray  # int32 [n, T, H, W]
    committed_at: np.ndarray  # int32 [n, T, H, W], pass that committed each token, -1 where given


class Sampler:
    """Loaded weights, the mesh they lie on, and `config.sample`, whose settings hold for every
    call.
    """

    def __init__(
        self,
        config: Config,
        tokenizer: TrainedTokenizer,
        transformer: TrainedTransformer,
        mesh: Mesh,
    ) -> None:
        """Raises UserError if the preset is unknown or the batch size does not fit the mesh."""
        self.config = dataclasses.replace(config, sample=with_preset(config.sample))
        self.transformer, self.tokenizer, self.mesh = transformer, tokenizer, mesh
        self.pixels = TokenizerOnMesh(tokenizer, mesh)
        mesh_lib.check_batch_size(mesh, config.sample.batch_size, "config.sample.batch_size")

    @classmethod
    def load(cls, workdir: str | Path, **settings: Any) -> "Sampler":
        """The models of a work directory; `settings` are fields of `config.sample` to change, such
        as batch_size=2.

        Raises:
            UserError: there is no trained model, or a setting is unknown.
        """
        path = Path(workdir) / "config.json"
        if not path.exists():
            raise UserError(f"{workdir} is no work directory of a run: it has no config.json.")
        values = workdir_lib.read_json(path)
        return cls.from_workdir(
            config_lib.from_config_dict(values | {"sample": values["sample"] | settings}),
            Path(workdir),
        )

    @classmethod
    def from_workdir(cls, config: Config, workdir: Path) -> "Sampler":
        mesh = mesh_lib.make_mesh(config.mesh)
        mesh_lib.check_heads(mesh, config.transformer.heads)
        tokenizer = load_tokenizer(config, workdir, mesh)
        return cls(
            config, tokenizer, load_transformer(config, workdir, mesh, tokenizer.content_hash), mesh
        )

    def changed(self, **settings: Any) -> "Sampler":
        """The same models with other fields of `config.sample`."""
        config = config_lib.to_dict(self.config)
        config["sample"] |= {"preset": ""} | settings
        return Sampler(
            config_lib.from_config_dict(config), self.tokenizer, self.transformer, self.mesh
        )

    # ---- tasks -----------------------------------------------------------------------------------

    def generate(self, clips: int = 1, **which: int) -> Drawn:
        """Clips from nothing. `which`, here and below: seed, and first, the number of the first
        clip.
        """
        return self._draw(masks.generate(self.config), None, clips=clips, **which)

    def predict(self, videos: Videos, frames: int, **which: int) -> Drawn:
        """What may follow the first `frames` frames of the videos, which are given as `read` takes
        them.
        """
        return self._draw(masks.predict(self.config, frames), videos, **which)

    def interpolate(self, videos: Videos, first: int, last: int, **which: int) -> Drawn:
        """What may lie between the first and the last frames."""
        return self._draw(masks.interpolate(self.config, first, last), videos, **which)

    def fill(self, videos: Videos, mask: np.ndarray, **which: int) -> Drawn:
        """What may be where the mask, bool [F, H, W] or [H, W], is True; pixels there are not
        used.
        """
        return self._draw(masks.fill(self.config, np.asarray(mask)), videos, **which)

    def edit(
        self, videos: Videos, region: tuple[int, int, int, int, int, int], **which: int
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
        """Pieces uint8 [n, f, H, W, 3] of videos of `frames` frames, as they come: what is kept
        does not grow with the length.

        Args:
            frames: length of the whole.
            clips: how many from nothing; with videos as many as these.
            given: frames at the start of the videos that are given.
            overlap: frames of a window that the next one sees; 0 is half a window.
            seed, first: see `generate`.
        """
        given_videos = None if videos is None else self.read(videos)
        task = (
            masks.generate(self.config)
            if videos is None
            else masks.first_window(self.config, given)
        )
        numbers = list(range(first, first + (clips if given_videos is None else len(given_videos))))
        for _, video in self.windows(task, numbers, given_videos, frames, overlap, seed):
            yield video

    def read(self, videos: Videos) -> list[np.ndarray]:
        """Clips uint8 [F, H, W, 3] from a video file, a folder of frames or of videos, one such
        array, or several.
        """
        if isinstance(videos, (str, Path)):
            return [masks.read_clip(video, self.config) for video in masks.find_inputs(str(videos))]
        return [videos] if isinstance(videos, np.ndarray) and videos.ndim == 4 else list(videos)

    # ---- one device batch ------------------------------------------------------------------------

    def plan(self, task: Task) -> Plan:
        """Raises UserError if the task leaves nothing to draw, or a batch should not fit the
        device.
        """
        plan = build_plan(self.config.sample, math.prod(self.config.grid), task.num_known)
        weights = sum(
            leaf.nbytes
            for leaf in jax.tree.leaves((self.transformer.params, self.tokenizer.params))
        )
        cost.check_batch(self.config, plan, weights, self._shards)
        return plan

    def draw_batch(
        self,
        task: Task,
        numbers: Sequence[int],
        videos: Sequence[np.ndarray] | None = None,
        *,
        seed: int | None = None,
        bar: Any = None,
    ) -> decode.Decoded:
        """Codes of a batch of clips, still on the devices.

        Args:
            numbers: [B] of the clips, a multiple of the mesh's data and fsdp axes (see `batches`);
                each clip is drawn by the seed and its number, whatever stands beside it.
            videos: uint8 [F, H, W, 3] for each, where the task is given anything.
            bar: moved on by each pass.
        """
        codes = None if videos is None else self.encode(task, videos)
        return self._decode(task, self._keys(seed, numbers), codes, bar)

    def windows(
        self,
        task: Task,
        numbers: Sequence[int],
        videos: Sequence[np.ndarray] | None,
        frames: int,
        overlap: int = 0,
        seed: int | None = None,
        bar: Any = None,
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Codes int32 [n, t, H, W] and frames uint8 [n, f, H, W, 3] that each window adds to videos
        of `frames` frames.

        Every window after the first is drawn with the last `overlap` frames of the one before as
        given: their tokens, or with a causal tokenizer, whose first token is unlike the others, the
        tokens that these frames have as the start of a clip.
        """
        if len(numbers) > self.config.sample.batch_size:
            raise UserError(
                f"{len(numbers)} videos are to be extended at once, but config.sample.batch_size "
                "is "
                f"{self.config.sample.batch_size}; extend fewer, or raise it."
            )
        clips, ((numbers, videos),) = len(numbers), self.batches(numbers, videos)
        tokenizer, keys, video = self.config.tokenizer, self._keys(seed, numbers), np.empty(0)
        codes = None if videos is None else self.encode(task, videos)
        for number, drawn in enumerate(self.window_tasks(task, frames, overlap)):
            old = 0  # latent frames that the window before has shown
            if number:
                old = int(drawn.known.any(axis=(1, 2)).sum())
                codes = (
                    self.encode(drawn, video[:, -tokenizer.frames(old) :])
                    if tokenizer.causal
                    else _shifted(codes, old)
                )
            if not drawn.known.all():
                codes = self._decode(
                    drawn, _window_keys(keys, number) if number else keys, codes, bar
                ).codes
            video = self.on_host(self.pixels.video(codes))  # [B, F, H, W, 3]
            added = video[:clips, tokenizer.frames(old) if old else 0 :][
                :, :frames
            ]  # [n, f, H, W, 3]
            frames -= added.shape[1]
            yield self.on_host(codes)[:clips, old:], added

    def window_tasks(self, task: Task, frames: int, overlap: int = 0) -> list[Task]:
        """What each window of a video of `frames` frames draws; the first one draws `task`, or
        nothing if all is given.
        """
        tokenizer, window = self.config.tokenizer, self.config.data.frames
        later = masks.continuation(
            self.config, overlap or tokenizer.frames(max(1, self.config.grid[0] // 2))
        )
        kept = tokenizer.frames(int(later.known.any(axis=(1, 2)).sum()))
        return [task] + [later] * max(0, -(-(frames - window) // (window - kept)))

    def encode(self, task: Task, videos: Sequence[np.ndarray]) -> jax.Array:
        """Codes [B, T, H, W] of what the task may see of each video."""
        rows = np.stack([task.visible(video) for video in videos])  # [B, F, H, W, 3]
        return self.pixels.codes(rows[mesh_lib.host_rows(self.mesh, len(rows))])

    def video_of(self, codes: np.ndarray) -> np.ndarray:
        """Codes [B, T, H, W] of a full batch -> uint8 [B, F, H, W, 3]."""
        return self.on_host(self.pixels.video(*mesh_lib.put_rows(self.mesh, codes)))

    def on_host(self, array: jax.Array) -> np.ndarray:
        """The whole of a sharded array, on every process."""
        return mesh_lib.on_host(array, self.mesh)

    def batches(
        self, numbers: Sequence[int], videos: Sequence[np.ndarray] | None = None
    ) -> list[tuple[list[int], list[np.ndarray] | None]]:
        """Cuts clips into device batches of one size; what is missing in the last one is filled up
        with its last clip.
        """
        size = min(self.config.sample.batch_size, -(-len(numbers) // self._shards) * self._shards)
        filled = [*numbers, *[numbers[-1]] * (-len(numbers) % size)]
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
    ) -> Drawn:
        given = None if videos is None else self.read(videos)
        numbers = list(range(first, first + (clips if given is None else len(given))))
        batches, made = self.batches(numbers, given), []
        with telemetry.progress_bar(task.name, len(batches) * self.plan(task).num_passes, 0) as bar:
            for chosen, seen in batches:
                drawn = self.draw_batch(task, chosen, seen, seed=seed, bar=bar)
                arrays = (self.pixels.video(drawn.codes), drawn.codes, drawn.committed_at)
                made.append([self.on_host(array) for array in arrays])
        return Drawn(numbers, *(np.concatenate(arrays)[: len(numbers)] for arrays in zip(*made)))

    def _decode(
        self, task: Task, keys: jax.Array, codes: jax.Array | None, bar: Any
    ) -> decode.Decoded:
        given = {}
        if task.num_known:
            (known,) = mesh_lib.put_rows(
                self.mesh, np.broadcast_to(task.known, (len(keys), *task.known.shape))
            )
            given = {"codes": codes, "known": known}
        try:
            return decode.decode(
                self.transformer.graphdef,
                self.transformer.params,
                self.plan(task),
                self.config.grid,
                keys,
                sharding=mesh_lib.batch_sharding(self.mesh),
                on_pass=None if bar is None else bar.update,
                **given,
            )
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            half = max(1, len(keys) // self._shards // 2) * self._shards
            raise UserError(
                f"{len(keys)} clips at a time do not fit the devices' memory; set "
                "config.sample.batch_size to "
                f"{half}."
            ) from error

    def _keys(self, seed: int | None, numbers: Sequence[int]) -> jax.Array:
        (indices,) = mesh_lib.put_rows(self.mesh, np.asarray(numbers, np.int32))
        keys = jax.jit(
            decode.clip_keys, static_argnums=0, out_shardings=mesh_lib.batch_sharding(self.mesh)
        )
        return keys(self.config.sample.seed if seed is None else seed, indices)

    @property
    def _shards(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in mesh_lib.BATCH_AXES)


@jax.jit
def _window_keys(keys: jax.Array, window: int) -> jax.Array:
    """Keys [B] for a later window of the clips that start with `keys`."""
    return jax.vmap(lambda key: jax.random.fold_in(jax.random.fold_in(key, decode.WINDOW), window))(
        keys
    )


def _shifted(codes: jax.Array, kept: int) -> jax.Array:
    """The last `kept` latent frames of codes [B, T, H, W] in front, the rest 0."""
    return jnp.pad(codes[:, -kept:], ((0, 0), (0, codes.shape[1] - kept), (0, 0), (0, 0)))
