"""Tables that know where tokens lie: neighbours are alike, all are distinct, and only positions and latents are touched."""

import jax
import numpy as np
import pytest
from flax import nnx

from configs.base import get_config
from mebt_jax.config import from_config_dict
from mebt_jax.transformer import initialization
from mebt_jax.transformer.model import MeBT

GRID = (4, 6, 5)


def test_neighbours_are_more_alike_than_distant_tokens_along_every_axis():
    table = initialization.position_table(GRID, 96).reshape(*GRID, 96)
    for axis in range(3):
        line = np.moveaxis(table, axis, 0)[:, 1, 1]  # along one axis, the others fixed
        distances = np.linalg.norm(line - line[0], axis=-1)
        assert (distances[1] < distances[2:]).all()


@pytest.mark.parametrize("width", [12, 20, 128])
def test_scale_is_that_of_the_official_noise(width):
    table = initialization.position_table((8, 16, 16), width)
    used = table[:, :width // 6 * 6]
    assert table.shape == (8 * 16 * 16, width) and not table[:, width // 6 * 6:].any()
    assert np.sqrt(np.mean(used**2)) == pytest.approx(initialization.SCALE, rel=0.1)


def test_latents_are_distinct_and_spread_over_the_whole_grid():
    latents = initialization.latent_table(GRID, 64, 96)
    positions = initialization.position_table(GRID, 96)
    assert len(np.unique(latents.round(6), axis=0)) == 64
    nearest = np.linalg.norm(latents[:, None] - positions, axis=-1).argmin(1)
    assert len(set(nearest)) >= 40
    assert all(len(set(index)) == size for index, size in zip(np.unravel_index(nearest, GRID), GRID))


def test_only_positions_and_latents_change():
    config = get_config()
    config.transformer.layers = ("encode", "decode")
    config.transformer.update({"width": 24, "heads": 2, "latents": 8})
    model = MeBT(from_config_dict(config).transformer, num_codes=7, num_positions=120, rngs=nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    initialization.place_on_grid(model, GRID)
    after = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    changed = {name for name in before if not all(
        np.array_equal(a, b) for a, b in zip(jax.tree.leaves(before[name]), jax.tree.leaves(after[name])))}
    assert changed == {"position_embedding", "latents"}
