"""Discriminators of frames and of clips: networks that tell real from reconstructed video, and
whose features the reconstruction is to match.

PatchGAN with three strided layers, after mebt/vqgan.py:402 (frames) and :462 (clips). Both are one
network here: that of frames has a temporal kernel of 1, so it takes clips too, frame by frame.
"""

import jax
from flax import nnx, struct

from mebt_jax.nn.convolutions import Size, ZeroPadConv3d
from mebt_jax.nn.norms import BatchNorm

FRAMES: Size = (1, 4, 4)
CLIPS: Size = (4, 4, 4)
MAX_CHANNELS = 512
SLOPE = 0.2  # of the leaky ReLU
GAIN = 3**-0.5  # PyTorch's initial weights, uniform up to fan-in^-1/2


@struct.dataclass
class DiscriminatorOutput:
    logits: jax.Array  # [B, F', H', W', 1], positive is real
    features: list[jax.Array]  # of every layer before the logits, [B, f, h, w, c]


class Discriminator(nnx.Module):
    """`layers` layers of stride 2, one of stride 1, and one that gives the logits.

    After `train()` its BatchNorms use the statistics of the batch, and move the stored ones.

    Args:
        kernel_size: FRAMES or CLIPS.
        channels: of the first layer; each layer doubles them, up to 512.
    """

    def __init__(self, kernel_size: Size, channels: int = 64, layers: int = 3, *, rngs: nnx.Rngs):
        widths = [3, *(min(channels * 2**i, MAX_CHANNELS) for i in range(layers + 1)), 1]
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

    def __call__(self, video: jax.Array) -> DiscriminatorOutput:
        """Logits of clips [B, F, H, W, 3] in [-0.5, 0.5]; single frames are clips of F = 1."""
        *hidden_layers, last = self.layers
        x, features = video, []
        for layer in hidden_layers:
            x = jax.nn.leaky_relu(layer(x), SLOPE)
            features.append(x)
        return DiscriminatorOutput(logits=last(x), features=features)


class Layer(ZeroPadConv3d):
    """A convolution with zeros outside, followed by a norm if `normalised`."""

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
        # An axis without a kernel is neither padded nor strided. 2 is ceil((4 - 1) / 2), so sizes
        # grow where the stride is 1.
        super().__init__(
            inputs,
            outputs,
            kernel_size,
            tuple(stride if size > 1 else 1 for size in kernel_size),
            padding=tuple(2 if size > 1 else 0 for size in kernel_size),
            gain=GAIN,
            rngs=rngs,
        )
        self.norm = BatchNorm(outputs) if normalised else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, f, h, w, inputs] -> [B, f', h', w', outputs]."""
        y = super().__call__(x)
        return y if self.norm is None else self.norm(y)
