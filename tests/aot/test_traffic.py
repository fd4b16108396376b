"""Bytes read from the text of compiled programs: written by hand, and of this machine's
compiler.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mebt_jax.aot.traffic import groups_of, read_traffic

PROGRAM = """\
HloModule program, is_scheduled=true

%sliced (param_0: f32[6,8,8], param_1: s32[]) -> f32[8,8] {
  %param_0 = f32[6,8,8]{2,1,0:T(8,128)} parameter(0)
  %param_1 = s32[]{:T(128)} parameter(1)
  %constant.1 = s32[] constant(0)
  %dynamic-slice.1 = f32[1,8,8]{2,1,0:T(8,128)} dynamic-slice(%param_0, %param_1, %constant.1, %constant.1), dynamic_slice_sizes={1,8,8}
  ROOT %bitcast.1 = f32[8,8]{1,0:T(8,128)} bitcast(%dynamic-slice.1)
}

%body (state: (s32[], f32[6,8,8], f32[8,8])) -> (s32[], f32[6,8,8], f32[8,8]) {
  %state = (s32[]{:T(128)}, f32[6,8,8]{2,1,0:T(8,128)}, /*index=2*/f32[8,8]{1,0:T(8,128)}) parameter(0)
  %turn = s32[]{:T(128)} get-tuple-element(%state), index=0
  %stack = f32[6,8,8]{2,1,0:T(8,128)} get-tuple-element(%state), index=1
  %layer = f32[8,8]{1,0:T(8,128)} fusion(%stack, %turn), kind=kLoop, calls=%sliced
  %near = f32[8,8]{1,0:T(8,128)S(1)} copy(%layer)
  %all-reduce.1 = f32[8,8]{1,0:T(8,128)} all-reduce(%layer), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%sum
  ROOT %tuple.1 = (s32[], f32[6,8,8], f32[8,8]) tuple(%turn, %stack, %all-reduce.1)
}

%condition (state.1: (s32[], f32[6,8,8], f32[8,8])) -> pred[] {
  %state.1 = (s32[], f32[6,8,8], f32[8,8]) parameter(0)
  %turn.1 = s32[] get-tuple-element(%state.1), index=0
  %limit = s32[] constant(6)
  ROOT %less = pred[]{:S(2)} compare(%turn.1, %limit), direction=LT
}

ENTRY %main (p0: f32[6,8,8], p1: f32[8,8]) -> f32[8,8] {
  %p0 = f32[6,8,8]{2,1,0:T(8,128)} parameter(0)
  %p1 = f32[8,8]{1,0:T(8,128)} parameter(1)
  %zero = s32[] constant(0)
  %start = (s32[], f32[6,8,8], f32[8,8]) tuple(%zero, %p0, %p1)
  %while.1 = (s32[], f32[6,8,8], f32[8,8]) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"6"}}
  %result = f32[8,8]{1,0:T(8,128)} get-tuple-element(%while.1), index=2
  %gathered-start = (f32[8,8], f32[16,8]) all-gather-start(%result), replica_groups={{0,4},{1,5},{2,6},{3,7}}, dimensions={0}
  %gathered = f32[16,8]{1,0} all-gather-done(%gathered-start)
  ROOT %slice.1 = f32[8,8]{1,0} slice(%gathered), slice={[0:8], [0:8]}
}
"""
LAYER = 8 * 8 * 4


def test_loops_slices_and_memory_on_the_chip():
    traffic = read_traffic(PROGRAM, devices_per_slice=4)
    # A turn: the fusion reads and writes one layer (and a number), the copy reads one, the
    # collective reads and writes one; the comparison reads two numbers and writes on the chip.
    turn = (2 * LAYER + 4) + LAYER + 2 * LAYER + 8
    assert traffic.memory == 6 * turn + 2 * LAYER + 2 * LAYER


def test_turns_of_a_loop_that_counts_to_a_constant():
    silent = PROGRAM.replace(
        ', backend_config={"known_trip_count":{"n":"6"}}', ""
    )  # as TPU programs are
    assert read_traffic(silent) == read_traffic(PROGRAM)
    unclear = read_traffic(silent.replace("direction=LT", "direction=NE"))
    assert unclear.unknown_loops == 1 and unclear.memory < read_traffic(PROGRAM).memory


def test_what_is_sent_by_rings_and_between_slices():
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
    """Compiled for eight devices: five turns of a product with weights split by rows, whose results
    are summed.
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
