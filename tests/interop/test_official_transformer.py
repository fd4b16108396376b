"""Our transformer computes the function of the official program: numbers in vectors/ were made with
its PyTorch modules.
"""

import ast
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from official_weights import load_vectors, state_dict_of

from configs.base import get_config
from mebt_jax.backbones.mebt.model import MeBT
from mebt_jax.config import TransformerConfig, from_config_dict
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
FAST_COMPILE = {
    "xla_backend_optimization_level": 0
}  # these tests compile for longer than they compute


def config_of(vectors) -> TransformerConfig:
    official = ast.literal_eval(str(vectors["config"]))
    return dataclasses.replace(
        from_config_dict(get_config()).transformer,
        layers=tuple(KINDS[mode] for mode in official["mode"]),
        width=official["n_embd"],
        heads=official["n_head"],
        latents=official["n_lat"],
        flavour="paper",
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
            num_codes=weights["tok_emb.weight"].shape[0],
            grid=(weights["pos_emb"].shape[1], 1, 1),
            rngs=nnx.Rngs(0),
        )
    )
    graphdef, params = nnx.split(model, nnx.Param)
    converted = transformer_from_official(weights, config)
    assert jax.tree.map(jnp.shape, converted) == jax.tree.map(lambda leaf: leaf.shape, params)
    return vectors, config, graphdef, converted


def inputs_of(vectors, case, context_padding=0, target_padding=0):
    """Arguments of the model for one stored case; padded slots hold code 7 at position 3."""
    contexts, targets = vectors[f"{case}/context_indices"], vectors[f"{case}/target_indices"]
    pad = lambda x, count, value: np.pad(x, [(0, 0), (0, count)], constant_values=value)  # noqa: E731
    return (
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
        return model.logits(model(*inputs))

    logits_of = jax.jit(logits_of, compiler_options=FAST_COMPILE)
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
        hidden = model(*inputs_of(vectors, "loss"))
        valid = jnp.ones(target_codes.shape, bool)
        return masked_cross_entropy(
            model, hidden, target_codes, valid, block=7, label_smoothing=0.0
        ).loss

    loss, gradients = jax.jit(jax.value_and_grad(loss_fn), compiler_options=FAST_COMPILE)(params)
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
    """{official name: gradient}, found by converting a state dict in which every parameter is
    filled with its own number.
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
    numbered = transformer_from_official(
        {name: np.full(shape, i) for i, (name, shape) in enumerate(shapes.items())}, config
    )
    found = {}
    for number, gradient in zip(jax.tree.leaves(numbered), jax.tree.leaves(gradients)):
        # Only a stacked parameter (one number per layer) has more than one number in it.
        for i in np.unique(number):
            found[names[int(i)]] = np.asarray(gradient)[np.asarray(number) == i].reshape(
                number.shape if len(np.unique(number)) == 1 else number.shape[1:]
            )
    assert sorted(found) == sorted(names), "every official name is used exactly once"
    return found


def test_repeated_layers_are_stacked_in_order():
    vectors = load_vectors("transformer_tiny")
    config = dataclasses.replace(
        config_of(vectors), layers=("encode", "latent", "encode", "latent", "decode", "update")
    )
    weights = state_dict_of(vectors)
    params = nnx.to_pure_dict(transformer_from_official(weights, config))
    stacked = params["stacks"][0]["blocks"][1]["mlp_in"]["kernel"]  # [2, D, 4D]: layers 1 and 3
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
