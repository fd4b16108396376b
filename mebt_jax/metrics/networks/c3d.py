"""C3D (Tran et al. 2015) fine-tuned on UCF-101, the classifier of the Inception Score of videos.

Computes what pfnet-research/tgan2 computes (tgan2/models/c3d/c3d_ucf101.py), whose weights TATS and
MeBT used too. Float32 at highest precision on every platform.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mebt_jax.metrics.networks.i3d import max_pool
from mebt_jax.metrics.networks.resize import check_bytes, resize
from mebt_jax.nn.convolutions import convolve, draw_kernel

FRAMES = 16
RESOLUTION = (112, 112)

# Convolutions with their outputs in multiples of the width, and the poolings behind some of them.
CONVOLUTIONS = {
    "conv1a": 1,
    "conv2a": 2,
    "conv3a": 4,
    "conv3b": 4,
    "conv4a": 8,
    "conv4b": 8,
    "conv5a": 8,
    "conv5b": 8,
}
POOLS = {
    "conv1a": (1, 2, 2),
    "conv2a": (2, 2, 2),
    "conv3b": (2, 2, 2),
    "conv4b": (2, 2, 2),
    "conv5b": (2, 2, 2),
}
LAST_GRID = 4 * 4  # 112 / 32, rounded up as Chainer's poolings do


def c3d_logits(network: "C3D", video: jax.Array) -> jax.Array:
    """Class logits, float32 [B, classes], of uint8 clips [B, 16, H, W, 3] of any height and
    width.
    """
    return network.logits(c3d_features(network, video))


def c3d_features(network: "C3D", video: jax.Array) -> jax.Array:
    """The last hidden layer, float32 [B, hidden], of uint8 clips [B, 16, H, W, 3].

    Note: frames are stretched to 112x112 with aligned corners, and values go from [-1, 1] to 128 +
    128 x, not 127.5 + 127.5 x (c3d_ucf101.py:58).
    """
    check_bytes(video)
    if video.shape[1] != FRAMES:
        raise ValueError(f"C3D needs clips of {FRAMES} frames, not {video.shape[1]}")
    pixels = resize(video, RESOLUTION, "aligned") * (128 / 127.5)  # [B, 16, 112, 112, 3]
    return network.features(pixels[..., ::-1] - jnp.expand_dims(network.mean[...], 0))


class C3D(nnx.Module):
    """Eight convolutions and three linear layers; `mean` [16, 112, 112, 3] is subtracted from the
    pixels, both in BGR order.
    """

    def __init__(self, width: int = 64, hidden: int = 4096, classes: int = 101, *, rngs: nnx.Rngs):
        self.mean = nnx.Param(jnp.zeros((FRAMES, *RESOLUTION, 3)))
        outputs = [width * factor for factor in CONVOLUTIONS.values()]
        self.convolutions = nnx.Dict(
            {
                name: Convolution(i, o, rngs=rngs)
                for name, i, o in zip(CONVOLUTIONS, [3, *outputs], outputs)
            }
        )
        self.fc6 = nnx.Linear(LAST_GRID * outputs[-1], hidden, precision="highest", rngs=rngs)
        self.fc7 = nnx.Linear(hidden, hidden, precision="highest", rngs=rngs)
        self.logits = nnx.Linear(hidden, classes, precision="highest", rngs=rngs)

    def features(self, x: jax.Array) -> jax.Array:
        """Pixels in BGR order minus the mean, [B, 16, 112, 112, 3] -> [B, hidden]."""
        with jax.default_matmul_precision("highest"):
            for name in CONVOLUTIONS:
                x = jax.nn.relu(self.convolutions[name](x))
                if name in POOLS:
                    x = max_pool(x, POOLS[name], POOLS[name])
        x = jax.nn.relu(self.fc6(x.reshape(x.shape[0], -1)))
        return jax.nn.relu(self.fc7(x))


class Convolution(nnx.Module):
    """3x3x3 convolution with zeros outside and a bias."""

    def __init__(self, inputs: int, outputs: int, *, rngs: nnx.Rngs):
        self.kernel = nnx.Param(draw_kernel(rngs.params(), (3, 3, 3, inputs, outputs), gain=2**0.5))
        self.bias = nnx.Param(jnp.zeros((outputs,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        padded = jnp.pad(x, [(0, 0), (1, 1), (1, 1), (1, 1), (0, 0)])
        return convolve(padded, self.kernel[...]) + jnp.expand_dims(self.bias[...], (0, 1, 2, 3))
