"""Discriminators of frames and of clips: what tells real video from the tokenizer's, and whose
features it should match.

PatchGAN with three strided layers, after mebt/vqgan.py:402 (frames) and :462 (clips). Both are one
network here: the one of frames has a temporal kernel of 1, so it takes clips too and judges their
frames one by one.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx, struct

from mebt_jax.nn.convolutions import Size, convolve, draw_kernel
from mebt_jax.nn.norms import BatchNorm, batch_moments, moved

FRAMES: Size = (1, 4, 4)
CLIPS: Size = (4, 4, 4)
WIDEST = 512
SLOPE = 0.2  # of the leaky ReLU
GAIN = 3**-0.5  # PyTorch's initial weights, uniform up to fan-in^-1/2


@struct.dataclass
class Judgement:
    logits: jax.Array  # [B, F', H', W', 1], positive is real
    features: list[jax.Array]  # of every layer before the logits, [B, f, h, w, c]
    moments: list[
        Any
    ]  # (mean, variance) [c] of every normalised layer in this batch; empty with stored statistics


class Discriminator(nnx.Module):
    """`layers` layers of stride 2, one of stride 1, and one that gives the logits.

    Args:
        kernel_size: FRAMES or CLIPS.
        channels: of the first layer; each layer doubles them, up to 512.
    """

    def __init__(self, kernel_size: Size, channels: int = 64, layers: int = 3, *, rngs: nnx.Rngs):
        widths = [3, *(min(channels * 2**i, WIDEST) for i in range(layers + 1)), 1]
        self.layers = nnx.List(
            [
                Layer(
                    inputs,
                    outputs,
                    kernel_size,
                    stride=2 if i < layers else 1,
                    normalised=0 < i <= layers,
                    rngs=rngs,
                )
                for i, (inputs, outputs) in enumerate(zip(widths, widths[1:]))
            ]
        )

    def __call__(self, video: jax.Array, *, batch_statistics: bool = False) -> Judgement:
        """Judges clips [B, F, H, W, 3] in [-0.5, 0.5]; single frames are clips of F = 1.

        Args:
            batch_statistics: normalise by the moments of this batch, as in training, instead of the
                stored statistics. Under jit with a batch split over devices they are those of the
                whole batch, as with SyncBatchNorm.
        """
        x, features, moments = video, [], []
        for layer in self.layers:
            x = layer.convolve(x)
            if layer.norm is not None:
                if batch_statistics:
                    mean, variance, unbiased = batch_moments(x)
                    moments.append((mean, unbiased))
                    x = layer.norm.normalize(x, mean, variance)
                else:
                    x = layer.norm(x)
            if layer is not self.layers[-1]:
                x = jax.nn.leaky_relu(x, SLOPE)
                features.append(x)
        return Judgement(logits=x, features=features, moments=moments)


class Layer(nnx.Module):
    """A convolution with kernel 4, zeros outside, and the norm behind it where there is one."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: Size,
        *,
        stride: int,
        normalised: bool,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(draw_kernel(rngs.params(), (*kernel_size, inputs, outputs), GAIN))
        self.bias = nnx.Param(jnp.zeros((outputs,)))
        self.norm = BatchNorm(outputs) if normalised else None
        # An axis without a kernel is neither padded nor strided. 2 is ceil((4 - 1) / 2), so sizes
        # grow where stride is 1.
        self.padding = tuple(2 if size > 1 else 0 for size in kernel_size)
        self.strides = tuple(stride if size > 1 else 1 for size in kernel_size)

    def convolve(self, x: jax.Array) -> jax.Array:
        """[B, f, h, w, inputs] -> [B, f', h', w', outputs], the bias added."""
        x = jnp.pad(x, [(0, 0), *((p, p) for p in self.padding), (0, 0)])
        return convolve(x, self.kernel[...], self.strides) + jnp.expand_dims(
            self.bias[...], (0, 1, 2, 3)
        )


def updated_statistics(statistics: nnx.State, moments: list[Any]) -> nnx.State:
    """The `nnx.BatchStat` state of a discriminator, moved towards the moments of one batch."""
    new = nnx.to_pure_dict(statistics)
    normalised = sorted(new["layers"])  # the layers that have a norm, first to last, as the moments
    for index, (mean, variance) in zip(normalised, moments, strict=True):
        stored = new["layers"][index]["norm"]
        stored["mean"], stored["variance"] = (
            moved(stored["mean"], mean),
            moved(stored["variance"], variance),
        )
    updated = jax.tree.map(lambda x: x, statistics)
    nnx.replace_by_pure_dict(updated, new)
    return updated
