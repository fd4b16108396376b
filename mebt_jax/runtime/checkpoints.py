"""Checkpoints of a training stage: written in the background, whole or not at all, and restored
onto any mesh.

One checkpoint is a folder `<stage>/checkpoints/<step>`. It holds the TrainState as arrays, and as
JSON the position of the data iterator ("progress") and a description of the run (config, tokenizer,
versions: "meta"). Nothing is pickled. While it is written, the folder has a temporary name; a kill
leaves that behind, and the next start ignores and removes it.
"""

import contextlib
import dataclasses
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from mebt_jax import earlier_versions
from mebt_jax.errors import UserError

METRIC = "validation"  # smaller is better
# Stands for "not validated": never the best. Orbax deletes no checkpoint while one has no number.
UNVALIDATED = sys.float_info.max
LATEST_KEPT = 2  # if the medium damages the latest, the one before it is still there
VERSIONS_OF = ("mebt_jax", "jax", "flax", "optax", "orbax-checkpoint", "grain")

# What the storage libraries raise when the medium fails: Orbax passes on OSError, TensorStore turns
# it into ValueError.
STORAGE_ERRORS = (OSError, ValueError, RuntimeError)

# Orbax logs the traceback of a failed write before it raises; the user gets the error as one
# sentence instead.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


# Names from a state's field down to one of its arrays, such as ("params", "decoder", "bias",
# "value").
ArrayPath = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Restored:
    step: int
    state: Any
    progress: dict[str, Any]


class Checkpointer:
    """Saves and restores the states of one stage. Use as a context manager: leaving it waits for
    the last save.

    It keeps the two latest checkpoints, the one with the smallest validation metric, the multiples
    of `keep_every`, and `keep_steps`.
    """

    def __init__(
        self,
        directory: Path,
        meta: dict[str, Any],
        keep_every: int,
        keep_steps: Sequence[int] = (),
        earlier_path: Callable[[ArrayPath], ArrayPath] | None = None,
    ) -> None:
        """Opens or makes a folder of checkpoints.

        Args:
            meta: plain JSON that says what the checkpoints are of; it is saved with each. Its entry
                "layout" is the number of the arrangement of their arrays.
            earlier_path: path of an array now -> its path in checkpoints of another layout.
        """
        self.directory = directory.absolute()
        self._meta = meta
        self._earlier_path = earlier_path
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
        # The user must hear of the error that ended the block, not of a save that fails after it.
        with contextlib.suppress(*STORAGE_ERRORS):
            self._manager.close()

    @property
    def last_good(self) -> str:
        """For messages: where the last complete checkpoint lies."""
        if self._last_good is None:
            return "there is no checkpoint yet"
        return f"the last good checkpoint is {self.directory / str(self._last_good)}"

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def save(self, step: int, state: Any, progress: dict[str, Any], metric: float | None) -> None:
        """Starts writing; returns when `state` may be donated. The next call raises the failure of
        this write.

        Args:
            step: number of finished steps; a step that is saved already is left alone.
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
                f"not saved; {self.last_good}: start again in another --workdir with a lower "
                "learning rate."
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

    def restore(self, step: int, abstract_state: Any) -> Restored:
        """Reads `step` into the shapes and shardings of `abstract_state` (which may be those of
        another mesh). Arrays of the checkpoint that have no place in it are left out.
        """
        args = ocp.args.Composite(progress=ocp.args.JsonRestore(), meta=ocp.args.JsonRestore())
        with self._storage_errors(f"read the checkpoint of step {step}"):
            restored = self._manager.restore(step, args=args)
            same_layout = restored.meta.get("layout") == self._meta.get("layout")
            state = _read_state(
                self.directory / str(step) / "state",
                abstract_state,
                None if same_layout else self._earlier_path,
            )
        return Restored(step=step, state=state, progress=restored.progress)

    def preempted(self, step: int) -> bool:
        """True on every process once any of them got the signal to stop (several processes
        only).
        """
        return jax.process_count() > 1 and self._manager.reached_preemption(step)

    @contextlib.contextmanager
    def _storage_errors(self, action: str) -> Iterator[None]:
        try:
            yield
        except STORAGE_ERRORS as error:
            raise UserError(
                f"Could not {action} in {self.directory} ({_first_line(error)}); "
                f"{self.last_good}: free some space or fix the folder, and the same command goes "
                "on from there."
            ) from error


# ---- reading without a Checkpointer, which would clean up the folder of a run that goes on -------


def find(path: Path, stage: str) -> Path | None:
    """Folder of checkpoints of `stage` for a path that is a workdir, its stage folder, that folder
    itself, or one checkpoint; None if none of these holds a complete checkpoint.
    """
    inside = earlier_versions.stage_folder(path, stage)
    candidates = (inside / "checkpoints", path / "checkpoints", path)
    return next((folder for folder in candidates if has_checkpoint(folder)), None)


def find_checkpoints(path: Path, stage: str) -> Path:
    """`find`, for a stage that must be there.

    Raises:
        UserError: there is no complete checkpoint.
    """
    folder = find(path, stage)
    if folder is None:
        raise UserError(
            f"There is no {stage} checkpoint in {path}; give a workdir whose {stage} stage has "
            "saved one."
        )
    return folder


def has_checkpoint(folder: Path) -> bool:
    """True if `folder` holds a complete checkpoint or is one."""
    return _latest(folder) is not None


def read_meta(folder: Path) -> dict[str, Any]:
    """The description of the run in the latest checkpoint of `folder`, with its step as "step"."""
    latest = _latest(folder)
    handler = ocp.Checkpointer(ocp.JsonCheckpointHandler())
    meta = handler.restore((latest / "meta").absolute())
    if "stage" in meta:
        meta["stage"] = earlier_versions.stage_name(meta["stage"])
    return {**meta, "step": int(latest.name)}


def read_arrays(
    folder: Path,
    abstract_parts: dict[str, Any],
    earlier_path: Callable[[ArrayPath], ArrayPath] | None = None,
) -> dict[str, Any]:
    """Some fields of the latest TrainState in `folder`, without reading the rest (optimizer
    moments).

    Args:
        folder: as returned by `find_checkpoints`.
        abstract_parts: field name -> tree of ShapeDtypeStructs with shardings.
        earlier_path: path of an array in `abstract_parts` -> its path in the checkpoint, if they
            differ.

    Raises:
        UserError: the arrays there have other names or shapes.
    """
    path = (_latest(folder) / "state").absolute()
    try:
        return _read_state(path, abstract_parts, earlier_path)
    except (ValueError, KeyError) as error:
        raise UserError(
            f"The checkpoint {path.parent} does not fit the config ({_first_line(error)}); use the "
            "config that it was trained with."
        ) from error


def _read_state(
    path: Path, abstract_state: Any, earlier_path: Callable[[ArrayPath], ArrayPath] | None
) -> Any:
    """The arrays of `abstract_state` from the folder of a saved state.

    Raises:
        ValueError: an array is not there, or has another shape.
    """
    leaves, treedef = jax.tree_util.tree_flatten_with_path(abstract_state)
    wanted = {}
    for keys, leaf in leaves:
        names = _array_path(keys)
        wanted[earlier_path(names) if earlier_path else names] = leaf
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        stored = reader.metadata(path).item_metadata.tree
        shapes = {
            _array_path(keys): tuple(leaf.shape)
            for keys, leaf in jax.tree_util.tree_leaves_with_path(stored)
        }
        for names, leaf in wanted.items():
            if shapes.get(names) != tuple(leaf.shape):
                found = f"has shape {shapes[names]}" if names in shapes else "is not there"
                raise ValueError(f"{'/'.join(names)} {found}, but should have shape {leaf.shape}")
        target = jax.tree_util.tree_map_with_path(
            lambda keys, _: wanted.get(_array_path(keys), ocp.PLACEHOLDER), stored
        )
        arguments = ocp.checkpoint_utils.construct_restore_args(target)
        arrays = reader.restore(path, ocp.args.PyTreeRestore(target, restore_args=arguments))
    by_path = {
        _array_path(keys): array for keys, array in jax.tree_util.tree_leaves_with_path(arrays)
    }
    return treedef.unflatten([by_path[names] for names in wanted])


def _array_path(keys: tuple[Any, ...]) -> ArrayPath:
    return tuple(
        str(next(getattr(key, kind) for kind in ("key", "name", "idx") if hasattr(key, kind)))
        for key in keys
    )


def versions() -> dict[str, str]:
    """Versions of the packages on which a saved state depends."""
    installed = {}
    for name in VERSIONS_OF:
        # mebt_jax itself may run from its source folder, without being installed.
        with contextlib.suppress(metadata.PackageNotFoundError):
            installed[name] = metadata.version(name)
    return installed


@jax.jit
def _all_finite(tree: Any) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()


def _latest(folder: Path) -> Path | None:
    """The complete checkpoint of the highest step in `folder`, or `folder` itself if it is one."""
    if not folder.is_dir():
        return None
    # Orbax gives a checkpoint its final name, the step alone, in one operation at the very end.
    complete = [
        entry
        for entry in (folder, *folder.iterdir())
        if entry.name.isdigit() and (entry / "state").is_dir()
    ]
    return max(complete, key=lambda entry: int(entry.name), default=None)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:300] if text else type(error).__name__
