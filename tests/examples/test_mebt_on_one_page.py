"""The one-page example is the oracle of the package's MeBT, and works on its own."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from tiny_config import tiny_config

from mebt_jax.backbones.interface import MaskedTokens, TokenGrid
from mebt_jax.backbones.mebt.mebt_config import FLAVOURS
from mebt_jax.backbones.mebt.model import MeBT
from mebt_jax.config import from_config_dict

PATH = Path(__file__).parents[2] / "examples" / "mebt_on_one_page.py"
LAYERS = ("encode", "latent", "encode", "latent", "encode", "decode", "update", "decode")
GRID, CODES = (3, 2, 4), 11


@pytest.fixture(scope="module")
def page():
    spec = importlib.util.spec_from_file_location("mebt_on_one_page", PATH)
    sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# Only the imports and the next three functions name the package's parts.
def package_model(flavour: str) -> MeBT:
    """The package's model; "paper" or "modern" residual and positions."""
    config = from_config_dict(tiny_config()).backbone
    config = dataclasses.replace(
        config, layers=LAYERS, width=48, heads=3, num_latents=5, **FLAVOURS[flavour]
    )
    return MeBT(config, TokenGrid(CODES, GRID), rngs=nnx.Rngs(0))


def package_logits(model: MeBT, inputs: tuple[np.ndarray, ...]) -> jax.Array:
    return model.logits(model(MaskedTokens(*inputs)))


def copy_parameters(source: MeBT, target) -> None:
    """Copies by name. The package stacks the parameters of repeated units of layers; the page has a
    block per layer."""
    for name in ("token_embedding", "position_embedding", "mask_embedding", "latents"):
        getattr(target, name)[...] = getattr(source, name)[...]
    nnx.update(target.final_norm, nnx.state(source.final_norm))
    nnx.update(target.head, nnx.state(source.head, nnx.Param))
    blocks = iter(target.blocks)
    for stack in source.stacks:
        for i in range(stack.repeats):
            for block in stack.blocks:
                params = nnx.state(block, nnx.Param)
                if stack.repeats > 1:
                    params = jax.tree.map(lambda x, i=i: x[i], params)
                nnx.update(next(blocks), flat(params))
    assert next(blocks, None) is None


def flat(block: nnx.State) -> nnx.State:
    """The page has the linear layers of attention and MLP in one block."""
    attention, mlp = block["attention"], block["mlp"]
    norms = {name: block[name] for name in ("attention_norm", "mlp_norm")}
    layers = {name: attention[name] for name in ("query", "key", "value", "output")}
    return nnx.State(norms | layers | {"mlp_in": mlp["up_proj"], "mlp_out": mlp["down_proj"]})


def inputs(contexts: int, targets: int) -> tuple[np.ndarray, ...]:
    """Arguments of both models for three clips; the last clip has no context but padding."""
    rng = np.random.default_rng(1)
    tokens = int(np.prod(GRID))
    positions = np.stack([rng.permutation(tokens) for _ in range(3)])
    codes = rng.integers(CODES, size=(3, contexts))
    context_valid = np.arange(contexts) < np.array([[contexts], [contexts // 2], [0]])
    target_valid = np.arange(targets) < np.array([[targets], [targets // 2], [1]])
    target_positions = positions[:, contexts : contexts + targets]
    return codes, positions[:, :contexts], context_valid, target_positions, target_valid


@pytest.mark.parametrize(
    "flavour, residual, rotary, contexts_of_cases",
    [("paper", "normed_query", False, (9,)), ("modern", "query", True, (9, 0))],
)
def test_logits_equal_those_of_the_package(page, flavour, residual, rotary, contexts_of_cases):
    source = package_model(flavour)
    rng = np.random.default_rng(0)
    noisy = jax.tree.map(
        lambda x: x + rng.normal(0, 0.15, x.shape).astype(np.float32), nnx.state(source, nnx.Param)
    )
    nnx.update(source, noisy)  # so that biases and scales count
    config = page.Config(
        grid=GRID,
        codes=CODES,
        layers=LAYERS,
        width=48,
        heads=3,
        latents=5,
        residual=residual,
        rotary=rotary,
    )
    target = page.MeBT(config, nnx.Rngs(1))
    copy_parameters(source, target)
    expected_of = jax.jit(lambda *x: package_logits(source, x))
    actual_of = jax.jit(lambda *x: target(*x))
    for contexts in contexts_of_cases:
        arguments = inputs(contexts, targets=10)
        valid = arguments[-1]
        expected = np.asarray(expected_of(*arguments))[valid]
        assert np.std(expected) > 0.1  # else any two would be equal
        np.testing.assert_allclose(
            np.asarray(actual_of(*arguments))[valid], expected, rtol=0, atol=1e-5
        )


def test_page_fits_on_a_page():
    lines = PATH.read_text().splitlines()
    assert len(lines) <= 300
    assert max(map(len, lines)) <= 100


@pytest.fixture(scope="module")
def trained(page):
    """A tiny transformer after 20 steps on clips whose tokens all have one code, and its losses."""
    config = page.Config(
        grid=(2, 2, 3),
        codes=CODES,
        layers=("encode", "decode"),
        width=24,
        heads=2,
        latents=3,
        targets=6,
        alpha=2.0,
    )
    model = page.MeBT(config, nnx.Rngs(0))
    codes = np.repeat(np.arange(32)[:, None] % CODES, 12, axis=1)  # [clips, N]
    return model, page.train(model, page.mebt_loss, optax.adam(1e-2), codes, steps=20, batch=16)


def test_training_lowers_the_loss_of_the_transformer(trained):
    _, losses = trained
    assert np.mean(losses[-3:]) < 0.7 * np.mean(losses[:3])


def test_training_lowers_the_loss_of_the_tokenizer(page):
    config = page.Config(grid=(2, 2, 2), patch=(2, 4, 4), codes=CODES, code_width=6)
    video = np.random.default_rng(0).integers(256, size=(1, 4, 8, 8, 3)) + np.zeros((8, 1, 1, 1, 1))
    patches = page.to_patches(video.astype(np.uint8), config)
    tokenizer = page.Tokenizer(config, nnx.Rngs(0))
    tokenizer.codebook[...] = 0.1 * jax.random.normal(jax.random.key(0), tokenizer.codebook.shape)
    losses = page.train(
        tokenizer, page.tokenizer_loss, optax.adam(1e-2), patches, steps=20, batch=4
    )
    assert losses[-1] < 0.7 * losses[0]


def test_started_tokenizer_reconstructs_patches_that_are_few(page):
    config = page.Config(grid=(2, 2, 2), patch=(2, 4, 4), codes=8, code_width=8)
    video = np.random.default_rng(0).integers(256, size=(1, 4, 8, 8, 3), dtype=np.uint8)
    patches = page.to_patches(video, config)  # 8 patches for 8 codes
    tokenizer = page.Tokenizer(config, nnx.Rngs(0))
    page.start_tokenizer(tokenizer, patches[0])
    _, codes = tokenizer.encode(patches)
    assert sorted(codes[0].tolist()) == list(range(8))
    error = np.asarray(tokenizer.decode(codes)).astype(int) - patches
    assert np.abs(error).max() <= 1


def test_intervals_grow_and_masks_stay_inside_them(page):
    config = page.Config(grid=(4, 2, 2), targets=16, alpha=10.0, beta=0.5)
    for step, longest in ((0, 3), (1000, 4)):
        context, targets, valid = page.draw_masks(jax.random.key(0), step, 64, config)
        shown = np.asarray(context).reshape(64, 4, 4)
        masked = np.zeros((64, 16), bool)
        for clip, where in enumerate(np.asarray(targets)):
            masked[clip, where[np.asarray(valid)[clip]]] = True
        assert not (masked & np.asarray(context)).any()
        assert masked.any(axis=1).all()
        frames = (shown | masked.reshape(64, 4, 4)).all(axis=2)  # whole latent frames, in one run
        assert ((shown | masked.reshape(64, 4, 4)).any(axis=2) == frames).all()
        assert (
            np.abs(np.diff(np.pad(frames, ((0, 0), (1, 1))).astype(int))).sum(axis=1) == 2
        ).all()
        assert frames.sum(axis=1).max() <= longest
    assert frames.all()  # late intervals are whole clips


def test_decoding_keeps_known_tokens_and_fills_the_rest(page, trained):
    model, _ = trained
    codes = jnp.tile(jnp.array([[3], [7]]), (1, 12))
    known = jnp.tile(jnp.arange(12)[None] < 5, (2, 1))
    hidden = jnp.where(known, codes, 0)
    drafted = page.draft(model, hidden, known, jax.random.key(0), S=4)
    revised = page.revise(model, drafted, known, jax.random.key(1), rounds=1, R=3)
    for decoded in map(np.asarray, (drafted, revised)):
        assert decoded.min() >= 0 and decoded.max() < CODES
        assert (decoded == np.asarray(codes))[np.asarray(known)].all()
    assert (np.asarray(revised) != np.asarray(hidden))[~np.asarray(known)].any()
