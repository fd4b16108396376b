"""LPIPS (Zhang et al. 2018): how different two images look, as a weighted distance between features
of VGG16.

Computes what mebt/modules/lpips.py computes. Its weights come from two files, see docs/interop.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

# Convolutions of each stage of VGG16 by their index in torchvision's list of layers; their outputs.
STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
WIDTHS = (64, 128, 256, 512, 512)
# ImageNet's mean and standard deviation, for pixels in [-1, 1] (lpips.py:107).
SHIFT = np.array([-0.030, -0.088, -0.188], np.float32)
SCALE = np.array([0.458, 0.448, 0.450], np.float32)


class LPIPS(nnx.Module):
    """VGG16 up to its last convolution, and one weight per channel of each stage."""

    def __init__(self, *, rngs: nnx.Rngs):
        inputs = 3
        convolutions: list[nnx.Module] = []
        for stage, outputs in zip(STAGES, WIDTHS):
            for _ in stage:
                convolutions.append(
                    nnx.Conv(
                        inputs,
                        outputs,
                        (3, 3),
                        padding="SAME",
                        kernel_init=nnx.initializers.he_uniform(),
                        rngs=rngs,
                    )
                )
                inputs = outputs
        self.convolutions = nnx.List(convolutions)
        self.weights = nnx.List([nnx.Param(jnp.ones((width,)) / width) for width in WIDTHS])

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """Distance [B] of two batches of images [B, H, W, 3].

        Note: the weights were fitted to pixels in [-1, 1], but the official tokenizer gives its own
        [-0.5, 0.5] (mebt/vqgan.py:139). To compute its loss, do the same; to compare with published
        LPIPS, give [-1, 1].
        """
        distance = jnp.zeros(x.shape[0])
        for a, b, weight in zip(self.features(x), self.features(y), self.weights):
            gap = jnp.square(unit_length(a) - unit_length(b))  # [B, h, w, c]
            distance = distance + jnp.einsum(
                "bhwc,c->bhw", gap, weight[...], precision="highest"
            ).mean(axis=(1, 2))
        return distance

    def features(self, x: jax.Array) -> list[jax.Array]:
        """Last features of each stage, [B, H / 2^i, W / 2^i, c], of images [B, H, W, 3]."""
        x = (x - jnp.expand_dims(SHIFT, (0, 1, 2))) / jnp.expand_dims(SCALE, (0, 1, 2))
        layers = iter(self.convolutions)
        by_stage = []
        for i, stage in enumerate(STAGES):
            if i > 0:
                x = nnx.max_pool(x, (2, 2), strides=(2, 2))
            for _ in stage:
                x = jax.nn.relu(next(layers)(x))
            by_stage.append(x)
        return by_stage


def unit_length(x: jax.Array) -> jax.Array:
    """Every feature vector [..., c] divided by its length plus 1e-10."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # The maximum keeps the gradient of the root finite at zero.
    return x / (jnp.sqrt(jnp.maximum(squares, 1e-20)) + 1e-10)
