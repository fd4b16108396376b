"""Our transformer computes the same function as the official program, whose PyTorch modules
computed the numbers in vectors/.
"""

import ast
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from official_weights import load_vectors, state_dict_of

from mebt_jax.backbones.interface import MaskedTokens, TokenGrid
from mebt_jax.backbones.mebt.mebt_config import FLAVOURS, MeBTConfig
from mebt_jax.backbones.mebt.model import MeBT
from mebt_jax.config import default_config, from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.interop.mebt_weights import KINDS, transformer_from_official
from mebt_jax.methods.masked.loss import masked_cross_entropy

WITH_LOSS = ("transformer_tiny", "transformer_full_decoder")
VECTORS = (
    *WITH_LOSS,
    *(
        pytest.param(f"transformer_more/{name}", marks=pytest.mark.slow)
        for name in ("odd_order", "repeated")
    ),
)


def config_of(vectors) -> MeBTConfig:
    official = ast.literal_eval(str(vectors["config"]))
    return dataclasses.replace(
        from_config_dict(default_config()).backbone,
        layers=tuple(KINDS[mode] for mode in official["mode"]),
        width=official["n_embd"],
        heads=official["n_head"],
        num_latents=official["n_lat"],
        **FLAVOURS["paper"],
        dtype="float32",
    )


@pytest.fixture(params=VECTORS, scope="module")
def official(request):
    """(vectors, config, graphdef, params) of one official model."""
    vectors = load_vectors(request.param)
    config, weights = config_of(vectors), state_dict_of(vectors)
    model = nnx.eval_shape(
        lambda: MeBT(
            config,
            TokenGrid(weights["tok_emb.weight"].shape[0], (weights["pos_emb"].shape[1], 1, 1)),
            rngs=nnx.Rngs(0),
        )
    )
    graphdef, params = nnx.split(model, nnx.Param)
    converted = transformer_from_official(weights, config)
    assert jax.tree.map(jnp.shape, converted) == jax.tree.map(lambda leaf: leaf.shape, params)
    return vectors, config, graphdef, converted


def inputs_of(vectors, case, context_padding=0, target_padding=0):
    """Tokens of one stored case; padded slots hold code 7 at position 3."""
    contexts, targets = vectors[f"{case}/context_indices"], vectors[f"{case}/target_indices"]

    def pad(x, count, value):
        return np.pad(x, [(0, 0), (0, count)], constant_values=value)

    return MaskedTokens(
        pad(np.take_along_axis(vectors["tokens"], contexts, 1), context_padding, 7),
        pad(contexts, context_padding, 3),
        pad(np.ones(contexts.shape, bool), context_padding, False),
        pad(targets, target_padding, 3),
        pad(np.ones(targets.shape, bool), target_padding, False),
    )


def test_logits_of_every_case(official):
    vectors, _, graphdef, params = official

    def logits_of(params, inputs):
        model = nnx.merge(graphdef, params)
        return model.logits(model(inputs))

    logits_of = jax.jit(logits_of)
    tokens = vectors["tokens"].shape[1]
    cases = [key.removesuffix("/logits") for key in vectors if key.endswith("/logits")]
    # All cases padded to one size, where an empty context is all padding; and the empty context as
    # an array of size 0.
    for case, pad in [(case, True) for case in cases] + [("case0", False)]:
        contexts = vectors[f"{case}/context_indices"].shape[1]
        expected = vectors[f"{case}/logits"]
        inputs = (
            inputs_of(vectors, case, tokens - contexts, contexts)
            if pad
            else inputs_of(vectors, case)
        )
        logits = logits_of(params, inputs)[:, : expected.shape[1]]
        assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("official", WITH_LOSS, indirect=True)
def test_loss_and_gradients(official):
    vectors, config, graphdef, params = official
    target_codes = np.take_along_axis(vectors["tokens"], vectors["loss/target_indices"], 1)

    def loss_fn(params):
        model = nnx.merge(graphdef, params)
        hidden = model(inputs_of(vectors, "loss"))
        valid = jnp.ones(target_codes.shape, bool)
        sums = masked_cross_entropy(
            model, hidden, target_codes, valid, block=7, label_smoothing=0.0
        )
        return sums.loss / valid.size

    loss, gradients = jax.jit(jax.value_and_grad(loss_fn))(params)
    np.testing.assert_allclose(loss, vectors["loss/value"], rtol=1e-5)

    # Converting names to our tree maps official gradients to ours in the same way as weights.
    stored = {
        name.removeprefix("gradnorm/"): norm
        for name, norm in vectors.items()
        if name.startswith("gradnorm/")
    }
    ours = official_gradients(gradients, config)
    for name, gradient in ours.items():
        # Official parameters outside the graph have no gradient; the true gradient of a key bias is
        # zero.
        np.testing.assert_allclose(
            np.linalg.norm(gradient), stored.get(name, 0.0), rtol=1e-4, atol=1e-6, err_msg=name
        )
    assert stored.keys() <= ours.keys()
    for key in (key for key in vectors if key.startswith("grad/")):
        expected = vectors[key][0].squeeze()
        assert (
            np.abs(ours[key.removeprefix("grad/")] - expected).max()
            <= 1e-4 * np.abs(expected).max()
        ), key


def official_gradients(gradients, config):
    """{official name: gradient}. Converting a state dict in which each parameter is filled with its
    index shows which of our entries it becomes.
    """
    vectors = next(
        v
        for v in map(load_vectors, WITH_LOSS)
        if len(ast.literal_eval(str(v["config"]))["mode"]) == len(config.layers)
    )
    shapes = {
        str(name): ast.literal_eval(str(shape))
        for name, shape in zip(vectors["names"], vectors["shapes"])
    }
    names = list(shapes)
    indices = transformer_from_official(
        {name: np.full(shape, i) for i, (name, shape) in enumerate(shapes.items())}, config
    )
    official = {}
    for index, gradient in zip(jax.tree.leaves(indices), jax.tree.leaves(gradients)):
        # Only a stacked parameter, with an index per layer, has several indices.
        for i in np.unique(index):
            official[names[int(i)]] = np.asarray(gradient)[np.asarray(index) == i].reshape(
                index.shape if len(np.unique(index)) == 1 else index.shape[1:]
            )
    assert sorted(official) == sorted(names), "every official name is used exactly once"
    return official


def test_repeated_layers_are_stacked_in_order():
    vectors = load_vectors("transformer_tiny")
    config = dataclasses.replace(
        config_of(vectors), layers=("encode", "latent", "encode", "latent", "decode", "update")
    )
    weights = state_dict_of(vectors)
    params = nnx.to_pure_dict(transformer_from_official(weights, config))
    stacked = params["stacks"][0]["blocks"][1]["mlp"]["up_proj"][
        "kernel"
    ]  # [2, D, 4D]: layers 1 and 3
    np.testing.assert_array_equal(stacked[0], weights["transformer.blocks.1.mlp.0.weight"].T)
    np.testing.assert_array_equal(stacked[1], weights["transformer.blocks.3.mlp.0.weight"].T)


def test_tokenizer_weights_of_a_training_checkpoint_are_ignored():
    vectors = load_vectors("transformer_full_decoder")
    weights = state_dict_of(vectors) | {
        "first_stage_model.encoder.conv_first.conv.weight": np.zeros((2, 2))
    }
    transformer_from_official(weights, config_of(vectors))


@pytest.mark.parametrize(
    "change, named",
    [
        (
            lambda weights: weights.pop("transformer.blocks.2.attn.proj.bias"),
            "transformer.blocks.2.attn.proj.bias",
        ),
        (
            lambda weights: weights.update({"label_emb.weight": np.zeros((3, 3))}),
            "label_emb.weight",
        ),
        (
            lambda weights: weights.update({"sos_emb": np.zeros((1, 9, 16))}),
            "sos_emb has shape (1, 9, 16)",
        ),
        (
            lambda weights: weights.update(
                {"transformer.blocks.0.mlp.0.weight": np.zeros((16, 64))}
            ),
            "mlp.0.weight has shape (16, 64)",
        ),
    ],
)
def test_misfits_are_named(change, named):
    vectors = load_vectors("transformer_full_decoder")
    weights = state_dict_of(vectors)
    change(weights)
    with pytest.raises(UserError) as error:
        transformer_from_official(weights, config_of(vectors))
    assert named in str(error.value)
