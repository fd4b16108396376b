"""Measures lose and repeat no clip, whatever the batch, and their values are stored by content."""

import jax.numpy as jnp
import numpy as np

from mebt_jax.metrics.measures import (
    Measure,
    batches,
    cached,
    compiled,
    measure_clips,
    mirrored,
    windowed,
    windows,
)
from mebt_jax.runtime.mesh import make_mesh
from mebt_jax.runtime.runtime_config import MeshConfig

CLIPS = np.random.default_rng(0).integers(0, 256, (11, 6, 4, 4, 3), dtype=np.uint8)
MEANS = Measure(
    "mean colour",
    lambda weights, video: weights * video.astype(jnp.float32).mean(axis=(1, 2, 3)),
    np.float32(2),
)
RED = Measure("red", lambda _, video: video[..., 0].astype(jnp.float32).mean(axis=(1, 2, 3)))


def test_every_clip_once_in_order_for_any_batch_and_mesh():
    expected = 2 * CLIPS.astype(np.float32).mean(axis=(1, 2, 3))
    for devices, size in ((1, 3), (8, 8), (1, 16)):
        mesh = make_mesh(MeshConfig(data=devices, fsdp=1, sequence=1, tensor=1))
        run = compiled({"mean": MEANS, "red": RED}, mesh)
        values = measure_clips(run, iter(CLIPS), size, mesh)
        np.testing.assert_allclose(values["mean"], expected, rtol=1e-5)
        np.testing.assert_allclose(values["red"], expected[:, 0] / 2, rtol=1e-5)
    assert [count for _, count in batches(iter(CLIPS), 4)] == [4, 4, 3]


def test_windows_are_those_of_the_paper_and_their_features_those_of_the_cut_clips():
    assert (
        windows(128, 16, 8) == list(range(0, 113, 8))
        and windows(16, 16, 8) == [0]
        and windows(8, 16, 8) == []
    )
    found = windowed(MEANS, 6, size=2, every=2).function(jnp.float32(2), jnp.asarray(CLIPS))
    assert found.shape == (11, 3, 3)
    np.testing.assert_allclose(
        found[:, 1], MEANS.function(jnp.float32(2), jnp.asarray(CLIPS[:, 2:4])), rtol=1e-6
    )


def test_features_are_computed_once_per_content(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return {"features": np.arange(3.0)}

    for keys in (["a", 1], ["a", 1], ["a", 2]):
        np.testing.assert_array_equal(cached(tmp_path, keys, compute)["features"], np.arange(3.0))
    assert len(calls) == 2 and len(list(tmp_path.iterdir())) == 2
    for file in tmp_path.iterdir():
        file.write_bytes(b"cut short")
    cached(tmp_path, ["a", 1], compute)
    assert len(calls) == 3


def test_every_second_clip_is_mirrored():
    first_column = Measure("left", lambda weights, video: video[:, 0, 0, 0].astype(jnp.float32))
    found = mirrored(first_column).function((), jnp.asarray(CLIPS))
    expected = np.where(np.arange(11)[:, None] % 2, CLIPS[:, 0, 0, -1], CLIPS[:, 0, 0, 0])
    np.testing.assert_array_equal(found, expected)
