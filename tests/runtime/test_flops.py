import jax
import jax.numpy as jnp

from mebt_jax.runtime.flops import matrix_flops


def flops(function, *args):
    return matrix_flops(jax.make_jaxpr(function)(*args).jaxpr)


def test_every_turn_of_a_scan_is_counted():
    def layers(x, weights):  # [4, 8], [3, 8, 8]
        return jax.lax.scan(lambda h, w: (jnp.sin(h @ w), None), x, weights)[0]

    assert flops(jax.jit(layers), jnp.zeros((4, 8)), jnp.zeros((3, 8, 8))) == 3 * 2 * 4 * 8 * 8


def test_the_largest_branch_of_a_condition_is_counted():
    x = jnp.zeros((4, 4))
    assert (
        flops(lambda x: jax.lax.cond(x[0, 0] > 0, lambda x: x @ x @ x, lambda x: x @ x, x), x)
        == 2 * 2 * 4**3
    )


def test_convolutions_forward_and_backward():
    def convolve(video, kernel):  # [1, 4, 8, 8, 3], [2, 3, 3, 3, 5]
        return jax.lax.conv_general_dilated(
            video, kernel, (2, 2, 2), "SAME", dimension_numbers=("NTHWC", "THWIO", "NTHWC")
        )

    video, kernel = jnp.zeros((1, 4, 8, 8, 3)), jnp.zeros((2, 3, 3, 3, 5))
    forward = 2 * (2 * 4 * 4 * 5) * (2 * 3 * 3 * 3)
    assert flops(convolve, video, kernel) == forward
    backward = (
        flops(jax.grad(lambda *args: convolve(*args).sum(), argnums=(0, 1)), video, kernel)
        - forward
    )
    # The products at the border with what lies outside are counted, so a little more than twice the
    # forward pass.
    assert 2 * forward <= backward < 3.5 * forward


def test_what_a_device_does_counts_for_all():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec("x")
    split = jax.shard_map(
        lambda x, w: x @ w, mesh=mesh, in_specs=(spec, jax.sharding.PartitionSpec()), out_specs=spec
    )
    assert flops(split, jnp.zeros((16, 4)), jnp.zeros((4, 4))) == 2 * 16 * 4 * 4
