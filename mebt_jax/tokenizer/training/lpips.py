"""LPIPS (Zhang et al. 2018): how different two images look, as a weighted distance between features
of VGG16.

Computes what mebt/modules/lpips.py computes. Its weights come from two files, see docs/interop.md.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax

from mebt_jax.nn.convolutions import draw_kernel

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
                convolutions.append(Convolution(inputs, outputs, rngs=rngs))
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
        found = []
        for i, stage in enumerate(STAGES):
            if i > 0:
                x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
            for _ in stage:
                x = jax.nn.relu(next(layers)(x))
            found.append(x)
        return found


class Convolution(nnx.Module):
    """3x3 convolution with zeros outside and a bias."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(draw_kernel(rngs.params(), (3, 3, inputs, outputs), gain=2**0.5))
        self.bias = nnx.Param(jnp.zeros((outputs,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = lax.conv_general_dilated(
            x, self.kernel[...], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y + jnp.expand_dims(self.bias[...], (0, 1, 2))


def unit_length(x: jax.Array) -> jax.Array:
    """Every feature vector [..., c] divided by its length plus 1e-10."""
    squares = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    # Below 1e-20 the length is held, or else the gradient of the root at zero would be infinite.
    return x / (jnp.sqrt(jnp.maximum(squares, 1e-20)) + 1e-10)
