"""Every mesh gives the losses, gradients and samples of one device; what is split, and what is sent
between devices.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_config import tiny_config

from mebt_jax.aot.traffic import read_traffic
from mebt_jax.backbones.interface import MaskedTokens
from mebt_jax.config import from_config_dict
from mebt_jax.methods.masked.masked_method import MaskedMethod
from mebt_jax.methods.masked.masking import MaskedExamples
from mebt_jax.methods.sampling_keys import clip_keys_program
from mebt_jax.methods.trained_prior import abstract_prior
from mebt_jax.runtime import host_arrays
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import sharding as sharding_lib
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import create_sharded, new_state
from mebt_jax.stages import prior
from mebt_jax.stages import tokenizer as tokenizer_stage

pytestmark = pytest.mark.usefixtures("quick_compiler")

ONE = (1, 1, 1, 1)
ALL = [
    (8, 1, 1, 1),
    (2, 4, 1, 1),
    (1, 2, 4, 1),
    (1, 1, 8, 1),
    (2, 1, 2, 2),
]  # data, fsdp, sequence, tensor
ALL = [
    pytest.param(
        axes, marks=() if axes == (2, 1, 2, 2) else pytest.mark.slow, id="x".join(map(str, axes))
    )
    for axes in ALL
]


def config_on(axes, **overrides):
    settings = dict(
        backbone__layers=("encode", "update", "decode"),
        backbone__num_latents=8,
        tokenizer__training__grad_clip_norm=0.0,
        prior__training__grad_clip_norm=0.0,
    )
    mesh = {f"mesh__{name}": size for name, size in zip(mesh_lib.AXES, axes)}
    return from_config_dict(tiny_config(**settings | mesh | overrides))


def train(create, step, batches):
    """Losses of a few steps, and the state after the first, whose first moments are its gradients
    times 1 - beta1.
    """
    state, losses, after_first = create(), [], None
    for number, batch in enumerate(batches):
        state, metrics = step(state, *batch, jax.random.key(2))
        losses.append(float(metrics["loss"]))
        if number == 0:
            after_first = jax.device_get(state.opt_state)
    return losses, after_first, state


@functools.cache
def trained_prior(axes):
    config = config_on(axes)
    mesh = mesh_lib.make_mesh(config.mesh)
    method = MaskedMethod.from_config(config)
    graphdef, abstract_params = abstract_prior(method)
    optimizer = make_optimizer(config.prior.training, abstract_params)

    def create():
        params = nnx.state(method.create(jax.random.key(0)), nnx.Param)
        return new_state(params, optimizer, ema=True)

    state, shardings = create_sharded(create, mesh, config.runtime.fsdp_min_elements)
    (shape,) = method.programs()
    step = prior.step_programs(config, method, graphdef, optimizer, shardings, mesh)(shape)
    batches = []
    for number in range(2):
        codes = np.random.default_rng(number).integers(0, 16, (8, *config.grid), dtype=np.int32)
        arrays = prior.put_draw(method.draw(number), mesh)
        batches.append((*host_arrays.put_rows(mesh, codes), None, arrays))
    return train(lambda: state, step, batches)


@functools.cache
def trained_tokenizer(axes):
    # The official network, all of whose convolutions reach over the borders between devices, with
    # moments over all clips.
    config = config_on(
        axes, tokenizer__patch=(1, 1, 1), tokenizer__hidden=32, tokenizer__norm="batch"
    )
    mesh = mesh_lib.make_mesh(config.mesh)
    parts = tokenizer_stage.training_parts(config)
    create = functools.partial(
        tokenizer_stage.create_state, config, parts, jax.random.key(0), jax.random.key(1)
    )
    state, shardings = create_sharded(create, mesh, config.runtime.fsdp_min_elements)
    step = functools.partial(tokenizer_stage.train_step, parts=parts, config=config.tokenizer)
    step = mesh_lib.jit(
        mesh,
        step,
        out_shardings=(shardings, mesh_lib.replicated(mesh)),
        donate_argnums=0,
    )
    videos = [
        np.random.default_rng(i).integers(0, 256, (8, 8, 16, 16, 3), dtype=np.uint8)
        for i in range(2)
    ]
    return train(
        lambda: state,
        step,
        [tuple(host_arrays.put_batch(mesh, {"video": video}).values()) for video in videos],
    )


@pytest.mark.parametrize("axes", ALL)
@pytest.mark.parametrize(
    "trained", [trained_prior, pytest.param(trained_tokenizer, marks=pytest.mark.slow)]
)
def test_losses_and_gradients_are_those_of_one_device_and_the_state_really_splits(trained, axes):
    (losses, first, state), (expected, expected_first, _) = trained(axes), trained(ONE)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(ours, theirs, atol=1e-5),
        first,
        expected_first,
    )
    _, fsdp, sequence, tensor = axes
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        (state.params, state.ema, state.opt_state)
    ):
        if leaf.size >= 512 and leaf.ndim > 1:
            names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
            by_name = tuple(names[-2:]) in sharding_lib.TENSOR_PARAMETERS
            shards = leaf.size // leaf.addressable_shards[0].data.size
            assert shards == fsdp * sequence * (tensor if by_name else 1), path


@functools.cache
def samples(axes, order):
    config = config_on(
        axes,
        decoding__order=order,
        decoding__draft_steps=3,
        decoding__bootstrap_steps=1,
        decoding__top_k=4,
    )
    mesh = mesh_lib.make_mesh(config.mesh)
    method = MaskedMethod.from_config(config)
    graphdef, abstract_params = abstract_prior(method)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype(np.float32), abstract_params
    )
    params = jax.device_put(
        params, sharding_lib.state_sharding(params, mesh, config.runtime.fsdp_min_elements)
    )
    keys = clip_keys_program(mesh)(3, *host_arrays.put_rows(mesh, np.arange(8, dtype=np.int32)))
    return np.asarray(method.sample(graphdef, params, keys, mesh=mesh).latents)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["confidence", "random"])
@pytest.mark.parametrize("axes", ALL)
def test_samples_are_those_of_one_device(axes, order):
    np.testing.assert_array_equal(samples(axes, order), samples(ONE, order))


def compiled_loss_and_gradients(axes, tokens, **overrides):
    """Text of the compiled program; its shapes are those of one device."""
    config = config_on(axes, data__frames=64, **overrides)
    mesh = mesh_lib.make_mesh(config.mesh)
    method = MaskedMethod.from_config(config)
    graphdef, params = abstract_prior(method)
    shardings = sharding_lib.state_sharding(params, mesh, config.runtime.fsdp_min_elements)
    batch, everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    integers, booleans = (
        jax.ShapeDtypeStruct((4, tokens), jnp.int32),
        jax.ShapeDtypeStruct((4, tokens), bool),
    )
    seen = MaskedTokens(integers, integers, booleans, integers, booleans)
    examples = MaskedExamples(seen, integers)

    def loss_and_gradients(params, examples):
        def loss_fn(params):
            return method.loss(nnx.merge(graphdef, params), examples, None, jax.random.key(0))[0]

        return jax.value_and_grad(loss_fn)(params)

    program = mesh_lib.jit(
        mesh,
        loss_and_gradients,
        in_shardings=(shardings, batch),
        out_shardings=(everywhere, shardings),
    )
    return program.lower(params, examples).compile().as_text()


def bytes_of_loss_and_gradients(layers, tokens, axes, loss_block=1024):
    """Bytes that a device sends, in every iteration of a loop."""
    text = compiled_loss_and_gradients(
        axes, tokens, backbone__layers=layers, method__loss_block=loss_block
    )
    return sum(read_traffic(text).sent.values())


@pytest.mark.parametrize(
    ("axes", "split"),
    [(ONE, False), ((1, 1, 1, 2), True)],  # data, fsdp, sequence, tensor
    ids=["one device", "tensor"],
)
def test_activations_of_heads_and_of_the_mlp_are_split_over_tensor(axes, split):
    # Sizes that nothing else in the program has: 22 heads of 3 channels, 4 x 66 in the MLP.
    text = compiled_loss_and_gradients(axes, 64, backbone__width=66, backbone__heads=22)
    shapes = re.findall(r"f32\[([\d,]+)\]", text)
    sizes = {int(size) for shape in shapes for size in shape.split(",")}
    whole, halves = {22, 4 * 66}, {11, 2 * 66}
    assert (whole <= sizes) == (not split) and (halves <= sizes) == split
    assert not split or not whole & sizes


def test_what_devices_send_grows_neither_with_the_tokens_nor_with_the_blocks_of_the_loss():
    few, many, many_blocks = (
        bytes_of_loss_and_gradients(
            ("encode", "update", "decode"), tokens, (2, 1, 4, 1), loss_block
        )
        for tokens, loss_block in ((64, 128), (128, 128), (128, 16))
    )
    assert 0 < few == many <= many_blocks < 1.05 * many


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "grows"),
    [
        (("encode", "latent") * 2 + ("encode", "decode", "update", "decode"), False),
        (("encode", "full", "decode"), True),
    ],
)
def test_what_grows_with_the_tokens_is_seen(layers, grows):
    few, many = (bytes_of_loss_and_gradients(layers, tokens, (1, 1, 4, 1)) for tokens in (64, 128))
    assert (many > few) == grows
