"""Loss of the tokenizer: how well the decoder repaints the video from codes, and how near the
features stay to them.

What judges the reconstruction (`reconstruction_loss`) is apart from what judges the codes, so that
a discriminator's opinion of the same reconstruction can be weighed against it (`adversarial.py`).
"""

import jax
import jax.numpy as jnp
from flax import nnx, struct

from mebt_jax.config import TokenizerConfig
from mebt_jax.tokenizer import quantizers
from mebt_jax.tokenizer.autoencoder import Tokenizer, own_codes
from mebt_jax.tokenizer.training.lpips import LPIPS


@struct.dataclass
class TokenizerOutput:
    """What one pass over a batch gives besides the loss; `features` and `codes` feed
    `quantizers.update_codebook`.
    """

    reconstruction: jax.Array  # [B, F, H, W, 3] float32
    features: jax.Array  # [B, T, H, W, E] float32
    codes: jax.Array  # [B, T, H, W] int32
    statistics: nnx.State  # of the tokenizer's BatchNorms after this pass; empty without
    metrics: dict[str, jax.Array]  # scalars, see `quantizers.quantize` and `reconstruction_loss`


def tokenizer_loss(
    tokenizer: Tokenizer,
    codebook: quantizers.Codebook,
    video: jax.Array,
    config: TokenizerConfig,
    perceptual: LPIPS | None = None,
    frame: jax.Array | None = None,
) -> tuple[jax.Array, TokenizerOutput]:
    """Weighted sum of all terms but the adversarial ones (equation 1 of the paper; weights of
    mebt/vqgan.py:119).

    Args:
        tokenizer: the network; differentiate with respect to its parameters.
        codebook: constant here, what it counts and averages follows by
            `quantizers.update_codebook`.
        video: [B, F, H, W, 3] in [-0.5, 0.5].
        config: the weights and the number of codes.
        perceptual, frame: see `reconstruction_loss`.
    """
    codes, output = code_loss(tokenizer, codebook, video, config)
    painted, metrics = reconstruction_loss(output.reconstruction, video, config, perceptual, frame)
    return codes + painted, output.replace(metrics=metrics | output.metrics)


def code_loss(
    tokenizer: Tokenizer, codebook: quantizers.Codebook, video: jax.Array, config: TokenizerConfig
) -> tuple[jax.Array, TokenizerOutput]:
    """One pass through the tokenizer, and the weighted terms of its features and codes."""
    features = tokenizer.encode(video)
    quantized = quantizers.quantize(own_codes(tokenizer, codebook), features, config)
    reconstruction = tokenizer.decode(quantized.embeddings)
    return quantized.loss, TokenizerOutput(
        reconstruction,
        features,
        quantized.codes,
        nnx.state(tokenizer, nnx.BatchStat),
        quantized.metrics,
    )


def reconstruction_loss(
    reconstruction: jax.Array,
    video: jax.Array,
    config: TokenizerConfig,
    perceptual: LPIPS | None = None,
    frame: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Weighted distances of a reconstruction to its video, both [B, F, H, W, 3]; metrics l1, l2,
    psnr (dB), perceptual.

    Args:
        perceptual: LPIPS with trained weights, or None to go without.
        frame: int [B], the frame of each clip that LPIPS compares (mebt/vqgan.py:87).
    """
    video = video.astype(jnp.float32)
    l1 = jnp.mean(jnp.abs(reconstruction - video))
    l2 = jnp.mean(jnp.square(reconstruction - video))
    loss = config.l1_weight * l1 + config.l2_weight * l2
    metrics = {"l1": l1, "l2": l2, "psnr": -10 * jnp.log10(l2)}
    if perceptual is not None:
        distance = jnp.mean(
            perceptual(
                chosen_frames(video, frame)[:, 0], chosen_frames(reconstruction, frame)[:, 0]
            )
        )
        loss, metrics["perceptual"] = loss + config.perceptual_weight * distance, distance
    return loss, metrics


def chosen_frames(video: jax.Array, frame: jax.Array) -> jax.Array:
    """[B, 1, H, W, 3]: the frame with index `frame`, int [B], of each clip [B, F, H, W, 3]."""
    return jnp.take_along_axis(video, jnp.expand_dims(frame, (1, 2, 3, 4)), axis=1)
