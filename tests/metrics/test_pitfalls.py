"""What silently moves published numbers: each of these must either change the number here, or not
be possible.

docs/evaluation.md lists them all, with the test that holds each; those that are not here are beside
what they concern.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mebt_jax.data import clips, video_files
from mebt_jax.data.worlds.moving_shapes import MovingShapes
from mebt_jax.metrics.distances.frechet import frechet_distance
from mebt_jax.metrics.networks.c3d import C3D, c3d_logits
from mebt_jax.metrics.networks.i3d import I3D, i3d_logits
from mebt_jax.metrics.networks.random_features import random_features
from mebt_jax.metrics.networks.resize import resize
from mebt_jax.runtime import pictures

VIDEO = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 16, 3), dtype=np.uint8)


def equations(jaxpr):
    """All equations of a jaxpr, also those inside of calls, loops and branches."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from equations(inner)


def programs():
    video = jax.ShapeDtypeStruct((1, 16, 32, 32, 3), jnp.uint8)
    yield "random", jax.make_jaxpr(random_features)(video)
    for name, make, run in (
        ("i3d", lambda: I3D(rngs=nnx.Rngs(0)), i3d_logits),
        ("c3d", lambda: C3D(width=4, hidden=8, rngs=nnx.Rngs(0)), c3d_logits),
    ):
        graphdef, state = nnx.split(nnx.eval_shape(make))
        yield (
            name,
            jax.make_jaxpr(lambda state, video, g=graphdef, r=run: r(nnx.merge(g, state), video))(
                state, video
            ),
        )


@pytest.mark.parametrize(
    "name, program", programs(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_no_product_is_left_to_tf32_or_bfloat16(name, program):
    products = [
        e
        for e in equations(program.jaxpr)
        if e.primitive.name in ("dot_general", "conv_general_dilated")
    ]
    assert len(products) >= 3
    for equation in products:
        precision = equation.params["precision"]
        precision = precision if isinstance(precision, tuple) else (precision, precision)
        assert all(p == jax.lax.Precision.HIGHEST for p in precision), equation
        assert all(operand.aval.dtype == jnp.float32 for operand in equation.invars)


def test_resizes_differ_and_none_antialiases():
    line = jnp.zeros((64, 64, 1)).at[::2].set(1.0)  # stripes that antialiasing would make grey
    half, corner = (resize(line, (16, 16), rule) for rule in ("half_pixel", "corner"))
    assert float(half.std()) < 1e-6
    assert np.allclose(half, 0.5)  # between a light and a dark line, at every fourth
    assert np.allclose(corner, 1.0)  # on a light line, at every fourth
    enlarged = [
        resize(jnp.asarray(VIDEO[0]), (24, 24), rule)
        for rule in ("half_pixel", "corner", "aligned")
    ]
    assert min(np.abs(enlarged[i] - enlarged[j]).mean() for i in range(3) for j in range(i)) > 1


def test_order_of_colours_range_and_stride_change_the_features():
    features = np.asarray(jax.jit(random_features)(VIDEO))
    for changed in (VIDEO[..., ::-1], VIDEO // 2, VIDEO[:, np.arange(16) // 2]):
        other = np.asarray(jax.jit(random_features)(np.ascontiguousarray(changed)))
        assert np.abs(other - features).max() > 1e-2


def test_floats_of_any_range_are_refused():
    for network, video in (
        (random_features, VIDEO[:2] / np.float32(255)),
        (random_features, VIDEO[:, 0]),
    ):
        with pytest.raises(ValueError, match="features are of uint8 clips"):
            network(jnp.asarray(video))
    graphdef, state = nnx.split(nnx.eval_shape(lambda: I3D(rngs=nnx.Rngs(0))))
    with pytest.raises(ValueError, match="not of float32"):
        jax.eval_shape(
            lambda state: i3d_logits(nnx.merge(graphdef, state), jnp.zeros((1, 16, 16, 16, 3))),
            state,
        )


def test_the_codec_of_one_side_is_a_distance(tmp_path):
    shapes = MovingShapes(8, 8, 32, seed=0)
    clips_there = np.stack([shapes[i]["video"] for i in range(8)])
    for i, clip in enumerate(clips_there):
        pictures.write_mp4(tmp_path / f"{i}.mp4", clip, 8)
    as_mp4 = np.stack(
        [
            np.stack(list(video_files.read_frames(video, 32)))
            for video in video_files.find_videos(tmp_path)
        ]
    )
    as_jpeg = np.stack(
        [
            clips.decode_images([clips.encode_image(frame, 75) for frame in clip])
            for clip in clips_there
        ]
    )
    network = jax.jit(random_features)
    features = np.asarray(network(clips_there))
    assert frechet_distance(features, features) < 1e-6
    for other in (as_mp4, as_jpeg):
        assert frechet_distance(np.asarray(network(other)), features) > 1e-4


def test_bytes_are_rounded_so_that_a_round_trip_is_exact():
    every = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(clips.to_uint8(clips.to_float(every)), every)
    assert clips.to_uint8(np.float32([(100.6 / 255) - 0.5]))[0] == 101  # cutting off gives 100
