"""Priors saved before attention and MLP became modules of their own (layout 1).

All of them are MeBT. Their blocks had the linear layers of the attention and of the MLP as direct
children. Checkpoints say their layout in their meta as "layout"; those of layout 1 have no entry.
"""

from collections.abc import Callable, Mapping
from typing import Any

LAYOUT = 2  # of the checkpoints that this version writes

Path = tuple[str, ...]

MLP_LAYERS = {"up_proj": "mlp_in", "down_proj": "mlp_out"}


def path_in(meta: Mapping[str, Any]) -> Callable[[Path], Path] | None:
    """`earlier_path` if the checkpoint with this meta has layout 1, otherwise None."""
    return None if meta.get("layout") == LAYOUT else earlier_path


def earlier_path(path: Path) -> Path:
    """Path in checkpoints of layout 1 of an array of a prior's TrainState.

    Args:
        path: names from the field of TrainState down, such as ("params", "stacks", "0", "blocks",
            "1", "attention", "query", "kernel", "value").
    """
    if "blocks" not in path:
        return path
    start = path.index("blocks") + 2
    block, rest = path[:start], path[start:]
    if rest[0] == "attention":
        return (*block, *rest[1:])
    if rest[0] == "mlp":
        return (*block, MLP_LAYERS[rest[1]], *rest[2:])
    return path
