import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mebt_jax.config import MeshConfig
from mebt_jax.errors import UserError
from mebt_jax.runtime import mesh as mesh_lib

ONE = MeshConfig(data=1, fsdp=1, sequence=1, tensor=1)


def test_minus_one_takes_the_devices_that_are_left():
    mesh = mesh_lib.make_mesh(dataclasses.replace(ONE, data=-1, fsdp=2))
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2, "sequence": 1, "tensor": 1}


@pytest.mark.parametrize("sizes", [{"fsdp": 16}, {"data": -1, "fsdp": 3}, {"data": -1, "fsdp": -1}, {"tensor": 0}])
def test_a_mesh_that_does_not_fit_is_one_sentence(sizes):
    with pytest.raises(UserError, match=r"^config\.mesh [^\n]+\.$"):
        mesh_lib.make_mesh(dataclasses.replace(ONE, **sizes))


def test_a_batch_that_does_not_spread_names_the_field():
    mesh = mesh_lib.make_mesh(dataclasses.replace(ONE, data=2, fsdp=4))
    mesh_lib.check_batch_size(mesh, 16, "config.x.batch_size")
    with pytest.raises(UserError, match=r"config\.x\.batch_size .* multiple of 8"):
        mesh_lib.check_batch_size(mesh, 12, "config.x.batch_size")


@pytest.mark.parametrize(("shape", "spec"), [
    ((8, 1024), P(None, "fsdp")),  # the largest
    ((1024, 7), P("fsdp", None)),  # the only divisible one
    ((1024, 64, 64), P(None, "fsdp", None)),  # the leading axis of a stack is spared, though the largest
    ((1024, 7, 7), P("fsdp", None, None)),  # unless there is no other
    ((7, 1023), P()),  # none divisible
    ((8, 8), P()),  # too small
])
def test_fsdp_splits_the_largest_divisible_axis_of_large_arrays(shape, spec):
    mesh = mesh_lib.make_mesh(dataclasses.replace(ONE, fsdp=4))
    assert mesh_lib.state_sharding(jax.ShapeDtypeStruct(shape, np.float32), mesh, min_elements=1024).spec == spec


def test_batches_keep_their_rows_in_order():
    mesh = mesh_lib.make_mesh(dataclasses.replace(ONE, data=2, fsdp=4))
    rows = np.arange(16 * 3).reshape(16, 3)
    placed = mesh_lib.put_batch(mesh, {"video": rows})["video"]
    assert placed.addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(mesh_lib.local_rows(placed), rows)
