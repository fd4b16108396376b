"""Folders of converted weights: one checkpoint per network, in the form that training stages save,
and read back.

A folder may hold `tokenizer` and `transformer`, for `config.tokenizer.checkpoint` and
`config.transformer.checkpoint`, and any of NETWORKS, for `load_network`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import SingleDeviceSharding

from mebt_jax import config as config_lib
from mebt_jax.config import Config
from mebt_jax.errors import UserError
from mebt_jax.metrics.networks.c3d import C3D
from mebt_jax.metrics.networks.i3d import I3D
from mebt_jax.runtime import checkpoints
from mebt_jax.tokenizer.training.discriminators import CLIPS, FRAMES, Discriminator
from mebt_jax.tokenizer.training.lpips import LPIPS

# Networks beside tokenizer and transformer; what they are made with is saved with their weights.
NETWORKS: dict[str, Callable[..., nnx.Module]] = {
    "i3d": I3D,
    "c3d": C3D,
    "lpips": LPIPS,
    "frame_discriminator": lambda **sizes: Discriminator(FRAMES, **sizes),
    "clip_discriminator": lambda **sizes: Discriminator(CLIPS, **sizes),
}


def load_network(path: Path, name: str, **changes: Any) -> tuple[nnx.GraphDef, nnx.State]:
    """One of NETWORKS from a folder that the converter wrote, on the first device.

    Args:
        path: the folder given to the converter as --out.
        name: a key of NETWORKS.
        changes: arguments of the network that weights do not fix, such as I3D's epsilon.

    Raises:
        UserError: the folder does not hold it.
    """
    folder = next(
        (
            found
            for found in (path / name / "checkpoints", path / "checkpoints", path)
            if checkpoints.has_checkpoint(found)
        ),
        None,
    )
    if folder is None or checkpoints.read_meta(folder).get("stage") != name:
        raise UserError(
            f"There is no converted {name} in {path}; give the folder that `python -m "
            "mebt_jax.interop.convert` "
            f"wrote it to."
        )
    sizes = checkpoints.read_meta(folder)["sizes"]
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: NETWORKS[name](**sizes, **changes, rngs=nnx.Rngs(0)))
    )
    return graphdef, read_back(folder, {"params": state})["params"]


def save_network(path: Path, name: str, state: nnx.State, sizes: dict[str, int]) -> None:
    """Writes one of NETWORKS below `path` and reads it back to compare."""
    meta = {"stage": name, "sizes": sizes, "versions": checkpoints.versions()}
    _save(path / name, meta, {"params": state}, step=0)


def save_stage(
    path: Path, stage: str, config: Config, parts: dict[str, Any], *, step: int, **facts: Any
) -> None:
    """Writes the tokenizer or the transformer below `path`, as its training stage does, and reads
    it back to compare.

    Args:
        config: the loading stages compare its sizes with their own.
        parts: "params", and of a tokenizer its codebook as "statistics", numpy arrays.
        facts: more plain JSON to be saved beside the config.
    """
    values = config_lib.to_dict(config)
    values[stage]["training"]["ema_decay"] = 0.0  # there are no averaged weights
    _save(
        path / stage,
        {"stage": stage, "config": values, "versions": checkpoints.versions(), **facts},
        parts,
        step,
    )


def _save(folder: Path, meta: dict[str, Any], parts: dict[str, Any], step: int) -> None:
    with checkpoints.Checkpointer(folder / "checkpoints", meta, keep_every=1) as checkpointer:
        checkpointer.save(step, parts, progress={}, metric=None)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), parts)
    found = read_back(folder / "checkpoints", abstract)
    for (path, ours), theirs in zip(
        jax.tree_util.tree_leaves_with_path(parts), jax.tree.leaves(found), strict=True
    ):
        if np.asarray(ours).tobytes() != np.asarray(theirs).tobytes():
            raise UserError(
                f"{folder} does not give back what was written ({jax.tree_util.keystr(path)} "
                "differs); the medium "
                f"may be at fault, choose another --out."
            )


def read_back(folder: Path, abstract_parts: dict[str, Any]) -> dict[str, Any]:
    """Parts of the latest checkpoint in `folder`, on the first device."""
    here = SingleDeviceSharding(jax.devices()[0])
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(x.dtype), sharding=here), abstract_parts
    )
    return checkpoints.read_arrays(folder, placed)
