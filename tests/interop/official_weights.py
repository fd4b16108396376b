"""Weights as functions of their names, the same as those of the test vectors, so that no vector
stores weights.
"""

import ast
import zlib
from pathlib import Path

import numpy as np

VECTORS = Path(__file__).parent / "vectors"


def load_vectors(name):
    """Arrays of vectors/<name>.npz; of "<file>/<group>" the group alone."""
    file, _, group = name.partition("/")
    with np.load(VECTORS / f"{file}.npz") as arrays:
        return {
            key.removeprefix(f"{group}/"): arrays[key]
            for key in arrays
            if not group or key.startswith(f"{group}/")
        }


def weight_of_name(name, shape, seed=0):
    """float32 of this shape; the first rule that applies decides its distribution."""
    w = np.asarray(
        np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**31).randn(*shape), np.float32
    )
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith("running_var") or name == "codebook.N":
        return 0.5 + np.abs(w)
    if name.endswith("running_mean"):
        return 0.1 * w
    if len(shape) == 1 and name.endswith("weight"):
        return 1 + 0.1 * w
    if "lin" in name and len(shape) == 4 and shape[0] == 1:
        return np.abs(w) / shape[1]
    if name.startswith("codebook"):
        return w
    if len(shape) > 1:
        return w * np.sqrt(2 / np.prod(shape[1:])).astype(np.float32)
    return 0.1 * w


def weights_of(shapes, seed=0):
    return {name: weight_of_name(name, shape, seed) for name, shape in shapes.items()}


def state_dict_of(vectors):
    """All weights of vectors that list their `names` and `shapes`."""
    shapes = {
        str(name): ast.literal_eval(str(shape))
        for name, shape in zip(vectors["names"], vectors["shapes"])
    }
    return weights_of(shapes, int(vectors["seed"]))


def assert_close(actual, expected, relative):
    """Largest difference against the largest expected value."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=relative * np.abs(expected).max())
