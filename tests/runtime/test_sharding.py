"""Where activations and the training state lie on a mesh of eight devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from tiny_config import tiny_config

from mebt_jax.config import from_config_dict
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import sharding
from mebt_jax.runtime.runtime_config import MeshConfig
from mebt_jax.tokenizer.autoencoder import Tokenizer


def mesh_of(**axes):
    return mesh_lib.make_mesh(MeshConfig(**(dict.fromkeys(mesh_lib.AXES, 1) | axes)))


def run(mesh, function, *arrays):
    """The function of arrays that every device of the mesh holds whole."""
    everywhere = mesh_lib.replicated(mesh)
    return mesh_lib.jit(mesh, function)(*(jax.device_put(x, everywhere) for x in arrays))


def shard_shape(array):
    return array.addressable_shards[0].data.shape


# ---- activations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "shape", "expected"),
    [
        (("batch", "tokens", None), (4, 8, 6), (2, 4, 6)),
        (("batch", None, "heads", None), (4, 8, 6, 5), (2, 8, 3, 5)),
        (("batch", None, "hidden"), (4, 8, 6), (2, 8, 3)),
        ((None, "vocabulary"), (4, 6), (4, 3)),
        (("batch", "tokens", "hidden"), (1, 8, 1), (1, 4, 1)),  # shorter than the devices
    ],
)
def test_activations_are_split_by_the_names_of_their_axes(axes, shape, expected):
    mesh = mesh_of(data=2, sequence=2, tensor=2)
    x = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    y = run(mesh, lambda x: sharding.constrain(x, *axes), x)
    assert shard_shape(y) == expected
    np.testing.assert_array_equal(y, x)


def test_both_batch_axes_split_clips():
    y = run(mesh_of(data=2, fsdp=4), lambda x: sharding.constrain(x, "batch"), np.ones(16))
    assert shard_shape(y) == (2,)


def test_without_a_mesh_nothing_is_placed():
    def program(x):
        assert not sharding.is_sharded("batch") and sharding.platform() == jax.default_backend()
        assert sharding.constrain(x, "batch") is x and sharding.gather({"x": x})["x"] is x
        assert sharding.on_each_device(abs, (("batch",),), ("batch",)) is abs
        return sharding.copies(x, ("batch", "tokens"), None)

    assert jax.jit(program)(np.ones(3)).shape == (1, 1, 3)


def test_an_axis_is_sharded_where_its_mesh_axes_have_several_devices():
    found = {}

    def program(x):
        found.update((axis, sharding.is_sharded(axis)) for axis in sharding.ACTIVATIONS)
        found["platform"] = sharding.platform()
        return x

    run(mesh_of(fsdp=4, tensor=2), program, 1.0)
    split = {axis for axis, sharded in found.items() if sharded is True}
    assert split == {"batch", "heads", "hidden", "vocabulary"} and found["platform"] == "cpu"


def test_each_device_has_a_copy_of_its_own_and_gradients_add_up():
    mesh = mesh_of(data=2, sequence=4)
    x, weights = np.arange(3.0, dtype=np.float32), np.arange(8.0, dtype=np.float32).reshape(2, 4)

    def copies(x):
        return sharding.copies(x, ("batch", "tokens"), None)

    y = run(mesh, copies, x)
    assert y.shape == (2, 4, 3) and shard_shape(y) == (1, 1, 3)
    np.testing.assert_array_equal(y, np.broadcast_to(x, (2, 4, 3)))

    def loss(x):
        return (weights[:, :, None] * copies(x)).sum()

    np.testing.assert_array_equal(run(mesh, jax.grad(loss), x), [weights.sum()] * 3)


def test_a_kernel_gets_the_shard_of_each_device():
    mesh, shapes = mesh_of(data=2, tensor=4), []

    def kernel(x, scale):  # a sum over the axis that no device splits
        shapes.append((x.shape, scale.shape))
        return (x * scale[:, None, None]).sum(axis=1)

    def program(x, scale):
        axes = (("batch", None, "heads"), ("batch",))
        return sharding.on_each_device(kernel, axes, ("batch", "heads"))(x, scale)

    x, scale = np.random.default_rng(0).random((4, 5, 8)), np.arange(4.0)
    y = run(mesh, program, x.astype(np.float32), scale.astype(np.float32))
    assert shapes[0] == ((2, 5, 2), (2,)) and shard_shape(y) == (2, 2)
    np.testing.assert_allclose(y, (x * scale[:, None, None]).sum(axis=1), rtol=1e-6)


# ---- parameters and training state ---------------------------------------------------------------


def test_gathered_parameters_are_whole_but_for_tensor_and_their_gradients_are_placed_anywhere():
    mesh = mesh_of(fsdp=2, sequence=2, tensor=2)
    rng = np.random.default_rng(0)
    params = {
        layer: {"kernel": rng.random((8, 16), np.float32)} for layer in ("query", "output", "other")
    }
    shardings = sharding.state_sharding(params, mesh, min_elements=1)
    gathered = mesh_lib.jit(mesh, sharding.gather, in_shardings=(shardings,))(params)
    shapes = {layer: shard_shape(leaf["kernel"]) for layer, leaf in gathered.items()}
    assert shapes == {"query": (8, 8), "output": (4, 16), "other": (8, 16)}
    jax.tree.map(np.testing.assert_array_equal, gathered, params)

    def loss(params):
        return sum(jnp.square(leaf["kernel"]).sum() for leaf in sharding.gather(params).values())

    gradient = mesh_lib.jit(
        mesh, jax.grad(loss), in_shardings=(shardings,), out_shardings=shardings
    )
    jax.tree.map(
        lambda g, p: np.testing.assert_allclose(g, 2 * p, rtol=1e-6), gradient(params), params
    )
    # One constraint for each kernel forward, and none backward.
    assert str(gradient.trace(params).jaxpr).count("sharding_constraint") == len(params)


@pytest.mark.parametrize(
    ("shape", "spec"),
    [
        ((8, 1024), P(None, "fsdp")),  # the largest
        ((1024, 7), P("fsdp", None)),  # the only divisible one
        ((1024, 64, 64), P(None, "fsdp", None)),  # not the leading axis of a stack
        ((1024, 7, 7), P("fsdp", None, None)),  # unless there is no other
        ((7, 1023), P()),  # none divisible
        ((8, 8), P()),  # too small
    ],
)
def test_fsdp_splits_the_largest_divisible_axis_of_large_arrays(shape, spec):
    array = jax.ShapeDtypeStruct(shape, np.float32)
    assert sharding.state_sharding(array, mesh_of(fsdp=4), min_elements=1024).spec == spec


@pytest.mark.parametrize(
    ("path", "shape", "spec"),
    [
        # The largest of the other axes.
        ("query.kernel", (6, 64, 32), P(None, ("fsdp", "sequence"), "tensor")),
        ("up_proj.bias", (6, 32), P(None, "tensor")),  # too small for the rest
        ("down_proj.kernel", (64, 32), P("tensor", ("fsdp", "sequence"))),
        ("down_proj.bias", (32,), P()),
        ("query.kernel", (64, 31), P(("fsdp", "sequence"), None)),  # `tensor` does not divide it
        ("conv.kernel", (3, 30, 62), P(None, None, "fsdp")),  # nor do both axes together
    ],
)
def test_a_state_is_split_over_tensor_by_name_and_over_the_rest_by_shape(path, shape, spec):
    mesh = mesh_of(fsdp=2, sequence=2, tensor=2)
    layer, name = path.split(".")
    tree = [{layer: {name: jax.ShapeDtypeStruct(shape, np.float32)}}]
    assert sharding.state_sharding(tree, mesh, min_elements=1024)[0][layer][name].spec == spec
    ((abstract,),) = [jax.tree.leaves(sharding.with_sharding(tree, mesh, min_elements=1024))]
    assert abstract.shape == shape and abstract.sharding == NamedSharding(mesh, spec)


def test_only_layers_of_backbones_are_split_over_tensor_by_name():
    """The tokenizer is split by clips alone, so none of its layers may have a name of the table."""
    config = from_config_dict(tiny_config(tokenizer__patch=(1, 1, 1)))
    names = {
        tuple(str(entry.key) for entry in path if isinstance(entry, jax.tree_util.DictKey))[-2:]
        for path, _ in jax.tree_util.tree_leaves_with_path(
            nnx.to_pure_dict(
                nnx.eval_shape(lambda: nnx.state(Tokenizer(config.tokenizer, rngs=nnx.Rngs(0))))
            )
        )
    }
    assert len(names) > 5 and not names & sharding.TENSOR_PARAMETERS.keys()
