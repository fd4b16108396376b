"""Every mesh gives the losses, gradients and samples of one device; what is split, and what is sent
between devices.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from tiny_config import tiny_config

from mebt_jax.aot.traffic import read_traffic
from mebt_jax.config import from_config_dict
from mebt_jax.methods.masked import decode
from mebt_jax.methods.masked.masking import Split, draw_masking
from mebt_jax.methods.masked.plan import build_plan
from mebt_jax.methods.masked.shape_buckets import all_shapes
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime.optimizers import make_optimizer
from mebt_jax.runtime.train_state import create_sharded, new_state
from mebt_jax.stages import prior as transformer_stage
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
        transformer__layers=("encode", "update", "decode"),
        transformer__latents=8,
        tokenizer__training__clip_norm=0.0,
        transformer__training__clip_norm=0.0,
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
def trained_transformer(axes):
    config = config_on(axes)
    mesh = mesh_lib.make_mesh(config.mesh)
    graphdef, abstract_params = transformer_stage.abstract_transformer(config)
    optimizer = make_optimizer(config.transformer.training, abstract_params)
    model = lambda: transformer_stage.new_transformer(config, jax.random.key(0), None)  # noqa: E731
    state, shardings = create_sharded(
        lambda: new_state(nnx.state(model(), nnx.Param), optimizer, ema=True),
        mesh,
        config.runtime.fsdp_min_elements,
    )
    (shape,) = all_shapes(config.masking, config.grid)
    step = transformer_stage.step_programs(config, graphdef, optimizer, shardings, mesh)(shape)
    batches = []
    for number in range(2):
        codes = np.random.default_rng(number).integers(0, 16, (8, *config.grid), dtype=np.int32)
        draw = draw_masking(config.masking, config.grid, 8, seed=0, step=number)
        batches.append((*mesh_lib.put_rows(mesh, codes), *transformer_stage.place(draw, mesh)))
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
    step = jax.jit(
        mesh_lib.on_mesh(mesh, step),
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
        [tuple(mesh_lib.put_batch(mesh, {"video": video}).values()) for video in videos],
    )


@pytest.mark.parametrize("axes", ALL)
@pytest.mark.parametrize(
    "trained", [trained_transformer, pytest.param(trained_tokenizer, marks=pytest.mark.slow)]
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
            by_name = any(
                f"['{name}']['kernel']" in jax.tree_util.keystr(path)
                for name in ("query", "mlp_out", "head")
            )
            pieces = leaf.size // leaf.addressable_shards[0].data.size
            assert pieces == fsdp * sequence * (
                tensor if by_name else pieces // (fsdp * sequence)
            ), path


@functools.cache
def samples(axes, order):
    config = config_on(
        axes, sample__order=order, sample__draft_steps=3, sample__bootstrap_steps=1, sample__top_k=4
    )
    mesh = mesh_lib.make_mesh(config.mesh)
    graphdef, abstract_params = transformer_stage.abstract_transformer(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: rng.normal(0.1, 0.3, leaf.shape).astype(np.float32), abstract_params
    )
    params = jax.device_put(
        params, mesh_lib.state_sharding(params, mesh, config.runtime.fsdp_min_elements)
    )
    plan = build_plan(config.sample, math.prod(config.grid), 0)
    sharding = mesh_lib.batch_sharding(mesh)
    keys = jax.jit(decode.clip_keys, static_argnums=0, out_shardings=sharding)(3, jnp.arange(8))
    return np.asarray(
        decode.decode(graphdef, params, plan, config.grid, keys, block=16, sharding=sharding).codes
    )


@pytest.mark.slow
@pytest.mark.parametrize("order", ["confidence", "random"])
@pytest.mark.parametrize("axes", ALL)
def test_samples_are_those_of_one_device(axes, order):
    np.testing.assert_array_equal(samples(axes, order), samples(ONE, order))


def bytes_of_loss_and_gradients(layers, tokens, axes, loss_block=1024):
    """What a device sends, every turn of a loop."""
    config = config_on(
        axes, transformer__layers=layers, transformer__loss_block=loss_block, data__frames=64
    )
    mesh = mesh_lib.make_mesh(config.mesh)
    graphdef, params = transformer_stage.abstract_transformer(config)
    shardings = mesh_lib.state_sharding(params, mesh, config.runtime.fsdp_min_elements)
    batch, everywhere = mesh_lib.batch_sharding(mesh), mesh_lib.replicated(mesh)
    integers, booleans = (
        jax.ShapeDtypeStruct((4, tokens), jnp.int32),
        jax.ShapeDtypeStruct((4, tokens), bool),
    )
    split = Split(integers, integers, booleans, integers, integers, booleans)

    def loss_and_gradients(params, split):
        return jax.value_and_grad(
            lambda p: (
                transformer_stage.predict(
                    nnx.merge(graphdef, p), split, config.transformer, None
                ).loss
            )
        )(params)

    program = jax.jit(
        mesh_lib.on_mesh(mesh, loss_and_gradients),
        in_shardings=(shardings, batch),
        out_shardings=(everywhere, shardings),
    )
    return sum(read_traffic(program.lower(params, split).compile().as_text()).sent.values())


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
