"""Loss of the tokenizer: how well the decoder repaints the video from codes, and how near the features stay to them.

Called once per training and validation step. Perceptual and adversarial terms belong in `tokenizer_loss`, where the
reconstruction and the video are at hand and the weighted sum is made.
"""

import jax
import jax.numpy as jnp
from flax import struct

from mebt_jax.config import TokenizerConfig
from mebt_jax.tokenizer import quantizers
from mebt_jax.tokenizer.autoencoder import Tokenizer, own_codes


@struct.dataclass
class TokenizerOutput:
    """What one pass over a batch gives besides the loss; `features` and `codes` feed `quantizers.update_codebook`."""

    reconstruction: jax.Array  # [B, F, H, W, 3] float32
    features: jax.Array  # [B, T, H, W, E] float32
    codes: jax.Array  # [B, T, H, W] int32
    metrics: dict[str, jax.Array]  # scalars: l1, l2, psnr (dB), and those of `quantizers.quantize`


def tokenizer_loss(tokenizer: Tokenizer, codebook: quantizers.Codebook, video: jax.Array,
                   config: TokenizerConfig) -> tuple[jax.Array, TokenizerOutput]:
    """Weighted sum of reconstruction and the quantizer's terms (equation 1 of the paper; weights of mebt/vqgan.py:119).

    Args:
        tokenizer: the network; differentiate with respect to its parameters.
        codebook: constant here, what it counts and averages follows by `quantizers.update_codebook`.
        video: [B, F, H, W, 3] in [-0.5, 0.5].
        config: the weights and the number of codes.
    """
    features = tokenizer.encode(video)
    quantized = quantizers.quantize(own_codes(tokenizer, codebook), features, config)
    reconstruction = tokenizer.decode(quantized.embeddings)

    video = video.astype(jnp.float32)
    l1 = jnp.mean(jnp.abs(reconstruction - video))
    l2 = jnp.mean(jnp.square(reconstruction - video))
    loss = config.l1_weight * l1 + config.l2_weight * l2 + quantized.loss

    metrics = {"l1": l1, "l2": l2, "psnr": -10 * jnp.log10(l2), **quantized.metrics}
    return loss, TokenizerOutput(reconstruction, features, quantized.codes, metrics)
