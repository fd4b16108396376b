"""Bytes read from the text of compiled programs: written by hand, and of this machine's
compiler.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mebt_jax.aot.traffic import groups_of, read_traffic

# Written by hand: six iterations of a slice, a copy to the chip and a collective; then another.
PROGRAM = (Path(__file__).parent / "vectors" / "loop.hlo").read_text()
LAYER = 8 * 8 * 4


def test_loops_slices_and_memory_on_the_chip():
    traffic = read_traffic(PROGRAM, devices_per_slice=4)
    # An iteration: the fusion reads and writes one layer (and a number), the copy reads one, the
    # collective reads and writes one; the comparison reads two numbers and writes on the chip.
    iteration = (2 * LAYER + 4) + LAYER + 2 * LAYER + 8
    assert traffic.memory == 6 * iteration + 2 * LAYER + 2 * LAYER


def test_iterations_of_a_loop_that_counts_to_a_constant():
    # TPU programs do not name the count.
    silent = PROGRAM.replace(', backend_config={"known_trip_count":{"n":"6"}}', "")
    assert read_traffic(silent) == read_traffic(PROGRAM)
    unclear = read_traffic(silent.replace("direction=LT", "direction=NE"))
    assert unclear.unknown_loops == 1 and unclear.memory < read_traffic(PROGRAM).memory


def test_bytes_sent_by_rings_and_between_slices():
    traffic = read_traffic(PROGRAM, devices_per_slice=4)
    assert traffic.sent == {"all-reduce": 6 * 2 * 3 / 4 * LAYER, "all-gather": LAYER}
    assert traffic.between_slices == LAYER
    assert read_traffic(PROGRAM).between_slices == 0


@pytest.mark.parametrize(
    ("written", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
        ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
    ],
)
def test_groups_are_read_as_the_compiler_writes_them(written, groups):
    assert groups_of(f", channel_id=1, {written}, use_global_device_ids=true") == groups


def test_groups_that_are_not_understood_are_no_silent_zero():
    with pytest.raises(ValueError, match="groups"):
        groups_of("replica_groups=something new")


@pytest.fixture(scope="module")
def layers():
    """Compiled for eight devices: five iterations of a product with weights split by rows, whose
    results are summed.
    """
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))
    split = NamedSharding(mesh, P(None, "x", None))

    def run(x, weights):
        def layer(x, weight):
            return jax.lax.with_sharding_constraint(
                jnp.tanh(x @ weight), NamedSharding(mesh, P())
            ), None

        return jax.lax.scan(layer, x, weights)[0]

    whole = jax.ShapeDtypeStruct((16, 64), jnp.float32, sharding=NamedSharding(mesh, P(None, "x")))
    return (
        jax.jit(run)
        .lower(whole, jax.ShapeDtypeStruct((5, 64, 64), jnp.float32, sharding=split))
        .compile()
        .as_text()
    )


def test_collectives_of_a_compiled_loop(layers):
    sent = read_traffic(layers).sent
    assert sent["all-reduce"] == pytest.approx(5 * 2 * 7 / 8 * 16 * 64 * 4)
