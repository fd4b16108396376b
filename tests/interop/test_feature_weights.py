"""I3D and C3D against numbers of the official programs: i3d.npz from pytorch_i3d.py, c3d.npz from
PyTorch's own layers in the order of tgan2's c3d_ucf101.py, at a width of 4.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from official_weights import assert_close, load_vectors, state_dict_of, weights_of

from mebt_jax.errors import UserError
from mebt_jax.interop.feature_weights import c3d_from_official, i3d_from_official
from mebt_jax.metrics.networks.c3d import C3D, c3d_features, c3d_logits
from mebt_jax.metrics.networks.i3d import I3D, MIXED, i3d_logits

MEAN = (np.arange(3 * 16 * 128 * 171) % 200).reshape(3, 16, 128, 171).astype(np.float32)


def i3d_shapes():
    """Names and shapes of the official state dict, from the paper's table of channels."""
    units = {
        "Conv3d_1a_7x7": (64, 3, 7),
        "Conv3d_2b_1x1": (64, 64, 1),
        "Conv3d_2c_3x3": (192, 64, 3),
    }
    inputs = 192
    for name, (b0, b1a, b1b, b2a, b2b, b3b) in MIXED.items():
        units |= {
            f"{name}.b0": (b0, inputs, 1),
            f"{name}.b1a": (b1a, inputs, 1),
            f"{name}.b1b": (b1b, b1a, 3),
            f"{name}.b2a": (b2a, inputs, 1),
            f"{name}.b2b": (b2b, b2a, 3),
            f"{name}.b3b": (b3b, inputs, 1),
        }
        inputs = b0 + b1b + b2b + b3b
    shapes = {"logits.conv3d.weight": (400, inputs, 1, 1, 1), "logits.conv3d.bias": (400,)}
    for name, (outputs, inputs, kernel) in units.items():
        shapes[f"{name}.conv3d.weight"] = (outputs, inputs, kernel, kernel, kernel)
        shapes |= {
            f"{name}.bn.{leaf}": (outputs,)
            for leaf in ("weight", "bias", "running_mean", "running_var")
        }
        shapes[f"{name}.bn.num_batches_tracked"] = ()
    return shapes


def test_i3d_logits_are_the_official_ones():
    vectors = load_vectors("i3d")
    state = i3d_from_official(weights_of(i3d_shapes(), int(vectors["seed"])))
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: I3D(rngs=nnx.Rngs(0))))
    logits = jax.jit(lambda state, video: i3d_logits(nnx.merge(graphdef, state), video))(
        state, vectors["video"]
    )
    assert_close(logits, vectors["logits"], 1e-4)


def test_c3d_features_and_logits_are_the_official_ones():
    vectors = load_vectors("c3d")
    state = c3d_from_official(state_dict_of(vectors), MEAN)
    graphdef, _ = nnx.split(
        nnx.eval_shape(lambda: C3D(width=4, hidden=16, classes=7, rngs=nnx.Rngs(0)))
    )

    def run(state, video):
        network = nnx.merge(graphdef, state)
        return c3d_features(network, video), c3d_logits(network, video)

    features, logits = jax.jit(run)(state, vectors["video"])
    assert_close(features, vectors["features"], 1e-4)
    assert_close(logits, vectors["logits"], 1e-4)


def test_what_does_not_fit_is_listed_by_name():
    arrays = state_dict_of(load_vectors("c3d"))
    broken = {name: array for name, array in arrays.items() if name != "fc7/b"} | {
        "fc9/W": MEAN,
        "conv2a/b": np.zeros(5),
    }
    with pytest.raises(UserError) as error:
        c3d_from_official(broken, MEAN)
    for problem in (
        "fc7/b is missing",
        "fc9/W is unknown",
        "conv2a/b has shape (5,) instead of (8,)",
    ):
        assert problem in str(error.value)
    with pytest.raises(UserError, match="mean has shape"):
        c3d_from_official(arrays, MEAN[:, :, :100])


def test_clips_of_the_wrong_length_are_refused():
    with pytest.raises(ValueError, match="at least 9 frames, not 8"):
        jax.eval_shape(
            lambda: i3d_logits(I3D(rngs=nnx.Rngs(0)), jnp.zeros((1, 8, 16, 16, 3), jnp.uint8))
        )
    with pytest.raises(ValueError, match="16 frames, not 17"):
        jax.eval_shape(
            lambda: c3d_logits(
                C3D(width=4, rngs=nnx.Rngs(0)), jnp.zeros((1, 17, 16, 16, 3), jnp.uint8)
            )
        )
