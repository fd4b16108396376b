"""Folders of converted weights: one checkpoint per network, in the form that training stages save.

A folder may hold `tokenizer` and `prior`, for `config.tokenizer.checkpoint` and
`config.prior.checkpoint`, and any of NETWORKS, for `load_network`.
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

# Networks beside tokenizer and transformer; their sizes are saved with their weights.
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
        changes: arguments of the network that do not follow from its weights, such as I3D's
            epsilon.

    Raises:
        UserError: the network is not in the folder.
    """
    folder = checkpoints.find(path, name)
    if folder is None or checkpoints.read_meta(folder).get("stage") != name:
        raise UserError(
            f"There is no converted {name} in {path}; give the folder that `python -m "
            "mebt_jax.interop.convert` wrote it to."
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
    """Writes the tokenizer or the prior below `path`, as its training stage does, and reads
    it back to compare.

    Args:
        config: the loading stages compare its sizes with their own.
        parts: "params", and "model_state" of a tokenizer, numpy arrays.
        facts: more plain JSON to be saved beside the config.
    """
    values = config_lib.to_dict(config)
    values[stage]["training"]["ema_decay"] = 0.0  # published weights have no average beside them
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
    restored = read_back(folder / "checkpoints", abstract)
    for (path, written), read in zip(
        jax.tree_util.tree_leaves_with_path(parts), jax.tree.leaves(restored), strict=True
    ):
        if np.asarray(written).tobytes() != np.asarray(read).tobytes():
            raise UserError(
                f"{folder} does not give back what was written ({jax.tree_util.keystr(path)} "
                "differs); the medium may be at fault, choose another --out."
            )


def read_back(
    folder: Path,
    abstract_parts: dict[str, Any],
    earlier_path: Callable[[checkpoints.ArrayPath], checkpoints.ArrayPath] | None = None,
) -> dict[str, Any]:
    """Parts of the latest checkpoint in `folder`, on the first device.

    `earlier_path` is that of `checkpoints.read_arrays`.
    """
    device = SingleDeviceSharding(jax.devices()[0])
    on_device = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(x.dtype), sharding=device),
        abstract_parts,
    )
    return checkpoints.read_arrays(folder, on_device, earlier_path)
