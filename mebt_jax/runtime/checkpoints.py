"""Checkpoints of a training stage: written in the background, whole or not at all, and restored
onto any mesh.

One checkpoint is a folder `<stage>/checkpoints/<step>` with the TrainState as arrays, and as JSON
the position of the data iterator and what the checkpoint is of (config, tokenizer, versions).
Nothing is pickled. A folder that was cut short by a kill bears a temporary name, and is ignored and
removed at the next start.
"""

import contextlib
import dataclasses
import hashlib
import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from mebt_jax.errors import UserError

EXIT_TERMINATED = 143  # 128 + SIGTERM, what a shell reports of a process that obeyed the signal
METRIC = "validation"  # smaller is better
UNVALIDATED = (
    sys.float_info.max
)  # never the best; without a number in every checkpoint Orbax deletes none
LATEST_KEPT = 2  # should the latest be damaged by the medium, there is one before it
VERSIONS_OF = ("mebt_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain")

# What the storage libraries raise when the medium fails: Orbax passes on OSError, TensorStore turns
# it into ValueError.
STORAGE_ERRORS = (OSError, ValueError, RuntimeError)

# Orbax logs the traceback of a failed write before it raises; the user gets the error as one
# sentence instead.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


@dataclasses.dataclass(frozen=True)
class Restored:
    step: int
    state: Any
    progress: dict[str, Any]
    meta: dict[str, Any]


class Checkpointer:
    """Saves and restores the states of one stage. Use as a context manager: leaving it waits for
    the last save.

    Kept are the two latest, the one with the smallest validation metric, the multiples of
    `keep_every`, and `keep_steps`.
    """

    def __init__(
        self, directory: Path, meta: dict[str, Any], keep_every: int, keep_steps: Sequence[int] = ()
    ) -> None:
        """`meta` is plain JSON that says what the checkpoints are of; it is saved with each."""
        self.directory = directory.absolute()
        self._meta = meta
        self._last_good: int | None = None
        self._pending: int | None = None
        preservation = [
            policies.LatestN(LATEST_KEPT),
            policies.BestN(get_metric_fn=lambda metrics: metrics[METRIC], reverse=True, n=1),
            policies.EveryNSteps(keep_every),
            policies.CustomSteps(list(keep_steps)),
        ]
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policies.AnyPreservationPolicy(preservation),
            best_fn=lambda metrics: metrics[METRIC],
            best_mode="min",
            cleanup_tmp_directories=True,
        )
        with self._storage_errors("open the checkpoints"):
            self._manager = ocp.CheckpointManager(self.directory, options=options)
            self._last_good = self._manager.latest_step()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            self.wait()
            self._manager.close()
            return
        if kind is jax.errors.JaxRuntimeError and jax.process_count() > 1:
            return  # if another process has died, closing would wait for it
        # Something else went wrong already: that is what the user must hear of, not the save behind
        # it.
        with contextlib.suppress(*STORAGE_ERRORS):
            self._manager.close()

    @property
    def last_good(self) -> str:
        """For messages: where the last complete checkpoint lies."""
        return (
            "there is no checkpoint yet"
            if self._last_good is None
            else (f"the last good checkpoint is {self.directory / str(self._last_good)}")
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any, progress: dict[str, Any], metric: float | None) -> None:
        """Starts writing; returns when `state` may be donated. A failure of this write is raised by
        the next call.

        Args:
            step: number of finished steps; saving a step twice is done once.
            state: tree of arrays.
            progress: plain JSON from which the stage continues besides the state.
            metric: validation metric of exactly this state, or None.

        Raises:
            UserError: `state` holds a NaN or an infinity, or this or the previous checkpoint could
                not be written; the ones before are whole.
        """
        self.wait()
        if step in self._manager.all_steps():
            return
        if not _all_finite(state):
            raise UserError(
                f"The weights or their statistics are not finite after step {step}, so they were "
                "not saved; "
                f"{self.last_good}: start again in another --workdir with a lower learning rate."
            )
        self._pending = step
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            progress=ocp.args.JsonSave(progress),
            meta=ocp.args.JsonSave(self._meta),
        )
        with self._storage_errors(f"save the checkpoint of step {step}"):
            self._manager.save(
                step,
                args=args,
                metrics={METRIC: UNVALIDATED if metric is None else metric},
                force=True,
            )

    def wait(self) -> None:
        """Waits for the write in progress; raises UserError if it failed."""
        with self._storage_errors(f"save the checkpoint of step {self._pending}"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        self._last_good = self._pending if self._pending is not None else self._last_good

    def meta(self, step: int) -> dict[str, Any]:
        """What the checkpoint of `step` says it is of."""
        with self._storage_errors(f"read the checkpoint of step {step}"):
            return self._manager.restore(
                step, args=ocp.args.Composite(meta=ocp.args.JsonRestore())
            ).meta

    def restore(self, step: int, abstract_state: Any) -> Restored:
        """Reads `step` into the shapes and shardings of `abstract_state` (which may be those of
        another mesh).
        """
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract_state),
            progress=ocp.args.JsonRestore(),
            meta=ocp.args.JsonRestore(),
        )
        with self._storage_errors(f"read the checkpoint of step {step}"):
            found = self._manager.restore(step, args=args)
        return Restored(step=step, state=found.state, progress=found.progress, meta=found.meta)

    def preempted(self, step: int) -> bool:
        """True on every process once any of them was told to leave (several processes only)."""
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    @contextlib.contextmanager
    def _storage_errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except STORAGE_ERRORS as error:
            reason = (
                str(error).strip().splitlines()[0][:300]
                if str(error).strip()
                else type(error).__name__
            )
            raise UserError(
                f"Could not {doing} in {self.directory} ({reason}); {self.last_good}: free some "
                "space or mend "
                f"the folder, and the same command goes on from there."
            ) from error


def find_checkpoints(path: Path, stage: str) -> Path:
    """Folder of checkpoints of `stage` for a path that is a workdir, its stage folder, that folder
    itself, or one checkpoint.

    Raises:
        UserError: there is no complete checkpoint in any of these.
    """
    for folder in (path / stage / "checkpoints", path / "checkpoints", path):
        if has_checkpoint(folder):
            return folder
    raise UserError(
        f"There is no {stage} checkpoint in {path}; give a workdir whose {stage} stage has saved "
        "one."
    )


def has_checkpoint(folder: Path) -> bool:
    """True if `folder` holds a complete checkpoint or is one."""
    return _latest(folder) is not None


def read_meta(folder: Path) -> dict[str, Any]:
    """What the latest checkpoint in `folder` says it is of, with its step as "step"."""
    newest = _latest(folder)
    handler = ocp.Checkpointer(ocp.JsonCheckpointHandler())
    return {**handler.restore((newest / "meta").absolute()), "step": int(newest.name)}


def read_arrays(folder: Path, abstract_parts: dict[str, Any]) -> dict[str, Any]:
    """Some fields of the latest TrainState in `folder`, without reading the rest (optimizer
    moments).

    Args:
        folder: as returned by `find_checkpoints`.
        abstract_parts: field name -> tree of ShapeDtypeStructs with shardings.

    Raises:
        UserError: the arrays there have other names or shapes.
    """
    path = (_latest(folder) / "state").absolute()
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            arguments = ocp.checkpoint_utils.construct_restore_args(abstract_parts)
            return reader.restore(
                path,
                ocp.args.PyTreeRestore(
                    abstract_parts, restore_args=arguments, partial_restore=True
                ),
            )
    except (ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        raise UserError(
            f"The checkpoint {path.parent} does not fit the config ({reason}); use the config that "
            "it was "
            f"trained with."
        ) from error


def versions() -> dict[str, str]:
    """Of the packages on which a saved state depends."""
    installed = {}
    for name in VERSIONS_OF:
        with contextlib.suppress(
            metadata.PackageNotFoundError
        ):  # mebt_jax itself may run from its source folder
            installed[name] = metadata.version(name)
    return installed


def content_hash(tree: Any) -> str:
    """16 hex digits of the names, shapes and values of a tree of arrays, whatever its sharding."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        array = np.asarray(_whole(leaf))
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


class StopSignal:
    """Context manager: `requested` turns True at SIGTERM, so that a loop can save and leave between
    two steps.
    """

    def __init__(self) -> None:
        self.requested = False

    def __enter__(self) -> "StopSignal":
        # With several processes JAX's coordination service listens itself, see
        # `Checkpointer.preempted`.
        self._previous = (
            signal.signal(signal.SIGTERM, self._note) if jax.process_count() == 1 else None
        )
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, *_: object) -> None:
        self.requested = True


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()


def _whole(leaf: jax.Array | np.ndarray) -> jax.Array | np.ndarray:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(leaf, tiled=True)


def _latest(folder: Path) -> Path | None:
    # A finished checkpoint is a folder named by its step alone; Orbax renames it so in one
    # operation at the very end.
    found = (
        [
            entry
            for entry in (folder, *folder.iterdir())
            if entry.name.isdigit() and (entry / "state").is_dir()
        ]
        if (folder.is_dir())
        else []
    )
    return max(found, key=lambda entry: int(entry.name), default=None)
