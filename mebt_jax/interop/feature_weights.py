"""Weights of the feature networks, I3D, C3D and LPIPS, from the files in circulation.

Works on mappings from official names to numpy arrays, whatever file format they come from.
"""

from collections.abc import Mapping

import numpy as np
from flax import nnx

from mebt_jax.errors import UserError
from mebt_jax.interop.names import (
    CONV2D,
    CONV3D,
    LINEAR,
    Pair,
    Part,
    Path,
    filled,
    from_official,
    part_of,
    without_counters,
)
from mebt_jax.metrics.networks.c3d import C3D, CONVOLUTIONS, FRAMES, LAST_GRID, RESOLUTION
from mebt_jax.metrics.networks.i3d import I3D
from mebt_jax.tokenizer.training.lpips import LPIPS, SCALE, SHIFT, STAGES

# Buffers of the official LPIPS module; constants in ours.
LPIPS_SCALING = {
    "scaling_layer.shift": SHIFT.reshape(1, 3, 1, 1),
    "scaling_layer.scale": SCALE.reshape(1, 3, 1, 1),
}
BATCH_NORM = {"scale": "weight", "bias": "bias", "mean": "running_mean", "variance": "running_var"}


def i3d_from_official(state_dict: Mapping[str, np.ndarray]) -> nnx.State:
    """State of `I3D(classes)` from i3d_pretrained_400.pt or _600.pt (names of
    mebt/fvd/pytorch_i3d.py).
    """
    classes = shape_of(state_dict, "logits.conv3d.bias")[0]
    state = nnx.state(nnx.eval_shape(lambda: I3D(classes, rngs=nnx.Rngs(0))))
    part = part_of(state, _i3d_pair)
    leaves = from_official(
        without_counters(state_dict), {"i3d": part}, fix="give the I3D of VideoGPT, TATS or MeBT."
    )
    return filled(state, leaves["i3d"])


def c3d_from_official(arrays: Mapping[str, np.ndarray], mean: np.ndarray) -> nnx.State:
    """State of `C3D(width, hidden, classes)` from conv3d_deepnetA_ucf.npz and the `mean` of
    mean2.npz (both of tgan2).

    Args:
        arrays: by official name, such as "conv1a/W"; the three sizes follow from their shapes.
        mean: [3, 16, 128, 171] or with leading axes of size 1; tgan2 uses rows and columns 8 to
            119 of it.
    """
    width = shape_of(arrays, "conv1a/b")[0]
    classes, hidden = shape_of(arrays, "fc8/W")
    state = nnx.state(nnx.eval_shape(lambda: C3D(width, hidden, classes, rngs=nnx.Rngs(0))))
    height, breadth = RESOLUTION
    if (
        mean.size == 0
        or mean.shape[-4:-2] != (3, FRAMES)
        or min(mean.shape[-2] - height, mean.shape[-1] - breadth) < 8
    ):
        raise UserError(
            f"The C3D mean has shape {mean.shape} instead of (3, 16, 128, 171); give the mean2.npz "
            "of tgan2."
        )
    # c3d_ucf101.py:63
    cropped = mean.reshape(mean.shape[-4:])[:, :, 8 : 8 + height, 8 : 8 + breadth]
    leaves = from_official(
        {**arrays, "mean": cropped},
        {"c3d": part_of(state, _c3d_pair)},
        fix="give the conv3d_deepnetA_ucf.npz of tgan2.",
    )
    return filled(state, leaves["c3d"])


def lpips_from_official(state_dict: Mapping[str, np.ndarray]) -> nnx.State:
    """State of `LPIPS()` from a state dict of mebt/modules/lpips.py: `net.slice*`, `lin*`, and
    perhaps `scaling_layer`.

    The files in circulation have one half each; `join_lpips` joins them.

    Raises:
        UserError: lists the parameters that are missing, unknown or of another shape; or the
            scaling is not ImageNet's.
    """
    state, part = lpips_part()
    arrays = dict(state_dict)
    for name, expected in LPIPS_SCALING.items():
        given = np.asarray(arrays.pop(name, expected))
        if not np.array_equal(given, expected):
            raise UserError(
                f"{name} of the LPIPS weights is {given.ravel()}, but every LPIPS has "
                f"{expected.ravel()}."
            )
    return filled(
        state, from_official(arrays, {"lpips": part}, fix="give LPIPS weights on VGG16.")["lpips"]
    )


def join_lpips(
    linear: Mapping[str, np.ndarray], vgg: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """One LPIPS state dict from its linear weights (`lin0.model.1.weight`, ...) and torchvision's
    VGG16 (`features.0.weight`, ...), without VGG's classifier, which LPIPS does not use.
    """
    joined = dict(linear)
    for name, array in vgg.items():
        kind, _, rest = name.partition(".")
        if kind == "classifier":
            continue
        index = rest.partition(".")[0]
        stage = next(
            (
                i
                for i, layers in enumerate(STAGES, 1)
                if kind == "features" and index in map(str, layers)
            ),
            None,
        )
        joined[f"net.slice{stage}.{rest}" if stage else name] = array
    return joined


def lpips_part() -> tuple[nnx.State, Part]:
    """Abstract state of `LPIPS()` and its leaves."""
    state = nnx.state(nnx.eval_shape(lambda: LPIPS(rngs=nnx.Rngs(0))))
    names = [
        f"net.slice{stage}.{layer}" for stage, layers in enumerate(STAGES, 1) for layer in layers
    ]

    def pair(path: Path) -> Pair:
        if path[0] == "weights":
            return Pair((f"lin{path[1]}.model.1.weight",), "1 c 1 1 -> c")
        name = names[path[1]]
        return Pair((f"{name}.weight",), CONV2D) if path[2] == "kernel" else Pair((f"{name}.bias",))

    return state, part_of(state, pair)


def shape_of(arrays: Mapping[str, np.ndarray], name: str) -> tuple[int, ...]:
    """Shape of the array `name`; raises UserError if it is missing."""
    if name not in arrays:
        raise UserError(f"The official weights do not fit: {name} is missing.")
    return tuple(arrays[name].shape)


def _i3d_pair(path: Path) -> Pair:
    if path[0] == "logits":
        return (
            Pair(("logits.conv3d.bias",))
            if path[1] == "bias"
            else Pair(("logits.conv3d.weight",), "o i 1 1 1 -> i o")
        )
    unit = ".".join(part for part in path[1:-1] if part != "norm")  # such as Mixed_3b.b1a
    return (
        Pair((f"{unit}.conv3d.weight",), CONV3D)
        if path[-1] == "kernel"
        else Pair((f"{unit}.bn.{BATCH_NORM[path[-1]]}",))
    )


def _c3d_pair(path: Path) -> Pair:
    if path == ("mean",):
        return Pair(("mean",), "c f h w -> f h w c")
    name = "fc8" if path[0] == "logits" else path[-2]
    if path[-1] == "bias":
        return Pair((f"{name}/b",))
    if name in CONVOLUTIONS:
        return Pair((f"{name}/W",), CONV3D)
    side = round(LAST_GRID**0.5)
    return (
        Pair(("fc6/W",), "o (c h w) -> (h w c) o", (("h", side), ("w", side)))
        if name == "fc6"
        else (Pair((f"{name}/W",), LINEAR))
    )
