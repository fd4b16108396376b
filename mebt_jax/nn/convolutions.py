"""3D convolutions of the tokenizer: channels last, replicate padding, one formulation per kind of
hardware.

Everything the encoder and decoder compute with convolutions goes through `convolve`. On CPU, XLA's
3D convolution is slow (most of all its gradients), so there it is written as a sum of 2D
convolutions, one per temporal tap of the kernel; GPU and TPU get the 3D convolution itself. A
transposed convolution is written as a dense one that makes all sub-pixel phases at once, so no
zeros are multiplied on any hardware. `benchmarks/convolutions.py` measures the choices.

The layers pad symmetrically, as the official ones do, unless they are given a `Past`: then no
output sees a later frame (after the causal convolutions of MAGVIT-v2, Yu et al. 2023, section 3.2).
In place of later frames there are earlier ones, the first repeated before the start. Sizes follow:
1 + s * n frames become 1 + n and back, and a video may come in pieces.
"""

import functools
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
    """Unpadded convolution, [B, F, H, W, I] by [f, h, w, I, O] -> [B, F', H', W', O], F' = (F - f)
    // stride + 1.
    """
    if platform() == "cpu":
        return convolve_by_taps(x, kernel, strides)
    return convolve_directly(x, kernel, strides)


def convolve_directly(x: jax.Array, kernel: jax.Array, strides: Size = (1, 1, 1)) -> jax.Array:
    """`convolve` as XLA's 3D convolution."""
    return lax.conv_general_dilated(
        x, kernel, strides, "VALID", dimension_numbers=("NDHWC", "DHWIO", "NDHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def convolve_by_taps(x: jax.Array, kernel: jax.Array, strides: Size = (1, 1, 1)) -> jax.Array:
    """`convolve` as a sum of 2D convolutions, one per temporal tap of the kernel, over frames
    folded into the batch.

    The taps run one after the other in a loop, forward and backward, and only the input is kept for
    the way back: left to itself, XLA keeps what every tap reads and puts out, which at full
    resolution is most of a training step's memory. The gradients are written out because XLA's CPU
    backend is many times slower in a loop with those that it derives.
    """
    count = (x.shape[1] - kernel.shape[0]) // strides[0] + 1
    kernel = jnp.asarray(kernel)  # a NumPy array cannot be indexed by a tap that is traced

    def add(tap: jax.Array, total: jax.Array) -> jax.Array:
        return total + _convolve_frames(
            _frames_of_tap(x, tap, count, strides[0]), kernel[tap], strides
        )

    first = _convolve_frames(_frames_of_tap(x, 0, count, strides[0]), kernel[0], strides)
    total = lax.fori_loop(1, kernel.shape[0], add, first)  # [B * F', H', W', O]
    return rearrange(total, "(b f) h w c -> b f h w c", b=x.shape[0])


def _forward(
    x: jax.Array, kernel: jax.Array, strides: Size
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve_by_taps(x, kernel, strides), (x, kernel)


def _backward(
    strides: Size, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    count, span = (
        gradient.shape[1],
        strides[0] * (gradient.shape[1] - 1) + 1,
    )  # span: from the first frame of a tap to its last
    of_frames = rearrange(gradient, "b f h w c -> (b f) h w c")
    turned = jnp.flip(kernel, (1, 2)).swapaxes(3, 4)  # [f, h, w, O, I]

    def add(of_input: jax.Array, tap: jax.Array) -> tuple[jax.Array, jax.Array]:
        part = rearrange(
            _input_gradient(of_frames, turned[tap], strides, x.shape[2:4]),
            "(b f) h w c -> b f h w c",
            b=len(x),
        )
        met = lax.dynamic_slice_in_dim(of_input, tap, span, axis=1).at[:, :: strides[0]].add(part)
        of_kernel = _kernel_gradient(
            _frames_of_tap(x, tap, count, strides[0]), of_frames, strides, kernel.shape[1:3]
        )
        return lax.dynamic_update_slice_in_dim(of_input, met, tap, axis=1), of_kernel

    return lax.scan(add, jnp.zeros_like(x), jnp.arange(kernel.shape[0]))


convolve_by_taps.defvjp(_forward, _backward)


def _frames_of_tap(x: jax.Array, tap: jax.Array | int, count: int, stride: int) -> jax.Array:
    """The `count` frames of [B, F, H, W, C] that a temporal tap meets, [B * count, H, W, C]."""
    met = lax.dynamic_slice_in_dim(x, tap, stride * (count - 1) + 1, axis=1)[:, ::stride]
    return rearrange(met, "b f h w c -> (b f) h w c")


# The 2D convolution of one tap and its gradients. Each convolution makes one column too many, of
# zeros beyond the edge, which is cut off again: XLA's CPU backend computes convolutions without any
# padding several times slower than those with some (benchmarks/RESULTS.md). A kernel of one pixel
# is a matrix product to XLA, and fast as it is.
_LAYOUT = ("NHWC", "HWIO", "NHWC")


def _convolve_frames(frames: jax.Array, kernel: jax.Array, strides: Size) -> jax.Array:
    """[n, H, W, I] by [h, w, I, O] -> [n, H', W', O]."""
    width = (frames.shape[2] - kernel.shape[1]) // strides[2] + 1
    beyond = (
        strides[2] * width + kernel.shape[1] - frames.shape[2] if kernel.shape[:2] != (1, 1) else 0
    )
    y = lax.conv_general_dilated(
        frames, kernel, strides[1:], ((0, 0), (0, beyond)), dimension_numbers=_LAYOUT
    )
    return y[:, :, :width]


def _input_gradient(
    gradient: jax.Array, turned: jax.Array, strides: Size, size: tuple[int, int]
) -> jax.Array:
    """[n, H', W', O] by the turned kernel [h, w, O, I] -> [n, H, W, I] of this size."""
    padding = [
        (k - 1, n - s * (m - 1) - 1)
        for k, n, m, s in zip(turned.shape, size, gradient.shape[1:3], strides[1:])
    ]
    return lax.conv_general_dilated(
        gradient, turned, (1, 1), padding, lhs_dilation=strides[1:], dimension_numbers=_LAYOUT
    )


def _kernel_gradient(
    frames: jax.Array, gradient: jax.Array, strides: Size, size: tuple[int, int]
) -> jax.Array:
    """[n, H, W, I] and [n, H', W', O] -> [h, w, I, O] of this kernel size."""
    beyond = [
        k - n + s * (m - 1)
        for k, n, m, s in zip(size, frames.shape[1:3], gradient.shape[1:3], strides[1:])
    ]
    if size != (1, 1):
        gradient = jnp.pad(gradient, ((0, 0), (0, 0), (0, 1), (0, 0)))
        beyond[1] += strides[2]
    images, kernel = (
        jnp.transpose(frames, (3, 1, 2, 0)),
        jnp.transpose(gradient, (1, 2, 0, 3)),
    )  # the clips are the channels here
    y = lax.conv_general_dilated(
        images,
        kernel,
        (1, 1),
        [(0, n) for n in beyond],
        rhs_dilation=strides[1:],
        dimension_numbers=_LAYOUT,
    )
    return jnp.transpose(y, (1, 2, 0, 3))


def convolve_transposed(
    x: jax.Array, kernel: jax.Array, strides: Size, cut: tuple[int, int] | None = None
) -> jax.Array:
    """Transposed convolution of a padded input, cut to what a same-size convolution leaves.

    Along an axis of size n, stride s and kernel size k (a multiple of s), output o is the sum over
    inputs i of x[i] * kernel[o + k - 1 - s * i]. Output o = s * q + r - (s - 1) only meets the
    inputs q .. q + k/s - 1, so one dense convolution with k/s taps makes all s phases r as
    channels, which are then spread out in space.

    Args:
        x: [B, F, H, W, I].
        kernel: [f, h, w, I, O], in the orientation of PyTorch's ConvTranspose3d with padding k - 1.
        strides: per axis; each must divide its kernel size.
        cut: frames to leave out of the s * (F - f/s + 1) at the front and at the back; default s -
            1 each, as on the other axes.

    Returns:
        [B, F', H', W', O] with F' = s * (F - f/s) - s + 2 per axis.
    """
    (sf, sh, sw) = strides
    phases = rearrange(
        kernel, "(f sf) (h sh) (w sw) i o -> f h w i (sf sh sw o)", sf=sf, sh=sh, sw=sw
    )
    y = convolve(x, jnp.flip(phases, (0, 1, 2)))
    y = rearrange(y, "b f h w (sf sh sw o) -> b (f sf) (h sh) (w sw) o", sf=sf, sh=sh, sw=sw)
    front, back = cut or (sf - 1, sf - 1)
    return y[
        :, front : y.shape[1] - back, sh - 1 : y.shape[2] - (sh - 1), sw - 1 : y.shape[3] - (sw - 1)
    ]


class Past:
    """What the causal layers saw last, one after the other in the order of their calls: the state
    of a stream.

    `Past()` begins a video, and is all that a whole one needs. After the layers were called,
    `after` is what `Past(after)` needs for the frames that follow.
    """

    def __init__(self, before: Sequence[jax.Array] | None = None):
        self.begins = before is None
        self.after: list[jax.Array] = []
        self._before = iter(before or ())

    def lead(self, x: jax.Array, first: int, later: int) -> jax.Array:
        """[B, F, H, W, C] with what comes before: the first frame `first` times, or the last
        `later` frames of the stream.
        """
        if self.begins:
            x = jnp.concatenate([jnp.repeat(x[:, :1], first, axis=1), x], axis=1)
        elif later:
            x = jnp.concatenate([next(self._before), x], axis=1)
        if later:
            self.after.append(x[:, -later:])
        return x


def pad_same(x: jax.Array, kernel_size: Size, strides: Size) -> jax.Array:
    """Replicates the border of [B, F, H, W, C] by k - s per axis, the odd one in front.

    Note: official `SamePadConv3d` and `SamePadConvTranspose3d` (mebt/vqgan.py:455 and :483) share
    this rule; the padding of the transposed one is counted in input pixels all the same.
    """
    totals = [k - s for k, s in zip(kernel_size, strides)]
    return _replicate_border(x, tuple((t - t // 2, t // 2) for t in totals))


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _replicate_border(x: jax.Array, widths: tuple[tuple[int, int], ...]) -> jax.Array:
    return jnp.pad(x, [(0, 0), *widths, (0, 0)], mode="edge")


def _replicate_border_forward(
    x: jax.Array, widths: tuple[tuple[int, int], ...]
) -> tuple[jax.Array, None]:
    return _replicate_border(x, widths), None


def _replicate_border_backward(
    widths: tuple[tuple[int, int], ...], _: None, gradient: jax.Array
) -> tuple[jax.Array]:
    """JAX's own gradient spreads every border over an array of the whole size before it adds them
    up.
    """
    for axis, (before, after) in enumerate(widths, start=1):
        front, inner, back = jnp.split(gradient, (before, gradient.shape[axis] - after), axis=axis)
        at = (slice(None),) * axis
        inner = inner.at[*at, 0].add(front.sum(axis)) if before else inner
        gradient = inner.at[*at, -1].add(back.sum(axis)) if after else inner
    return (gradient,)


_replicate_border.defvjp(_replicate_border_forward, _replicate_border_backward)


def draw_kernel(key: jax.Array, shape: tuple[int, ...], gain: float) -> jax.Array:
    """Uniform kernel [f, h, w, I, O] that multiplies the standard deviation of white input by
    `gain`.
    """
    bound = gain * (3 / math.prod(shape[:-1])) ** 0.5
    # Drawn flat: XLA's CPU compiler takes seconds for every five-dimensional draw.
    return jax.random.uniform(key, (math.prod(shape),), minval=-bound, maxval=bound).reshape(shape)


class SameConv3d(nnx.Module):
    """Strided convolution whose output has input size / stride; parameters `kernel` [f, h, w, I, O]
    and `bias` [O].
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: Size,
        strides: Size = (1, 1, 1),
        *,
        dtype: jnp.dtype,
        gain: float = 1.0,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(draw_kernel(rngs.params(), (*kernel_size, inputs, outputs), gain))
        self.bias = nnx.Param(jnp.zeros((outputs,)))
        self.kernel_size, self.strides, self.dtype = kernel_size, strides, dtype

    def __call__(self, x: jax.Array, past: Past | None = None) -> jax.Array:
        """[B, F, H, W, I] -> [B, F/s, H/s, W/s, O]; every size must be a multiple of its stride, or
        with a past that begins one frame more than that, which gives one frame more.
        """
        x, around = x.astype(self.dtype), self.kernel_size
        if past is not None:
            taps, stride = around[0], self.strides[0]
            x, around = past.lead(x, first=taps - 1, later=taps - stride), (stride, *around[1:])
        x = pad_same(x, around, self.strides)
        y = convolve(x, self.kernel[...].astype(self.dtype), self.strides)
        return y + jnp.expand_dims(self.bias[...].astype(self.dtype), (0, 1, 2, 3))


class SameConvTranspose3d(nnx.Module):
    """Transposed convolution whose output has input size * stride; parameters `kernel` [f, h, w, I,
    O] and `bias` [O].
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: Size,
        strides: Size,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        # An output meets only 1 / prod(strides) of the kernel, hence the larger gain.
        gain = math.prod(strides) ** 0.5
        self.kernel = nnx.Param(draw_kernel(rngs.params(), (*kernel_size, inputs, outputs), gain))
        self.bias = nnx.Param(jnp.zeros((outputs,)))
        self.kernel_size, self.strides, self.dtype = kernel_size, strides, dtype

    def __call__(self, x: jax.Array, past: Past | None = None) -> jax.Array:
        """[B, F, H, W, I] -> [B, F*s, H*s, W*s, O]; of a past that begins, the first frame gives
        one frame and not s.
        """
        x, around, cut = x.astype(self.dtype), self.kernel_size, None
        if past is not None:
            stride = self.strides[0]
            met = around[0] // stride - 1  # frames before its own that an output meets
            x, around, cut = (
                past.lead(x, met, met),
                (stride, *around[1:]),
                (stride - 1 if past.begins else 0, 0),
            )
        x = pad_same(x, around, self.strides)
        y = convolve_transposed(x, self.kernel[...].astype(self.dtype), self.strides, cut)
        return y + jnp.expand_dims(self.bias[...].astype(self.dtype), (0, 1, 2, 3))
