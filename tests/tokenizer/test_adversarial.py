"""Both halves of an adversarial step against plain references, at the smallest size; interop/ has
the official program's numbers.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from configs import base
from mebt_jax import config as config_module
from mebt_jax.nn.convolutions import ZeroPadConv3d
from mebt_jax.tokenizer.autoencoder import Tokenizer
from mebt_jax.tokenizer.training import adversarial, losses

CONFIG = config_module.from_config_dict(base.get_config()).tokenizer
CONFIG = dataclasses.replace(
    CONFIG,
    compression=(2, 2, 2),
    patch=(2, 2, 2),
    hidden=2,
    codebook_size=8,
    code_width=4,
    norm="batch",
    adversarial=dataclasses.replace(
        CONFIG.adversarial,
        frame_weight=0.5,
        video_weight=2.0,
        feature_weight=3.0,
        share=0.8,
        scale_limit=1e4,
        lecam_weight=0.1,
        channels=2,
        layers=1,
        start=4,
        ramp=2,
    ),
)
ADVERSARIAL = CONFIG.adversarial
VIDEO = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 2, 8, 8, 3)).astype(np.float32)
FRAME = np.array([1, 0])
RAMP = 0.5


@pytest.fixture(scope="module")
def networks():
    """(graphdef, params, model_state) of a tokenizer, and a function that makes discriminators."""
    tokenizer = Tokenizer(CONFIG, rngs=nnx.Rngs(0))
    # A network that starts at zero lets no gradient through.
    for kernel in (tokenizer.to_features.kernel, tokenizer.decoder.last.kernel):
        kernel[...] = 0.3 * jax.random.normal(jax.random.key(4), kernel.shape)
    disc = nnx.split(adversarial.Discriminators(ADVERSARIAL, rngs=nnx.Rngs(1)))
    return nnx.split(tokenizer, nnx.Param, ...), functools.partial(nnx.merge, *disc, copy=True)


def test_the_tokenizers_gradients_are_those_of_a_sum_of_losses_with_a_constant_scale(networks):
    (graphdef, params, model_state), discriminators = networks

    def terms(params):
        """Loss without discriminators, and the adversarial loss, of one pass."""
        tokenizer = nnx.merge(graphdef, params, model_state, copy=True)
        tokenizer.train()
        loss, output = losses.tokenizer_loss(tokenizer, VIDEO, CONFIG)
        adversarial_loss = 0.0
        for name, weight in (("frame", 0.5), ("clip", 2.0)):
            network = discriminators().networks[name]
            real, fake = VIDEO, output.reconstruction
            if name == "frame":
                real, fake = (
                    jnp.stack([x[i, f][None] for i, f in enumerate(FRAME)]) for x in (real, fake)
                )
            real, fake = network(real), network(fake)
            adversarial_loss -= weight * fake.logits.mean()
            for x, y in zip(real.features, fake.features):
                adversarial_loss += 3.0 * jnp.abs(x - y).mean()
        return loss, adversarial_loss

    @jax.jit
    def both(params):
        values, vjp_fn = jax.vjp(terms, params)
        grad_loss, grad_adv = (vjp_fn(seed)[0] for seed in ((1.0, 0.0), (0.0, 1.0)))
        norms = [optax.global_norm(g["decoder"]["last"]) for g in (grad_loss, grad_adv)]
        scale = RAMP * jnp.minimum(0.8 * norms[0] / (norms[1] + 1e-4), 1e4)
        gradients = jax.tree.map(lambda a, b: a + scale * b, grad_loss, grad_adv)
        found = adversarial.tokenizer_gradients(
            graphdef,
            params,
            model_state,
            VIDEO,
            FRAME,
            CONFIG,
            discriminators=discriminators,
            ramp_weight=RAMP,
        )
        return found, (gradients, values[0], scale)

    (gradients, loss, output), (expected, expected_loss, scale) = both(params)
    assert float(output.metrics["adversarial_scale"]) == pytest.approx(float(scale), rel=1e-4)
    assert 0 < float(scale) < RAMP * 1e4
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    jax.tree.map(
        lambda ours, theirs: np.testing.assert_allclose(
            ours, theirs, rtol=1e-3, atol=1e-5 * max(float(jnp.abs(theirs).max()), 1e-3)
        ),
        gradients,
        expected,
    )


@pytest.mark.parametrize("kind", ["hinge", "vanilla"])
def test_the_discriminators_loss_is_that_of_their_logits(networks, kind):
    _, discriminators = networks
    config = dataclasses.replace(ADVERSARIAL, loss=kind)
    fake_video = VIDEO[:, ::-1] * 0.5
    mean_logits = {"frame": jnp.array([0.1, -0.2]), "clip": jnp.array([0.3, 0.0])}
    loss, disc_pass = jax.jit(
        lambda: adversarial.discriminator_loss(
            discriminators(), fake_video, VIDEO, FRAME, mean_logits, config
        )
    )()
    expected = 0.0
    for name, weight in (("frame", 0.5), ("clip", 2.0)):
        x, y = (
            np.asarray(discriminators()(video, FRAME)[name].logits, np.float64)
            for video in (VIDEO, fake_video)
        )
        mean_real, mean_fake = np.asarray(mean_logits[name])
        if kind == "hinge":
            term = (np.maximum(1 - x, 0).mean() + np.maximum(1 + y, 0).mean()) / 2
        else:
            term = (np.log1p(np.exp(-x)).mean() + np.log1p(np.exp(y)).mean()) / 2
        beyond = np.maximum(x - mean_fake, 0) ** 2, np.maximum(mean_real - y, 0) ** 2
        expected += weight * term + 0.1 * (beyond[0].mean() + beyond[1].mean())
        np.testing.assert_allclose(disc_pass.mean_logits[name], [x.mean(), y.mean()], rtol=1e-4)
        assert float(disc_pass.metrics[f"{name}_loss"]) == pytest.approx(term, rel=1e-4)
    assert float(loss) == pytest.approx(expected, rel=1e-4)


def test_a_step_moves_parameters_running_logits_and_statistics_of_both_batches(networks):
    _, discriminators = networks
    optimizer = adversarial.make_discriminator_optimizer(ADVERSARIAL, grad_clip_norm=0.0)
    before = adversarial.new_disc_state(ADVERSARIAL, optimizer, jax.random.key(1))
    graphdef, fake = adversarial.discriminators_graph(ADVERSARIAL), -VIDEO

    def loss_fn(params):
        networks = nnx.merge(graphdef, params, before.batch_stats, copy=True)
        return adversarial.discriminator_loss(
            networks, fake, VIDEO, FRAME, before.mean_logits, ADVERSARIAL
        )

    gradients, disc_pass = jax.jit(jax.grad(loss_fn, has_aux=True))(before.params)
    after = adversarial.updated_disc_state(before, gradients, disc_pass, optimizer)
    for name, mean in after.mean_logits.items():
        np.testing.assert_allclose(mean, 0.01 * disc_pass.mean_logits[name], rtol=1e-5)
    # Adam's first step has the length of the learning rate, against the gradient.
    rate, kernel = ADVERSARIAL.learning_rate, ("networks", "clip", "layers", 0, "kernel")
    old, new, gradient = (
        dict(nnx.to_flat_state(state))[kernel][...]
        for state in (before.params, after.params, gradients)
    )
    large = np.abs(gradient) > 1e-4
    assert large.any()
    np.testing.assert_allclose((new - old)[large], -rate * np.sign(gradient)[large], rtol=0.01)
    # The normalised layer saw the real clips, then the reconstructed ones.
    networks = nnx.merge(graphdef, before.params, before.batch_stats, copy=True).networks["clip"]
    mean = 0.0
    for video in (VIDEO, fake):
        first = jax.nn.leaky_relu(networks.layers[0](video), 0.2)
        layer = networks.layers[1]
        convolved = ZeroPadConv3d.__call__(layer, first)
        mean = 0.9 * mean + 0.1 * np.asarray(convolved).mean((0, 1, 2, 3))
    stored = after.batch_stats["networks"]["clip"]["layers"][1]["norm"]["mean"][...]
    np.testing.assert_allclose(stored, mean, rtol=1e-4, atol=1e-6)


def test_the_ramp_begins_at_the_start_and_ends_at_one():
    weights = [float(adversarial.ramp(ADVERSARIAL, jnp.array(step))) for step in range(7)]
    assert weights == [0, 0, 0, 0, 0.5, 1, 1]
