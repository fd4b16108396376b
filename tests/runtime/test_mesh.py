import dataclasses
import types

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


@pytest.mark.parametrize(
    "sizes", [{"fsdp": 16}, {"data": -1, "fsdp": 3}, {"data": -1, "fsdp": -1}, {"tensor": 0}]
)
def test_a_mesh_that_does_not_fit_is_one_sentence(sizes):
    with pytest.raises(UserError, match=r"^config\.mesh [^\n]+\.$"):
        mesh_lib.make_mesh(dataclasses.replace(ONE, **sizes))


def test_a_batch_that_does_not_spread_names_the_field():
    mesh = mesh_lib.make_mesh(dataclasses.replace(ONE, data=2, fsdp=4))
    mesh_lib.check_batch_size(mesh, 16, "config.x.batch_size")
    with pytest.raises(UserError, match=r"config\.x\.batch_size .* multiple of 8"):
        mesh_lib.check_batch_size(mesh, 12, "config.x.batch_size")


def test_heads_that_do_not_spread_name_the_field():
    mesh = mesh_lib.make_mesh(dataclasses.replace(ONE, tensor=4))
    mesh_lib.check_heads(mesh, 16)
    with pytest.raises(UserError, match=r"^config\.mesh\.tensor is 4, [^\n]*heads 6; [^\n]*\.$"):
        mesh_lib.check_heads(mesh, 6)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((8, 1024), P(None, "fsdp")),  # the largest
        ((1024, 7), P("fsdp", None)),  # the only divisible one
        (
            (1024, 64, 64),
            P(None, "fsdp", None),
        ),  # the leading axis of a stack is spared, though the largest
        ((1024, 7, 7), P("fsdp", None, None)),  # unless there is no other
        ((7, 1023), P()),  # none divisible
        ((8, 8), P()),  # too small
    ],
)
def test_fsdp_splits_the_largest_divisible_axis_of_large_arrays(shape, spec):
    mesh = mesh_lib.make_mesh(dataclasses.replace(ONE, fsdp=4))
    assert (
        mesh_lib.state_sharding(
            jax.ShapeDtypeStruct(shape, np.float32), mesh, min_elements=1024
        ).spec
        == spec
    )


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        (
            "query.kernel",
            (6, 64, 32),
            P(None, ("fsdp", "sequence"), "tensor"),
        ),  # the largest axis that is left
        ("mlp_in.bias", (6, 32), P(None, "tensor")),  # too small for the rest
        ("mlp_out.kernel", (64, 32), P("tensor", ("fsdp", "sequence"))),
        ("mlp_out.bias", (32,), P()),
        ("query.kernel", (64, 31), P(("fsdp", "sequence"), None)),  # `tensor` does not divide it
        ("conv.kernel", (3, 30, 62), P(None, None, "fsdp")),  # nor do both axes together
    ],
)
def test_a_state_is_split_over_tensor_by_name_and_over_the_rest_by_shape(path, shape, spec):
    mesh = mesh_lib.make_mesh(MeshConfig(data=1, fsdp=2, sequence=2, tensor=2))
    layer, name = path.split(".")
    tree = [{layer: {name: jax.ShapeDtypeStruct(shape, np.float32)}}]
    assert mesh_lib.state_sharding(tree, mesh, min_elements=1024)[0][layer][name].spec == spec


@pytest.mark.parametrize(
    ("axes", "devices", "share"),
    [
        ({"data": 2, "fsdp": 4}, [0, 1, 2, 3], ((0, 1, 2, 3), 8)),
        (
            {"data": 2, "fsdp": 4},
            [0, 1, 4, 5],
            ((0, 1, 4, 5), 8),
        ),  # a square of chips is not one stretch of the mesh
        ({"data": 4, "sequence": 2}, [2, 3], ((1,), 4)),
        (
            {"data": 2, "sequence": 4},
            [4, 5],
            ((1,), 2),
        ),  # a clip is split over two hosts, which both read it
        ({"tensor": 8}, [4, 5, 6, 7], ((0,), 1)),
        ({"data": 8}, range(8), ((0,), 1)),
    ],
)
def test_a_host_reads_the_clips_of_its_devices(axes, devices, share):
    shape = dataclasses.asdict(dataclasses.replace(ONE, **axes))
    hosts = np.array(
        [types.SimpleNamespace(process_index=0 if number in devices else 1) for number in range(8)]
    )
    mesh = types.SimpleNamespace(shape=shape, devices=hosts.reshape(tuple(shape.values())))
    assert mesh_lib.host_share(mesh) == share
    rows = np.arange(16).reshape(share[1], -1)[list(share[0])].reshape(-1)
    np.testing.assert_array_equal(mesh_lib.host_rows(mesh, 16), rows)


def test_batches_keep_their_rows_in_order():
    mesh = mesh_lib.make_mesh(dataclasses.replace(ONE, data=2, fsdp=4))
    rows = np.arange(16 * 3).reshape(16, 3)
    placed = mesh_lib.put_batch(mesh, {"video": rows})["video"]
    assert placed.addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(mesh_lib.local_rows(placed), rows)
