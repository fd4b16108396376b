import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mebt_jax.runtime import hashing, train_state
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.runtime_config import MeshConfig

TREE = {
    "layer": {"kernel": np.arange(512, dtype=np.float32).reshape(64, 8)},
    "bias": np.ones(3, np.float32),
}


def test_the_hash_does_not_depend_on_the_sharding():
    expected = hashing.hash_arrays(TREE)
    for axes in ((1, 8, 1, 1), (2, 4, 1, 1), (1, 1, 1, 1)):
        state, _ = train_state.create_sharded(
            lambda: jax.tree.map(jnp.asarray, TREE), mesh_lib.make_mesh(MeshConfig(*axes)), 64
        )
        assert hashing.hash_arrays(state) == expected


@pytest.mark.parametrize(
    "other",
    [
        TREE | {"bias": np.array([1, 1, 1 + 2**-23], np.float32)},
        TREE | {"bias": np.ones(3, np.float64)},
        TREE | {"bias": np.ones((3, 1), np.float32)},
        {"layer": TREE["layer"], "scale": TREE["bias"]},
        {"layer": TREE["layer"]},
    ],
    ids=["value", "dtype", "shape", "name", "missing"],
)
def test_the_hash_changes_with_everything_else(other):
    assert hashing.hash_arrays(other) != hashing.hash_arrays(TREE)
