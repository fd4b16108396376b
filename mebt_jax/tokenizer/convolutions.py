"""3D convolutions of the tokenizer: channels last, replicate padding, one formulation per kind of hardware.

Everything the encoder and decoder compute with convolutions goes through `convolve`. On CPU, XLA's 3D convolution is
slow (most of all its gradients), so there it is written as a sum of 2D convolutions, one per temporal tap of the kernel;
GPU and TPU get the 3D convolution itself. A transposed convolution is written as a dense one that makes all sub-pixel
phases at once, so no zeros are multiplied on any hardware. `benchmarks/convolutions.py` measures the choices.

The layers pad symmetrically, as the official ones do, unless they are given a `Past`: then no output sees a later frame (after the
causal convolutions of MAGVIT-v2, Yu et al. 2023, section 3.2). In place of later frames there are earlier ones, the first
repeated before the start. Sizes follow: 1 + s * n frames become 1 + n and back, and a video may come in pieces.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import lax

from mebt_jax.runtime.mesh import platform

Size = tuple[int, int, int]  # (time, height, width)


def convolve(x: jax.Array, kernel: jax.Array, strides: Size = (1, 1, 1)) -> jax.Array:
    """Unpadded convolution, [B, F, H, W, I] by [f, h, w, I, O] -> [B, F', H', W', O], F' = (F - f) // stride + 1."""
    if platform() == "cpu":
        return convolve_by_taps(x, kernel, strides)
    return convolve_directly(x, kernel, strides)


def convolve_directly(x: jax.Array, kernel: jax.Array, strides: Size = (1, 1, 1)) -> jax.Array:
    """`convolve` as XLA's 3D convolution."""
    return lax.conv_general_dilated(x, kernel, strides, "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC"))


def convolve_by_taps(x: jax.Array, kernel: jax.Array, strides: Size = (1, 1, 1)) -> jax.Array:
    """`convolve` as a sum of 2D convolutions, one per temporal tap of the kernel, over frames folded into the batch.

    Each makes one column too many, of zeros beyond the edge, which is cut off again: XLA's CPU backend computes convolutions
    without any padding several times slower than those with some (benchmarks/RESULTS.md). A kernel of one pixel is a matrix
    product to XLA, and fast as it is.
    """
    batch, taps, stride = x.shape[0], kernel.shape[0], strides[0]
    span = stride * ((x.shape[1] - taps) // stride) + 1  # from the first to the last frame that one tap meets
    width = (x.shape[3] - kernel.shape[2]) // strides[2] + 1
    beyond = strides[2] * width + kernel.shape[2] - x.shape[3] if kernel.shape[1:3] != (1, 1) else 0
    total = None
    for tap in range(taps):
        frames = rearrange(x[:, tap:tap + span:stride], "b f h w c -> (b f) h w c")
        part = lax.conv_general_dilated(frames, kernel[tap], strides[1:], ((0, 0), (0, beyond)),
                                        dimension_numbers=("NHWC", "HWIO", "NHWC"))
        total = part if total is None else total + part
    return rearrange(total[:, :, :width], "(b f) h w c -> b f h w c", b=batch)


def convolve_transposed(x: jax.Array, kernel: jax.Array, strides: Size, cut: tuple[int, int] | None = None) -> jax.Array:
    """Transposed convolution of a padded input, cut to what a same-size convolution leaves.

    Along an axis of size n, stride s and kernel size k (a multiple of s), output o is the sum over inputs i of
    x[i] * kernel[o + k - 1 - s * i]. Output o = s * q + r - (s - 1) only meets the inputs q .. q + k/s - 1, so one dense
    convolution with k/s taps makes all s phases r as channels, which are then spread out in space.

    Args:
        x: [B, F, H, W, I].
        kernel: [f, h, w, I, O], in the orientation of PyTorch's ConvTranspose3d with padding k - 1.
        strides: per axis; each must divide its kernel size.
        cut: frames to leave out of the s * (F - f/s + 1) at the front and at the back; default s - 1 each, as on the other axes.

    Returns:
        [B, F', H', W', O] with F' = s * (F - f/s) - s + 2 per axis.
    """
    (sf, sh, sw) = strides
    phases = rearrange(kernel, "(f sf) (h sh) (w sw) i o -> f h w i (sf sh sw o)", sf=sf, sh=sh, sw=sw)
    y = convolve(x, jnp.flip(phases, (0, 1, 2)))
    y = rearrange(y, "b f h w (sf sh sw o) -> b (f sf) (h sh) (w sw) o", sf=sf, sh=sh, sw=sw)
    front, back = cut or (sf - 1, sf - 1)
    return y[:, front:y.shape[1] - back, sh - 1:y.shape[2] - (sh - 1), sw - 1:y.shape[3] - (sw - 1)]


class Past:
    """What the causal layers saw last, one after the other in the order of their calls: the state of a stream.

    `Past()` begins a video, and is all that a whole one needs. After the layers were called, `after` is what
    `Past(after)` needs for the frames that follow.
    """

    def __init__(self, before: Sequence[jax.Array] | None = None):
        self.begins = before is None
        self.after: list[jax.Array] = []
        self._before = iter(before or ())

    def lead(self, x: jax.Array, first: int, later: int) -> jax.Array:
        """[B, F, H, W, C] with what comes before: the first frame `first` times, or the last `later` frames of the stream."""
        if self.begins:
            x = jnp.concatenate([jnp.repeat(x[:, :1], first, axis=1), x], axis=1)
        elif later:
            x = jnp.concatenate([next(self._before), x], axis=1)
        if later:
            self.after.append(x[:, -later:])
        return x


def pad_same(x: jax.Array, kernel_size: Size, strides: Size) -> jax.Array:
    """Replicates the border of [B, F, H, W, C] by k - s per axis, the odd one in front.

    Note: official `SamePadConv3d` and `SamePadConvTranspose3d` (mebt/vqgan.py:455 and :483) share this rule; the
    padding of the transposed one is counted in input pixels all the same.
    """
    totals = [k - s for k, s in zip(kernel_size, strides)]
    return jnp.pad(x, [(0, 0), *((t - t // 2, t // 2) for t in totals), (0, 0)], mode="edge")


def draw_kernel(key: jax.Array, shape: tuple[int, ...], gain: float) -> jax.Array:
    """Uniform kernel [f, h, w, I, O] that multiplies the standard deviation of white input by `gain`."""
    bound = gain * (3 / math.prod(shape[:-1]))**0.5
    # Drawn flat: XLA's CPU compiler takes seconds for every five-dimensional draw.
    return jax.random.uniform(key, (math.prod(shape),), minval=-bound, maxval=bound).reshape(shape)


class SameConv3d(nnx.Module):
    """Strided convolution whose output has input size / stride; parameters `kernel` [f, h, w, I, O] and `bias` [O]."""

    def __init__(self, inputs: int, outputs: int, kernel_size: Size, strides: Size = (1, 1, 1), *, dtype: jnp.dtype,
                 gain: float = 1.0, rngs: nnx.Rngs):
        self.kernel = nnx.Param(draw_kernel(rngs.params(), (*kernel_size, inputs, outputs), gain))
        self.bias = nnx.Param(jnp.zeros((outputs,)))
        self.kernel_size, self.strides, self.dtype = kernel_size, strides, dtype

    def __call__(self, x: jax.Array, past: Past | None = None) -> jax.Array:
        """[B, F, H, W, I] -> [B, F/s, H/s, W/s, O]; every size must be a multiple of its stride, or with a past that begins one
        frame more than that, which gives one frame more."""
        x, around = x.astype(self.dtype), self.kernel_size
        if past is not None:
            taps, stride = around[0], self.strides[0]
            x, around = past.lead(x, first=taps - 1, later=taps - stride), (stride, *around[1:])
        x = pad_same(x, around, self.strides)
        y = convolve(x, self.kernel[...].astype(self.dtype), self.strides)
        return y + jnp.expand_dims(self.bias[...].astype(self.dtype), (0, 1, 2, 3))


class SameConvTranspose3d(nnx.Module):
    """Transposed convolution whose output has input size * stride; parameters `kernel` [f, h, w, I, O] and `bias` [O]."""

    def __init__(self, inputs: int, outputs: int, kernel_size: Size, strides: Size, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        # An output meets only 1 / prod(strides) of the kernel, hence the larger gain.
        gain = math.prod(strides)**0.5
        self.kernel = nnx.Param(draw_kernel(rngs.params(), (*kernel_size, inputs, outputs), gain))
        self.bias = nnx.Param(jnp.zeros((outputs,)))
        self.kernel_size, self.strides, self.dtype = kernel_size, strides, dtype

    def __call__(self, x: jax.Array, past: Past | None = None) -> jax.Array:
        """[B, F, H, W, I] -> [B, F*s, H*s, W*s, O]; of a past that begins, the first frame gives one frame and not s."""
        x, around, cut = x.astype(self.dtype), self.kernel_size, None
        if past is not None:
            stride = self.strides[0]
            met = around[0] // stride - 1  # frames before its own that an output meets
            x, around, cut = past.lead(x, met, met), (stride, *around[1:]), (stride - 1 if past.begins else 0, 0)
        x = pad_same(x, around, self.strides)
        y = convolve_transposed(x, self.kernel[...].astype(self.dtype), self.strides, cut)
        return y + jnp.expand_dims(self.bias[...].astype(self.dtype), (0, 1, 2, 3))
