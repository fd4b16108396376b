import jax.numpy as jnp
import numpy as np
import pytest

from mebt_jax.nn import rotary

GRID, HEAD_WIDTH = (4, 6, 5), 24


def heads(seed, tokens=120):
    return jnp.asarray(
        np.random.default_rng(seed).normal(size=(1, tokens, 2, HEAD_WIDTH)), jnp.float32
    )


def test_scores_depend_on_the_distance_along_each_axis_alone():
    query, key = heads(0, 1), heads(1, 1)

    def score(asking, asked):
        flat = [jnp.array([[np.ravel_multi_index(place, GRID)]]) for place in (asking, asked)]
        turned = [
            rotary.rotate(x, rotary.token_angles(p, GRID, HEAD_WIDTH))
            for x, p in zip((query, key), flat)
        ]
        return np.einsum("bqkd,bqkd->k", *turned)

    np.testing.assert_allclose(
        score((0, 1, 2), (1, 3, 2)), score((2, 3, 4), (3, 5, 4)), rtol=1e-4, atol=1e-4
    )
    for other in ((3, 3, 2), (1, 4, 2), (1, 3, 1)):
        assert not np.allclose(score((0, 1, 2), (1, 3, 2)), score((0, 1, 2), other), atol=1e-2)


def test_turning_keeps_lengths():
    x = heads(2)
    turned = rotary.rotate(x, rotary.token_angles(jnp.arange(120)[None], GRID, HEAD_WIDTH))
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )


@pytest.mark.parametrize("grid", [GRID, (32, 16, 16)])
def test_no_two_cells_of_a_clip_turn_alike(grid):
    angles = np.asarray(rotary.token_angles(jnp.arange(np.prod(grid))[None], grid, 64))[0]
    turns = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).round(3)
    assert len(np.unique(turns, axis=0)) == np.prod(grid)


def test_latents_are_distinct_and_spread_over_the_whole_grid():
    latents, tokens = (
        rotary.latent_angles(64, GRID, 24),
        np.asarray(rotary.token_angles(jnp.arange(120)[None], GRID, 24))[0],
    )
    assert len(np.unique(latents.round(5), axis=0)) == 64
    nearest = np.linalg.norm(np.exp(1j * latents)[:, None] - np.exp(1j * tokens), axis=-1).argmin(1)
    assert all(
        len(set(index)) == size for index, size in zip(np.unravel_index(nearest, GRID), GRID)
    )
