"""Tokenizers saved before the codebook became a part of the tokenizer (layout 1).

In layout 1 the train state had a field `statistics` with the codebook and its counts (a codebook
that is trained was the parameter `codes`), statistics of BatchNorms lay among the parameters, and
the discriminators' state was the field `adversary`. Checkpoints say their layout in their meta as
"layout"; those of layout 1 do not have this entry.
"""

from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

LAYOUT = 2  # of the checkpoints that this version writes

Path = tuple[str, ...]

CODEBOOK_FIELDS = {"codebook": "embeddings", "counts": "counts", "sums": "sums"}
DISC_FIELDS = {"batch_stats": "statistics", "mean_logits": "logits"}


def path_in(meta: Mapping[str, Any]) -> Callable[[Path], Path] | None:
    """`earlier_path` if the checkpoint with this meta has layout 1, otherwise None."""
    return None if meta.get("layout") == LAYOUT else earlier_path


def earlier_path(path: Path) -> Path:
    """Path in checkpoints of layout 1 of an array of a tokenizer's TrainState.

    Args:
        path: names from the field of TrainState down, as ("params", "decoder", "last", "bias",
            "value").
    """
    field, *rest = path
    if field == "model_state":
        if rest[0] == "quantizer":
            return ("statistics", CODEBOOK_FIELDS[rest[1]])
        return ("params", *rest)  # statistics of a BatchNorm
    if field == "disc_state":
        return ("adversary", DISC_FIELDS.get(rest[0], rest[0]), *rest[1:])
    # A trained codebook, in `params`, `ema`, and the moments in `opt_state`.
    for start in range(1, len(path) - 1):
        if path[start : start + 2] == ("quantizer", "codebook"):
            return (*path[:start], "codes", *path[start + 2 :])
    return path


def hashed_tree(variables: nnx.State) -> Any:
    """What names a tokenizer by content: parameters, codebook and statistics of BatchNorms, in the
    tree of layout 1, so that a tokenizer keeps its name and priors know the tokenizer that they
    were trained on.

    Args:
        variables: of a `Tokenizer`.
    """
    codes, params = None, []
    for path, variable in nnx.to_flat_state(variables):
        if path[0] != "quantizer":
            params.append((path, variable))
        elif path[1] == "codebook":
            if isinstance(variable, nnx.Param):
                params.append((("codes",), variable))
            else:
                codes = variable[...]
    return {"params": nnx.from_flat_state(params), "codes": codes}
