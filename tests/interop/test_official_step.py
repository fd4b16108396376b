"""Both halves of an adversarial step against the official program: losses and gradients on random
weights.

vqgan_step.npz holds what mebt/vqgan.py:95 (forward) gives for optimizer_idx 0 and 1 on the video
and weights of vqgan_tiny.npz with `global_step` past the start, l1_weight 4, gan_feat_weight 4, no
LPIPS, given frames; the codebook as before in both halves.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from official_weights import assert_close, load_vectors, state_dict_of

from configs import tokenizer_ucf
from mebt_jax import config as config_module
from mebt_jax.interop.names import filled, from_official
from mebt_jax.interop.tokenizer_weights import discriminator_part, tokenizer_from_official
from mebt_jax.tokenizer.autoencoder import Tokenizer
from mebt_jax.tokenizer.training import adversarial, losses

VECTORS, STEP = load_vectors("vqgan_tiny"), load_vectors("vqgan_step")
VIDEO, FRAME = np.moveaxis(VECTORS["video"], 1, -1), STEP["frame"]
NAMES = {"frame": ("frame_discriminator", "image"), "clip": ("clip_discriminator", "video")}


def config(loss="hinge"):
    """The recipe at the sizes of the vectors, and with their norm."""
    values = config_module.default_config()
    tokenizer_ucf.use_recipe(values.tokenizer)
    values.tokenizer.norm = "group"
    values.tokenizer.adversarial.update(
        frame_weight=float(STEP["image_gan_weight"]),
        video_weight=float(STEP["video_gan_weight"]),
        channels=8,
        loss=loss,
    )
    tokenizer = config_module.from_config_dict(values).tokenizer
    return dataclasses.replace(
        tokenizer, compression=(2, 4, 4), hidden=16, codebook_size=32, code_width=8
    )


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def official():
    """(graphdef, parameters, other variables, discriminators) with the weights of the vectors."""
    weights = state_dict_of(VECTORS)
    variables = tokenizer_from_official(weights, config())
    discriminators = nnx.eval_shape(
        lambda: adversarial.Discriminators(config().adversarial, rngs=nnx.Rngs(0))
    )
    for name, (ours, _) in NAMES.items():
        state, part = discriminator_part(ours, channels=8, layers=3)
        used = {key: weights[key] for key in part.official_shapes()}
        nnx.update(
            discriminators.networks[name],
            filled(state, from_official(used, {"it": part}, fix="")["it"]),
        )
    return (
        nnx.graphdef(nnx.eval_shape(lambda: Tokenizer(config(), rngs=nnx.Rngs(0)))),
        *nnx.split_state(variables, nnx.Param, ...),
        discriminators,
    )


def test_the_tokenizer_half_has_the_official_losses_and_gradients(official):
    graphdef, params, model_state, discriminators = official
    disc_graphdef, disc_variables = nnx.split(discriminators)

    @jax.jit
    def half(params, disc_variables):
        gradients, loss, output = adversarial.tokenizer_gradients(
            graphdef,
            params,
            model_state,
            VIDEO,
            FRAME,
            config(),
            discriminators=lambda: nnx.merge(disc_graphdef, disc_variables, copy=True),
        )
        return gradients, loss, output.metrics

    gradients, loss, metrics = half(params, disc_variables)
    assert_close(loss, STEP["recon_loss"] + STEP["commitment_loss"], 1e-5)
    assert_close(metrics["adversarial"], STEP["aeloss"], 1e-4)
    assert_close(
        config().adversarial.feature_weight * metrics["feature_matching"],
        STEP["gan_feat_loss"],
        1e-5,
    )
    for leaf, name in (
        (gradients["decoder"]["last"], "decoder.conv_last"),
        (gradients["encoder"]["first"], "encoder.conv_first"),
    ):
        assert_close(
            leaf["kernel"][...],
            np.moveaxis(STEP[f"gradient/{name}.conv.weight"], (0, 1), (-1, -2)),
            1e-4,
        )


def test_the_discriminators_half_has_the_official_losses_and_gradients(official):
    graphdef, params, model_state, discriminators = official
    disc_graphdef, disc_params, batch_stats = nnx.split(discriminators, nnx.Param, ...)
    batch_stats = jax.tree.map(jnp.asarray, batch_stats)  # training writes to traced variables
    mean_logits = {name: jnp.zeros((2,)) for name in NAMES}

    @jax.jit
    def half(disc_params):
        _, output = losses.reconstruct(nnx.merge(graphdef, params, model_state), VIDEO)

        def loss(disc_params, kind):
            return adversarial.discriminator_loss(
                nnx.merge(disc_graphdef, disc_params, batch_stats, copy=True),
                output.reconstruction,
                VIDEO,
                FRAME,
                mean_logits,
                config(kind).adversarial,
            )[0]

        return loss(disc_params, "vanilla"), jax.value_and_grad(loss)(disc_params, "hinge")

    vanilla, (hinge, gradients) = half(disc_params)
    assert_close(vanilla, STEP["vanilla/discloss"], 1e-5)
    assert_close(hinge, STEP["hinge/discloss"], 1e-5)
    for name, (_, theirs) in NAMES.items():
        expected = np.moveaxis(
            STEP[f"hinge/gradient/{theirs}_discriminator.model0.0.weight"], (0, 1), (-1, -2)
        )
        found = gradients["networks"][name]["layers"][0]["kernel"][...]
        assert_close(found, expected[None] if name == "frame" else expected, 1e-4)
