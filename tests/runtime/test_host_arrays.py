"""Batches between hosts and devices; on several processes in stages/test_several_processes.py."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from mebt_jax.runtime import host_arrays
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.runtime_config import MeshConfig

ONE = MeshConfig(data=1, fsdp=1, sequence=1, tensor=1)
ROWS = np.arange(16 * 3).reshape(16, 3)


@pytest.mark.parametrize(
    ("axes", "devices", "shard"),
    [
        ({"data": 2, "fsdp": 4}, [0, 1, 2, 3], ((0, 1, 2, 3), 8)),
        # A square of chips is not one stretch of the mesh.
        ({"data": 2, "fsdp": 4}, [0, 1, 4, 5], ((0, 1, 4, 5), 8)),
        ({"data": 4, "sequence": 2}, [2, 3], ((1,), 4)),
        # A clip is split over two hosts, which both read it.
        ({"data": 2, "sequence": 4}, [4, 5], ((1,), 2)),
        ({"tensor": 8}, [4, 5, 6, 7], ((0,), 1)),
        ({"data": 8}, range(8), ((0,), 1)),
    ],
)
def test_a_host_reads_the_clips_of_its_devices(axes, devices, shard):
    shape = dataclasses.asdict(dataclasses.replace(ONE, **axes))
    hosts = np.array(
        [types.SimpleNamespace(process_index=0 if number in devices else 1) for number in range(8)]
    )
    mesh = types.SimpleNamespace(shape=shape, devices=hosts.reshape(tuple(shape.values())))
    assert host_arrays.host_shard(mesh) == shard
    rows = np.arange(16).reshape(shard[1], -1)[list(shard[0])].reshape(-1)
    np.testing.assert_array_equal(host_arrays.host_rows(mesh, 16), rows)


def test_batches_keep_their_rows_in_order():
    mesh = mesh_lib.make_mesh(dataclasses.replace(ONE, data=2, fsdp=4))
    placed = host_arrays.put_batch(mesh, {"video": ROWS})["video"]
    assert placed.addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(host_arrays.local_rows(placed), ROWS)


def test_rows_that_every_process_holds_are_split_and_come_back_whole():
    mesh = mesh_lib.make_mesh(dataclasses.replace(ONE, data=4, tensor=2))
    first, second = host_arrays.put_rows(mesh, ROWS, ROWS[:8])
    assert first.sharding == second.sharding == mesh_lib.batch_sharding(mesh)
    for index, shard in enumerate(first.addressable_shards[::2]):
        np.testing.assert_array_equal(shard.data, ROWS[4 * index : 4 * index + 4])
    np.testing.assert_array_equal(host_arrays.on_host(first, mesh), ROWS)
    np.testing.assert_array_equal(host_arrays.local_rows(second), ROWS[:8])
    assert isinstance(host_arrays.on_host(jax.numpy.ones(8), mesh), np.ndarray)
