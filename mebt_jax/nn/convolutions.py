"""3D convolutions of videos, channels last, in the formulation that suits the hardware.

All 3D convolutions go through `convolve`. On CPU, XLA's 3D convolution is slow (most of all its
gradients), so there it is written as a sum of 2D convolutions, one per temporal tap of the kernel;
GPU and TPU get the 3D convolution itself. A transposed convolution is written as a dense one that
computes all sub-pixel phases at once, so no zeros are multiplied on any hardware.
`benchmarks/convolutions.py` measures the choices.

The layers of the tokenizer replicate the border symmetrically, as the official ones do. With a
`CausalConvState` they are causal: no output sees a later frame (after the causal convolutions of
MAGVIT-v2, Yu et al. 2023, section 3.2). Time is then padded with earlier frames alone, and before
the start of a video with copies of its first frame. So 1 + s * n frames become 1 + n and back, and
a video may be cut into parts that run one after the other.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax import lax

from mebt_jax.runtime.sharding import platform

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
    folded into the batch:

        y[t] = sum_a x[s t + a] * k[a]

    The taps run one after the other in a loop, forward and backward, and the backward pass only
    keeps the input: by itself XLA keeps what every tap reads and computes, which at full resolution
    is most of a training step's memory. The gradients are written out because XLA's CPU backend is
    many times slower in a loop with those that it derives.
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


def _taps_forward(
    x: jax.Array, kernel: jax.Array, strides: Size
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return convolve_by_taps(x, kernel, strides), (x, kernel)


def _taps_backward(
    strides: Size, residuals: tuple[jax.Array, jax.Array], d_y: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """With the transposed 2D convolution *^T and the 2D correlation (x):

    d_x[s t + a] += d_y[t] *^T k[a]      for all t and a
    d_k[a]        = sum_t x[s t + a] (x) d_y[t]
    """
    x, kernel = residuals
    count = d_y.shape[1]
    span = strides[0] * (count - 1) + 1  # from the first frame that a tap reads to its last
    d_y = rearrange(d_y, "b f h w c -> (b f) h w c")
    transposed = jnp.flip(kernel, (1, 2)).swapaxes(3, 4)  # [f, h, w, O, I]

    def add(d_x: jax.Array, tap: jax.Array) -> tuple[jax.Array, jax.Array]:
        d_frames = rearrange(
            _input_gradient(d_y, transposed[tap], strides, x.shape[2:4]),
            "(b f) h w c -> b f h w c",
            b=len(x),
        )
        read = lax.dynamic_slice_in_dim(d_x, tap, span, axis=1)
        read = read.at[:, :: strides[0]].add(d_frames)
        frames = _frames_of_tap(x, tap, count, strides[0])
        d_kernel = _kernel_gradient(frames, d_y, strides, kernel.shape[1:3])
        return lax.dynamic_update_slice_in_dim(d_x, read, tap, axis=1), d_kernel

    return lax.scan(add, jnp.zeros_like(x), jnp.arange(kernel.shape[0]))


convolve_by_taps.defvjp(_taps_forward, _taps_backward)


def _frames_of_tap(x: jax.Array, tap: jax.Array | int, count: int, stride: int) -> jax.Array:
    """The `count` frames of [B, F, H, W, C] that a temporal tap reads, [B * count, H, W, C]."""
    read = lax.dynamic_slice_in_dim(x, tap, stride * (count - 1) + 1, axis=1)[:, ::stride]
    return rearrange(read, "b f h w c -> (b f) h w c")


# The 2D convolution of one tap and its gradients. Each convolution computes one column too many
# from zeros beyond the edge, and cuts it off: XLA's CPU backend computes convolutions without any
# padding several times slower than those with some (benchmarks/RESULTS.md). A kernel of one pixel
# is a matrix product to XLA, and fast without this.
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
    d_y: jax.Array, transposed: jax.Array, strides: Size, size: tuple[int, int]
) -> jax.Array:
    """d_y [n, H', W', O] *^T k: d_y, spread by the strides, by the flipped and transposed kernel
    [h, w, O, I] -> d_x [n, H, W, I] of this size.
    """
    padding = [
        (k - 1, n - s * (m - 1) - 1)
        for k, n, m, s in zip(transposed.shape, size, d_y.shape[1:3], strides[1:])
    ]
    return lax.conv_general_dilated(
        d_y, transposed, (1, 1), padding, lhs_dilation=strides[1:], dimension_numbers=_LAYOUT
    )


def _kernel_gradient(
    frames: jax.Array, d_y: jax.Array, strides: Size, size: tuple[int, int]
) -> jax.Array:
    """x [n, H, W, I] (x) d_y [n, H', W', O] -> d_k [h, w, I, O] of this size:
    d_k[i, j] = sum over n, u, v of x[n, s u + i, s v + j]^T d_y[n, u, v].
    """
    beyond = [
        k - n + s * (m - 1)
        for k, n, m, s in zip(size, frames.shape[1:3], d_y.shape[1:3], strides[1:])
    ]
    if size != (1, 1):
        d_y = jnp.pad(d_y, ((0, 0), (0, 0), (0, 1), (0, 0)))
        beyond[1] += strides[2]
    # A convolution whose channels are the clips, and whose kernel is d_y.
    images, kernel = jnp.transpose(frames, (3, 1, 2, 0)), jnp.transpose(d_y, (1, 2, 0, 3))
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
    inputs q .. q + k/s - 1, so one dense convolution with k/s taps computes all s phases r as
    channels, which are then moved to their positions in space.

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


class CausalConvState:
    """The last frames that the causal layers of a network saw, layer by layer in the order of their
    calls.

    `CausalConvState()` is the state before the first frame, and all that a whole video needs. When
    all layers were called, `next_frames` is the argument `frames` of the state for the frames that
    follow.
    """

    def __init__(self, frames: Sequence[jax.Array] | None = None):
        self.is_first = frames is None
        self.next_frames: list[jax.Array] = []
        self._frames = iter(frames or ())

    def prepend(self, x: jax.Array, first: int, later: int) -> jax.Array:
        """[B, F, H, W, C] with the frames before it: at the start of a video its first frame
        repeated `first` times, otherwise the last `later` frames of the part before.
        """
        if self.is_first:
            x = jnp.concatenate([jnp.repeat(x[:, :1], first, axis=1), x], axis=1)
        elif later:
            x = jnp.concatenate([next(self._frames), x], axis=1)
        if later:
            self.next_frames.append(x[:, -later:])
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
    widths: tuple[tuple[int, int], ...], _: None, d_y: jax.Array
) -> tuple[jax.Array]:
    """d_x[i] = sum of d_y[j] over all j that are copies of pixel i, one axis after the other.

    JAX's own gradient spreads every border over an array of the whole size before it adds them up.
    """
    for axis, (before, after) in enumerate(widths, start=1):
        front, inner, back = jnp.split(d_y, (before, d_y.shape[axis] - after), axis=axis)
        at = (slice(None),) * axis
        inner = inner.at[*at, 0].add(front.sum(axis)) if before else inner
        d_y = inner.at[*at, -1].add(back.sum(axis)) if after else inner
    return (d_y,)


_replicate_border.defvjp(_replicate_border_forward, _replicate_border_backward)


def draw_kernel(key: jax.Array, shape: tuple[int, ...], gain: float) -> jax.Array:
    """Uniform kernel [f, h, w, I, O] that multiplies the standard deviation of white input by
    `gain`.
    """
    bound = gain * (3 / math.prod(shape[:-1])) ** 0.5
    # Drawn flat: XLA's CPU compiler takes seconds for every five-dimensional draw.
    return jax.random.uniform(key, (math.prod(shape),), minval=-bound, maxval=bound).reshape(shape)


class _Conv3d(nnx.Module):
    """Parameters of a 3D convolution: `kernel` [f, h, w, I, O] and `bias` [O], float32.

    Args:
        inputs, outputs: I, O.
        kernel_size, strides: (time, height, width).
        dtype: of the computation.
        gain: of the initial kernel, see `draw_kernel`.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: Size,
        strides: Size = (1, 1, 1),
        *,
        gain: float = 1.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.kernel = nnx.Param(draw_kernel(rngs.params(), (*kernel_size, inputs, outputs), gain))
        self.bias = nnx.Param(jnp.zeros((outputs,)))
        self.kernel_size, self.strides, self.dtype = kernel_size, strides, dtype

    def _add_bias(self, y: jax.Array) -> jax.Array:
        return y + jnp.expand_dims(self.bias[...].astype(self.dtype), (0, 1, 2, 3))


class ZeroPadConv3d(_Conv3d):
    """Strided float32 convolution with `padding` (time, height, width) zeros at both ends of each
    axis.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel_size: Size,
        strides: Size = (1, 1, 1),
        *,
        padding: Size,
        gain: float = 1.0,
        rngs: nnx.Rngs,
    ):
        super().__init__(inputs, outputs, kernel_size, strides, gain=gain, rngs=rngs)
        self.padding = padding

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, F, H, W, I] -> [B, F', H', W', O], F' = (F + 2 * padding - f) // stride + 1."""
        x = jnp.pad(x.astype(self.dtype), [(0, 0), *((p, p) for p in self.padding), (0, 0)])
        return self._add_bias(convolve(x, self.kernel[...].astype(self.dtype), self.strides))


class SameConv3d(_Conv3d):
    """Strided convolution whose output has the size input / stride; the border is replicated."""

    def __call__(self, x: jax.Array, state: CausalConvState | None = None) -> jax.Array:
        """[B, F, H, W, I] -> [B, F/s, H/s, W/s, O]; every size must be a multiple of its stride.

        With a state the layer is causal. At the start of a video it takes 1 + s * n frames and
        gives 1 + n.
        """
        x, padded_size = x.astype(self.dtype), self.kernel_size
        if state is not None:
            taps, stride = self.kernel_size[0], self.strides[0]
            x = state.prepend(x, first=taps - 1, later=taps - stride)
            padded_size = (stride, *self.kernel_size[1:])  # no padding in time
        x = pad_same(x, padded_size, self.strides)
        return self._add_bias(convolve(x, self.kernel[...].astype(self.dtype), self.strides))


class SameConvTranspose3d(_Conv3d):
    """Transposed convolution whose output has the size input * stride; the border is replicated."""

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
        super().__init__(inputs, outputs, kernel_size, strides, gain=gain, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, state: CausalConvState | None = None) -> jax.Array:
        """[B, F, H, W, I] -> [B, F*s, H*s, W*s, O].

        With a state the layer is causal. The first frame of a video gives one frame and not s.
        """
        x, padded_size, cut = x.astype(self.dtype), self.kernel_size, None
        if state is not None:
            stride = self.strides[0]
            earlier = self.kernel_size[0] // stride - 1  # input frames before that of an output
            x = state.prepend(x, first=earlier, later=earlier)
            padded_size = (stride, *self.kernel_size[1:])  # no padding in time
            cut = (stride - 1 if state.is_first else 0, 0)
        x = pad_same(x, padded_size, self.strides)
        kernel = self.kernel[...].astype(self.dtype)
        return self._add_bias(convolve_transposed(x, kernel, self.strides, cut))
