"""Adversarial training of the tokenizer: two discriminators learn to tell reconstructions from real
video, and the decoder learns not to be told.

A step has two halves, after mebt/vqgan.py:95 (forward): first the tokenizer moves against fixed
discriminators (`tokenizer_gradients`), then they move against what it now paints
(`discriminator_loss`). In the official code both halves run from `start` on at full weight; what
keeps the game stable here (warm-up, ramp, a share instead of a weight, LeCAM) is switched off by
the paper's configs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx, struct

from mebt_jax.config import AdversarialConfig, TokenizerConfig
from mebt_jax.tokenizer import quantizers
from mebt_jax.tokenizer.training import losses
from mebt_jax.tokenizer.training.discriminators import (
    CLIPS,
    FRAMES,
    Discriminator,
    Judgement,
    updated_statistics,
)
from mebt_jax.tokenizer.training.lpips import LPIPS

BETA1, BETA2 = 0.5, 0.9  # of Adam (mebt/vqgan.py:207)
LOGIT_DECAY = 0.99  # of the running means that LeCAM compares with
NORM_FLOOR = 1e-4  # VQGAN's, against a division by zero


class Discriminators(nnx.Module):
    """Those with a weight above 0, by name: "frame" sees one random frame of each clip, "clip" the
    whole clip.
    """

    def __init__(self, config: AdversarialConfig, *, rngs: nnx.Rngs):
        kernels = {"frame": FRAMES, "clip": CLIPS}
        self.networks = nnx.Dict(
            {
                name: Discriminator(kernels[name], config.channels, config.layers, rngs=rngs)
                for name in judge_weights(config)
            }
        )

    def __call__(self, video: jax.Array, frame: jax.Array) -> dict[str, Judgement]:
        """Judges clips [B, F, H, W, 3], by the statistics of this batch; `frame`, int [B], is the
        one to look at.
        """
        views = {"frame": lambda: losses.chosen_frames(video, frame), "clip": lambda: video}
        return {
            name: network(views[name](), batch_statistics=True)
            for name, network in self.networks.items()
        }


@struct.dataclass
class Adversary:
    """What the discriminators carry from step to step."""

    params: Any  # nnx.Param state of `Discriminators`
    statistics: Any  # nnx.BatchStat state
    opt_state: Any
    logits: dict[
        str, jax.Array
    ]  # running means of each one's logits of real and of reconstructed video, [2]


def judge_weights(config: AdversarialConfig) -> dict[str, float]:
    """Weight of each discriminator that takes part."""
    weights = {"frame": config.frame_weight, "clip": config.clip_weight}
    return {name: weight for name, weight in weights.items() if weight > 0}


def make_discriminator_optimizer(
    config: AdversarialConfig, clip_norm: float
) -> optax.GradientTransformation:
    """Adam at a constant rate, its gradients clipped by themselves as those of the tokenizer
    are.
    """
    adam = optax.adam(config.learning_rate, b1=BETA1, b2=BETA2)
    return optax.chain(optax.clip_by_global_norm(clip_norm), adam) if clip_norm > 0 else adam


def new_adversary(
    config: AdversarialConfig, optimizer: optax.GradientTransformation, key: jax.Array
) -> Adversary:
    _, params, statistics = nnx.split(
        Discriminators(config, rngs=nnx.Rngs(key)), nnx.Param, nnx.BatchStat
    )
    logits = {name: jnp.zeros((2,)) for name in judge_weights(config)}
    return Adversary(params, statistics, optimizer.init(params), logits)


def discriminators_graph(config: AdversarialConfig) -> nnx.GraphDef:
    """Structure of the discriminators, without making any array."""
    return nnx.split(
        nnx.eval_shape(lambda: Discriminators(config, rngs=nnx.Rngs(0))), nnx.Param, nnx.BatchStat
    )[0]


def ramp(config: AdversarialConfig, step: jax.Array) -> jax.Array:
    """Weight of the discriminators in the tokenizer's loss after `step` finished steps: 0 before
    `start`, at last 1.
    """
    return jnp.clip((step + 1 - config.start) / max(config.ramp, 1), 0.0, 1.0)


# ---- the tokenizer's half ------------------------------------------------------------------------


def tokenizer_gradients(
    graphdef: nnx.GraphDef,
    params: nnx.State,
    codebook: quantizers.Codebook,
    video: jax.Array,
    frame: jax.Array,
    config: TokenizerConfig,
    perceptual: LPIPS | None = None,
    opponents: Discriminators | None = None,
    ramped: jax.Array | float = 1.0,
) -> tuple[nnx.State, jax.Array, losses.TokenizerOutput]:
    """Gradients for the tokenizer's parameters, its loss without the opponents' part, and the rest
    of the pass.

    Args:
        graphdef, params: the tokenizer.
        codebook: constant here.
        video: [B, F, H, W, 3] in [-0.5, 0.5].
        frame: int [B], the frame of each clip that LPIPS and the discriminator of frames look at.
        perceptual: LPIPS, or None to go without.
        opponents: the discriminators, constant here, or None before their time.
        ramped: share of their full weight, see `ramp`.
    """

    def rebuild(params: nnx.State) -> tuple[tuple[jax.Array, jax.Array], losses.TokenizerOutput]:
        tokenizer = nnx.merge(graphdef, params)
        tokenizer.train()
        loss, output = losses.code_loss(tokenizer, codebook, video, config)
        return (output.reconstruction, loss), output

    (reconstruction, of_codes), pull_back, output = jax.vjp(rebuild, params, has_aux=True)
    paint = functools.partial(
        losses.reconstruction_loss, video=video, config=config, perceptual=perceptual, frame=frame
    )
    (of_paint, metrics), toward = jax.value_and_grad(paint, has_aux=True)(
        reconstruction
    )  # [B, F, H, W, 3]

    if opponents is not None:
        judged = functools.partial(
            adversarial_loss,
            video=video,
            frame=frame,
            opponents=opponents,
            config=config.adversarial,
        )
        (_, opinions), away = jax.value_and_grad(judged, has_aux=True)(reconstruction)

        def norm_at_last_layer(direction: jax.Array) -> jax.Array:
            # Only this leaf is used, so the compiler leaves the rest of this backward pass out.
            return optax.global_norm(pull_back((direction, jnp.zeros(())))[0]["decoder"]["last"])

        scale = ramped * adversarial_scale(
            norm_at_last_layer(toward), norm_at_last_layer(away), config.adversarial
        )
        toward = toward + scale * away
        metrics |= opinions | {"adversarial_scale": scale}
    (gradients,) = pull_back((toward, jnp.ones(())))
    return gradients, of_paint + of_codes, output.replace(metrics=metrics | output.metrics)


def adversarial_loss(
    reconstruction: jax.Array,
    video: jax.Array,
    frame: jax.Array,
    opponents: Discriminators,
    config: AdversarialConfig,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """What the tokenizer pays for being told apart, and for features unlike those of the real clips
    [B, F, H, W, 3].

    Note: -mean(logits) whatever the loss of the discriminators (mebt/vqgan.py:120). The features of
    all layers but the last count equally, because the official 4 / (3 + 1) is 1 for any number of
    layers (vqgan.py:131), and, unlike the judgement, are not weighted by discriminator
    (vqgan.py:135).
    """
    fake, real = opponents(reconstruction, frame), opponents(video, frame)
    weights = judge_weights(config)
    judged = sum(-weight * jnp.mean(fake[name].logits) for name, weight in weights.items())
    matched = sum(
        jnp.mean(jnp.abs(x - jax.lax.stop_gradient(y)))
        for name in weights
        for x, y in zip(fake[name].features, real[name].features, strict=True)
    )
    return judged + config.feature_weight * matched, {
        "adversarial": judged,
        "feature_matching": matched,
    }


def adversarial_scale(
    reconstruction_norm: jax.Array, adversarial_norm: jax.Array, config: AdversarialConfig
) -> jax.Array:
    """Factor that gives the adversarial gradient its share of the reconstruction's, from their
    norms at the last layer.
    """
    if config.share == 0:
        return jnp.ones(())
    return jnp.minimum(
        config.share * reconstruction_norm / (adversarial_norm + NORM_FLOOR), config.scale_limit
    )


# ---- the discriminators' half --------------------------------------------------------------------


@struct.dataclass
class Verdict:
    """What one pass of the discriminators over real and reconstructed clips gives besides their
    loss.
    """

    logits: dict[str, jax.Array]  # mean logits of real and of reconstructed video by each one, [2]
    moments: dict[
        str, tuple[Any, Any]
    ]  # of the normalised layers, in the real and in the reconstructed batch
    metrics: dict[
        str, jax.Array
    ]  # scalars by name of the discriminator: frame_loss, frame_logits/real, frame_logits/fake


def discriminator_loss(
    judges: Discriminators,
    reconstruction: jax.Array,
    video: jax.Array,
    frame: jax.Array,
    running: dict[str, jax.Array],
    config: AdversarialConfig,
) -> tuple[jax.Array, Verdict]:
    """Weighted sum of the losses of all discriminators on clips [B, F, H, W, 3]; `running` are
    `Adversary.logits`.
    """
    real, fake = judges(video, frame), judges(jax.lax.stop_gradient(reconstruction), frame)
    total = jnp.zeros(())
    verdict = Verdict(logits={}, moments={}, metrics={})
    for name, weight in judge_weights(config).items():
        x, y = real[name].logits, fake[name].logits
        loss = LOSSES[config.loss](x, y)
        total += weight * loss + config.lecam_weight * lecam(x, y, running[name])
        verdict.logits[name] = jnp.stack([x.mean(), y.mean()])
        verdict.moments[name] = (real[name].moments, fake[name].moments)
        verdict.metrics.update(
            {f"{name}_loss": loss, f"{name}_logits/real": x.mean(), f"{name}_logits/fake": y.mean()}
        )
    return total, verdict


def hinge(real: jax.Array, fake: jax.Array) -> jax.Array:
    """Mean loss of logits of real and of reconstructed video (mebt/vqgan.py:27); 1 at
    indifference.
    """
    return 0.5 * (jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake)))


def vanilla(real: jax.Array, fake: jax.Array) -> jax.Array:
    """The cross-entropy of the same (mebt/vqgan.py:33); log 2 at indifference."""
    return 0.5 * (jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake)))


LOSSES = {"hinge": hinge, "vanilla": vanilla}


def lecam(real: jax.Array, fake: jax.Array, running: jax.Array) -> jax.Array:
    """How far logits went beyond the running means [2] of the other kind (Tseng et al. 2021,
    equation 5, as in their code).
    """
    return jnp.mean(jnp.square(jax.nn.relu(real - running[1]))) + jnp.mean(
        jnp.square(jax.nn.relu(running[0] - fake))
    )


def updated_adversary(
    adversary: Adversary,
    gradients: nnx.State,
    verdict: Verdict,
    optimizer: optax.GradientTransformation,
) -> Adversary:
    """One optimizer step, and the running statistics moved towards those of the batch, real before
    reconstructed.

    Note: the official statistics also see the two batches of the tokenizer's half; nothing reads
    them in training.
    """
    updates, opt_state = optimizer.update(gradients, adversary.opt_state, adversary.params)
    statistics = jax.tree.map(lambda x: x, adversary.statistics)  # a copy to write into
    for name, both in verdict.moments.items():
        for moments in both:
            statistics["networks"][name] = updated_statistics(statistics["networks"][name], moments)
    logits = {
        name: LOGIT_DECAY * mean + (1 - LOGIT_DECAY) * verdict.logits[name]
        for name, mean in adversary.logits.items()
    }
    return Adversary(optax.apply_updates(adversary.params, updates), statistics, opt_state, logits)
