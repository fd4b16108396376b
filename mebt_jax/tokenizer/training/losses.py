"""Loss of the tokenizer (the paper's equation 1): how well the decoder reconstructs the video from
tokens, and how near the features are to the embeddings of their tokens.

The distances of a reconstruction (`reconstruction_loss`) are apart from the pass through the
tokenizer (`reconstruct`), so that the gradient of the discriminators at the same reconstruction can
be weighed against theirs (`adversarial.py`).
"""

import jax
import jax.numpy as jnp
from flax import nnx, struct

from mebt_jax.tokenizer.autoencoder import Tokenizer
from mebt_jax.tokenizer.tokenizer_config import TokenizerConfig
from mebt_jax.tokenizer.training.lpips import LPIPS


@struct.dataclass
class TokenizerOutput:
    """Results of one pass over a batch besides the loss; `features` and `tokens` are arguments of
    `Quantizer.update`.
    """

    reconstruction: jax.Array  # [B, F, H, W, 3] float32
    features: jax.Array  # [B, T, H, W, E] float32
    tokens: jax.Array  # [B, T, H, W] int32
    batch_stats: nnx.State  # of the tokenizer's BatchNorms after this pass; empty without
    metrics: dict[str, jax.Array]  # scalars, see `QuantizerOutput` and `reconstruction_loss`


def tokenizer_loss(
    tokenizer: Tokenizer,
    video: jax.Array,
    config: TokenizerConfig,
    perceptual: LPIPS | None = None,
    frame: jax.Array | None = None,
) -> tuple[jax.Array, TokenizerOutput]:
    """Weighted sum of all terms but the adversarial ones (equation 1 of the paper; weights of
    mebt/vqgan.py:119).

    Args:
        tokenizer: differentiate with respect to its parameters.
        video: [B, F, H, W, 3] in [-0.5, 0.5].
        config: the weights.
        perceptual, frame: see `reconstruction_loss`.
    """
    quantizer_loss, output = reconstruct(tokenizer, video)
    recon_loss, metrics = reconstruction_loss(
        output.reconstruction, video, config, perceptual, frame
    )
    return quantizer_loss + recon_loss, output.replace(metrics=metrics | output.metrics)


def reconstruct(tokenizer: Tokenizer, video: jax.Array) -> tuple[jax.Array, TokenizerOutput]:
    """One pass of clips [B, F, H, W, 3] through the tokenizer, and the quantizer's weighted terms
    of the loss.
    """
    features = tokenizer.encode(video)
    quantized = tokenizer.quantizer(features)
    reconstruction = tokenizer.decode(quantized.quantized)
    return quantized.quantizer_loss, TokenizerOutput(
        reconstruction,
        features,
        quantized.tokens,
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
        real, fake = (select_frames(x, frame)[:, 0] for x in (video, reconstruction))
        distance = jnp.mean(perceptual(real, fake))
        loss, metrics["perceptual"] = loss + config.perceptual_weight * distance, distance
    return loss, metrics


def select_frames(video: jax.Array, frame: jax.Array) -> jax.Array:
    """[B, 1, H, W, 3]: the frame with index `frame`, int [B], of each clip [B, F, H, W, 3]."""
    return jnp.take_along_axis(video, jnp.expand_dims(frame, (1, 2, 3, 4)), axis=1)
