"""Adversarial training of the tokenizer: two discriminators learn to tell reconstructions from real
video, and the tokenizer learns reconstructions that they take for real.

A step has two halves, after mebt/vqgan.py:95 (forward): first the tokenizer is updated against
fixed discriminators (`tokenizer_gradients`), then they are updated on reconstructions of the
updated tokenizer (`discriminator_loss`). In the official code both halves run from `start` on at
full weight. What keeps the training stable here (warm-up, ramp, a share instead of a weight, LeCAM)
is switched off by the paper's configs.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct

from mebt_jax.tokenizer.tokenizer_config import AdversarialConfig, TokenizerConfig
from mebt_jax.tokenizer.training import losses
from mebt_jax.tokenizer.training.discriminators import (
    CLIPS,
    FRAMES,
    Discriminator,
    DiscriminatorOutput,
)
from mebt_jax.tokenizer.training.lpips import LPIPS

BETA1, BETA2 = 0.5, 0.9  # of Adam (mebt/vqgan.py:207)
LOGIT_DECAY = 0.99  # of the running means of logits that LeCAM compares with
NORM_FLOOR = 1e-4  # VQGAN's, against a division by zero


class Discriminators(nnx.Module):
    """The discriminators with a weight above 0, by name: "frame" sees one random frame of each
    clip, "clip" the whole clip. They are in training mode from the start.
    """

    def __init__(self, config: AdversarialConfig, *, rngs: nnx.Rngs):
        kernels = {"frame": FRAMES, "clip": CLIPS}
        self.networks = nnx.Dict(
            {
                name: Discriminator(kernels[name], config.channels, config.layers, rngs=rngs)
                for name in discriminator_weights(config)
            }
        )
        self.train()

    def __call__(self, video: jax.Array, frame: jax.Array) -> dict[str, DiscriminatorOutput]:
        """Outputs by name for clips [B, F, H, W, 3]; `frame`, int [B], is the frame of each clip
        that "frame" sees.
        """
        views = {"frame": lambda: losses.select_frames(video, frame), "clip": lambda: video}
        return {name: network(views[name]()) for name, network in self.networks.items()}


@struct.dataclass
class DiscState:
    """State of the discriminators from step to step."""

    params: Any  # nnx.Param state of `Discriminators`
    batch_stats: Any  # nnx.BatchStat state
    opt_state: Any
    # By discriminator: running means of its logits of real and of reconstructed video, [2].
    mean_logits: dict[str, jax.Array]


def discriminator_weights(config: AdversarialConfig) -> dict[str, float]:
    """Weight of each discriminator that is trained, by name."""
    weights = {"frame": config.frame_weight, "clip": config.video_weight}
    return {name: weight for name, weight in weights.items() if weight > 0}


def make_discriminator_optimizer(
    config: AdversarialConfig, grad_clip_norm: float
) -> optax.GradientTransformation:
    """Adam at a constant rate; the norm of its gradients is clipped like that of the tokenizer's,
    but apart from them.
    """
    adam = optax.adam(config.learning_rate, b1=BETA1, b2=BETA2)
    return (
        optax.chain(optax.clip_by_global_norm(grad_clip_norm), adam) if grad_clip_norm > 0 else adam
    )


def new_disc_state(
    config: AdversarialConfig, optimizer: optax.GradientTransformation, key: jax.Array
) -> DiscState:
    _, params, batch_stats = nnx.split(
        Discriminators(config, rngs=nnx.Rngs(key)), nnx.Param, nnx.BatchStat
    )
    mean_logits = {name: jnp.zeros((2,)) for name in discriminator_weights(config)}
    return DiscState(params, batch_stats, optimizer.init(params), mean_logits)


def discriminators_graph(config: AdversarialConfig) -> nnx.GraphDef:
    """Structure of the discriminators, without making any array."""
    return nnx.graphdef(nnx.eval_shape(lambda: Discriminators(config, rngs=nnx.Rngs(0))))


def ramp(config: AdversarialConfig, step: jax.Array) -> jax.Array:
    """Weight of the discriminators in the tokenizer's loss after `step` finished steps: 0 before
    `start`, at last 1.
    """
    return jnp.clip((step + 1 - config.start) / max(config.ramp, 1), 0.0, 1.0)


# ---- the tokenizer's half ------------------------------------------------------------------------


def tokenizer_gradients(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    model_state: nnx.State,
    video: jax.Array,
    frame: jax.Array,
    config: TokenizerConfig,
    perceptual: LPIPS | None = None,
    discriminators: Callable[[], Discriminators] | None = None,
    ramp_weight: jax.Array | float = 1.0,
) -> tuple[nnx.State, jax.Array, losses.TokenizerOutput]:
    """Gradients for the tokenizer's parameters, its loss without the adversarial terms, and the
    other results of the pass.

    With x the reconstruction, L the loss of reconstruction and quantizer, A the adversarial terms,
    the gradient is that of L + scale * A; `scale` depends on both gradients at the decoder's last
    layer, so dL/dx and dA/dx are computed first and go through the tokenizer together.

    Args:
        graphdef, params, model_state: the tokenizer; `model_state` is constant here.
        video: [B, F, H, W, 3] in [-0.5, 0.5].
        frame: int [B], the frame of each clip that LPIPS and the discriminator of frames see.
        perceptual: LPIPS, or None to go without.
        discriminators: makes a copy of the discriminators, which are constant here; None in steps
            without them.
        ramp_weight: share of their full weight, see `ramp`.
    """

    def reconstruct(
        params: nnx.State,
    ) -> tuple[tuple[jax.Array, jax.Array], losses.TokenizerOutput]:
        # A copy: BatchNorms may only write to variables of the function that they run in.
        tokenizer = nnx.merge(graphdef, params, model_state, copy=True)
        tokenizer.train()
        quantizer_loss, output = losses.reconstruct(tokenizer, video)
        return (output.reconstruction, quantizer_loss), output

    (reconstruction, quantizer_loss), vjp_fn, output = jax.vjp(reconstruct, params, has_aux=True)
    recon_loss_fn = functools.partial(
        losses.reconstruction_loss, video=video, config=config, perceptual=perceptual, frame=frame
    )
    (recon_loss, metrics), grad_recon = jax.value_and_grad(recon_loss_fn, has_aux=True)(
        reconstruction
    )  # [B, F, H, W, 3]

    if discriminators is not None:
        adversarial_loss_fn = functools.partial(
            adversarial_loss,
            video=video,
            frame=frame,
            discriminators=discriminators,
            config=config.adversarial,
        )
        (_, disc_metrics), grad_adv = jax.value_and_grad(adversarial_loss_fn, has_aux=True)(
            reconstruction
        )

        def norm_at_last_layer(gradient: jax.Array) -> jax.Array:
            # Only this leaf is used, so the compiler leaves the rest of this backward pass out.
            return optax.global_norm(vjp_fn((gradient, jnp.zeros(())))[0]["decoder"]["last"])

        scale = ramp_weight * adversarial_scale(
            norm_at_last_layer(grad_recon), norm_at_last_layer(grad_adv), config.adversarial
        )
        grad_recon = grad_recon + scale * grad_adv
        metrics |= disc_metrics | {"adversarial_scale": scale}
    (gradients,) = vjp_fn((grad_recon, jnp.ones(())))
    loss = recon_loss + quantizer_loss
    return gradients, loss, output.replace(metrics=metrics | output.metrics)


def adversarial_loss(
    reconstruction: jax.Array,
    video: jax.Array,
    frame: jax.Array,
    discriminators: Callable[[], Discriminators],
    config: AdversarialConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The tokenizer's loss against the discriminators: low where they take the reconstruction for
    real, and where its features in them are those of the real clips [B, F, H, W, 3].

    Note: -mean(logits) whatever the loss of the discriminators (mebt/vqgan.py:120). The features of
    all layers but the last count equally, because the official 4 / (3 + 1) is 1 for any number of
    layers (vqgan.py:131), and, unlike the logits, are not weighted by discriminator (vqgan.py:135).
    """
    networks = discriminators()
    fake, real = networks(reconstruction, frame), networks(video, frame)
    weights = discriminator_weights(config)
    logit_loss = sum(-weight * jnp.mean(fake[name].logits) for name, weight in weights.items())
    feature_distance = sum(
        jnp.mean(jnp.abs(x - jax.lax.stop_gradient(y)))
        for name in weights
        for x, y in zip(fake[name].features, real[name].features, strict=True)
    )
    return logit_loss + config.feature_weight * feature_distance, {
        "adversarial": logit_loss,
        "feature_matching": feature_distance,
    }


def adversarial_scale(
    recon_norm: jax.Array, adversarial_norm: jax.Array, config: AdversarialConfig
) -> jax.Array:
    """Factor that makes the norm of the adversarial gradient the `share` of the norm of the
    reconstruction's, both taken at the decoder's last layer; 1 if `share` is 0.
    """
    if config.share == 0:
        return jnp.ones(())
    return jnp.minimum(
        config.share * recon_norm / (adversarial_norm + NORM_FLOOR), config.scale_limit
    )


# ---- the discriminators' half --------------------------------------------------------------------


@struct.dataclass
class DiscPass:
    """Results besides the loss of one pass of the discriminators over real and reconstructed
    clips.
    """

    # By discriminator: mean logits of real and of reconstructed video, [2].
    mean_logits: dict[str, jax.Array]
    batch_stats: nnx.State  # of BatchNorms, after the real and then the reconstructed batch
    # Scalars by name of the discriminator: frame_loss, frame_logits/real, frame_logits/fake.
    metrics: dict[str, jax.Array]


def discriminator_loss(
    discriminators: Discriminators,
    reconstruction: jax.Array,
    video: jax.Array,
    frame: jax.Array,
    mean_logits: dict[str, jax.Array],
    config: AdversarialConfig,
) -> tuple[jax.Array, DiscPass]:
    """Weighted sum of the losses of all discriminators on clips [B, F, H, W, 3].

    Args:
        discriminators: differentiate with respect to their parameters.
        frame: int [B], see `Discriminators`.
        mean_logits: those of `DiscState`.
    """
    real = discriminators(video, frame)
    fake = discriminators(jax.lax.stop_gradient(reconstruction), frame)
    total = jnp.zeros(())
    batch_logits, metrics = {}, {}
    for name, weight in discriminator_weights(config).items():
        x, y = real[name].logits, fake[name].logits
        loss = LOSSES[config.loss](x, y)
        total += weight * loss + config.lecam_weight * lecam(x, y, mean_logits[name])
        batch_logits[name] = jnp.stack([x.mean(), y.mean()])
        metrics |= {
            f"{name}_loss": loss,
            f"{name}_logits/real": x.mean(),
            f"{name}_logits/fake": y.mean(),
        }
    return total, DiscPass(batch_logits, nnx.state(discriminators, nnx.BatchStat), metrics)


def hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Mean loss of logits of real and of reconstructed video (mebt/vqgan.py:27); 1 for logits of
    0.
    """
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))


def vanilla(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The cross-entropy of the same (mebt/vqgan.py:33); log 2 for logits of 0."""
    return 0.5 * (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)))


LOSSES = {"hinge": hinge, "vanilla": vanilla}


def lecam(real: jax.Array, fake: jax.Array, mean_logits: jax.Array) -> jax.Array:
    """How far logits of real video exceed the running mean of reconstructed video, and logits of
    reconstructed video fall below that of real video (Tseng et al. 2021, equation 5, as in their
    code).

    Args:
        mean_logits: [2], of real and of reconstructed video.
    """
    return jnp.mean(jnp.square(jax.nn.relu(real - mean_logits[1]))) + jnp.mean(
        jnp.square(jax.nn.relu(mean_logits[0] - fake))
    )


def updated_disc_state(
    disc_state: DiscState,
    gradients: nnx.State,
    disc_pass: DiscPass,
    optimizer: optax.GradientTransformation,
) -> DiscState:
    """The state after one optimizer step.

    Note: the official batch statistics also see the two batches of the tokenizer's half; nothing
    reads them in training.
    """
    updates, opt_state = optimizer.update(gradients, disc_state.opt_state, disc_state.params)
    mean_logits = {
        name: LOGIT_DECAY * mean + (1 - LOGIT_DECAY) * disc_pass.mean_logits[name]
        for name, mean in disc_state.mean_logits.items()
    }
    params = optax.apply_updates(disc_state.params, updates)
    return DiscState(params, disc_pass.batch_stats, opt_state, mean_logits)
