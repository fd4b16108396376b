"""I3D (Carreira & Zisserman 2017), the network whose Kinetics-400 logits FVD compares.

Computes what mebt/fvd/pytorch_i3d.py computes (the port of VideoGPT, DIGAN and TATS) with BatchNorm
epsilon 1e-5, and what the original on TensorFlow Hub computes with 1e-3. Everything is float32 at
highest precision on every platform.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from mebt_jax.metrics.networks.resize import check_bytes, resize
from mebt_jax.nn.convolutions import Size, convolve, draw_kernel
from mebt_jax.nn.norms import BatchNorm

RESOLUTION = (224, 224)
MIN_FRAMES = 9  # of nine frames two time steps are left, the window of the last pooling

# Channels of the branches of each mixed block: 1x1x1; 1x1x1, 3x3x3; 1x1x1, 3x3x3; pool, 1x1x1
# (paper, Figure 3).
MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}
LAYERS = ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3", *MIXED)
# (window, strides) of the pooling in front of the block of that name.
POOLS = {
    "Conv3d_2b_1x1": ((1, 3, 3), (1, 2, 2)),
    "Mixed_3b": ((1, 3, 3), (1, 2, 2)),
    "Mixed_4b": ((3, 3, 3), (2, 2, 2)),
    "Mixed_5b": ((2, 2, 2), (2, 2, 2)),
}


def i3d_logits(network: "I3D", video: jax.Array, *, resize_rule: str = "half_pixel") -> jax.Array:
    """Class logits, averaged over time, float32 [B, classes], of uint8 clips [B, F, H, W, 3] of at
    least 9 frames.

    Args:
        network: with converted weights.
        video: any size; frames are stretched to 224x224.
        resize_rule: see `resize`; "half_pixel" is mebt/fvd/fvd.py:18, "corner" the original
            FVD code.
    """
    check_bytes(video)
    return network(resize(video, RESOLUTION, resize_rule) * (2 / 255) - 1)


class I3D(nnx.Module):
    """Layers by the names of the paper; `classes` logits from clips [B, F, 224, 224, 3] in [-1,
    1].
    """

    def __init__(self, classes: int = 400, *, epsilon: float = 1e-5, rngs: nnx.Rngs):
        def unit(
            inputs: int, outputs: int, kernel_size: Size = (1, 1, 1), strides: Size = (1, 1, 1)
        ) -> Unit:
            return Unit(inputs, outputs, kernel_size, strides, epsilon=epsilon, rngs=rngs)

        blocks = {
            "Conv3d_1a_7x7": unit(3, 64, (7, 7, 7), (2, 2, 2)),
            "Conv3d_2b_1x1": unit(64, 64),
            "Conv3d_2c_3x3": unit(64, 192, (3, 3, 3)),
        }
        channels = 192
        for name, widths in MIXED.items():
            blocks[name] = Mixed(channels, widths, epsilon=epsilon, rngs=rngs)
            channels = widths[0] + widths[2] + widths[4] + widths[5]
        self.blocks = nnx.Dict(blocks)
        self.logits = nnx.Linear(channels, classes, precision="highest", rngs=rngs)

    def __call__(self, video: jax.Array) -> jax.Array:
        """[B, F, 224, 224, 3] in [-1, 1] -> logits [B, classes], the mean over the temporal
        windows.
        """
        return self.logits(self.pooled(video)).mean(axis=1)

    def pooled(self, video: jax.Array) -> jax.Array:
        """[B, F, 224, 224, 3] -> features in front of the logits, [B, F / 8 - 1, 1024]."""
        if video.shape[1] < MIN_FRAMES:
            raise ValueError(
                f"I3D needs clips of at least {MIN_FRAMES} frames, not {video.shape[1]}"
            )
        x = video
        with jax.default_matmul_precision("highest"):
            for name in LAYERS:
                if name in POOLS:
                    x = max_pool(x, *POOLS[name])
                x = self.blocks[name](x)
        return nnx.avg_pool(x, (2, 7, 7))[:, :, 0, 0]


class Mixed(nnx.Module):
    """Four branches side by side, an Inception block in 3D."""

    def __init__(self, inputs: int, widths: tuple[int, ...], *, epsilon: float, rngs: nnx.Rngs):
        def unit(inputs: int, outputs: int, kernel_size: Size = (1, 1, 1)) -> Unit:
            return Unit(inputs, outputs, kernel_size, (1, 1, 1), epsilon=epsilon, rngs=rngs)

        self.b0 = unit(inputs, widths[0])
        self.b1a, self.b1b = unit(inputs, widths[1]), unit(widths[1], widths[2], (3, 3, 3))
        self.b2a, self.b2b = unit(inputs, widths[3]), unit(widths[3], widths[4], (3, 3, 3))
        self.b3b = unit(inputs, widths[5])

    def __call__(self, x: jax.Array) -> jax.Array:
        branches = (
            self.b0(x),
            self.b1b(self.b1a(x)),
            self.b2b(self.b2a(x)),
            self.b3b(max_pool(x, (3, 3, 3), (1, 1, 1))),
        )
        return jnp.concatenate(branches, axis=-1)


class Unit(nnx.Module):
    """Convolution without bias, normalisation by stored statistics, ReLU."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: Size,
        strides: Size,
        *,
        epsilon: float,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(
            draw_kernel(rngs.params(), (*kernel_size, inputs, outputs), gain=2**0.5)
        )
        self.norm = BatchNorm(outputs, epsilon=epsilon)
        self.kernel_size, self.strides = kernel_size, strides

    def __call__(self, x: jax.Array) -> jax.Array:
        padding = lax.padtype_to_pads(x.shape[1:4], self.kernel_size, self.strides, "SAME")
        return jax.nn.relu(
            self.norm(
                convolve(jnp.pad(x, [(0, 0), *padding, (0, 0)]), self.kernel[...], self.strides)
            )
        )


def max_pool(x: jax.Array, window: Size, strides: Size) -> jax.Array:
    """[B, F, H, W, C] -> largest of each window, sizes divided by the strides and rounded up.

    Note: the official pooling pads with zeros (pytorch_i3d.py:43). For outputs of a ReLU, which all
    inputs are, the result is the same.
    """
    return nnx.max_pool(x, window, strides, "SAME")
