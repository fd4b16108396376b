"""The tokenizer's network: video to features, features to tokens by a quantizer, and back to video.

With `patch == (1, 1, 1)` it computes what the official 3D VQGAN computes (mebt/vqgan.py, the same
as TATS). A larger patch moves pixels into channels before the first convolution and back after the
last (space to depth), so that the same network runs at a lower resolution. It also adds a learned
linear shortcut around the network (after the residual autoencoding of DC-AE, Chen et al. 2024,
whose shortcuts have no parameters). `training/pca_init.py` starts the shortcuts at the principal
components of the patches. The network beside them starts with an output of zero, so that it only
learns what a linear map of the pixels cannot do.

A causal tokenizer (`config.tokenizer.causal`) sees no later frame: its first token stands for one
frame, so that an image is a clip, and every other token for `compression[0]` frames. Long videos
run through it part by part (`streaming.py`).

With a patch of the whole compression the encoder is pointwise: a token then depends on its own
patch alone, and equal patches have equal tokens whatever is around them, which leaves the prior
less to predict.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from mebt_jax.nn.convolutions import CausalConvState, SameConv3d, SameConvTranspose3d, Size
from mebt_jax.nn.norms import NORMS
from mebt_jax.runtime.hashing import hash_arrays
from mebt_jax.runtime.sharding import constrain
from mebt_jax.tokenizer import earlier_tokenizers
from mebt_jax.tokenizer.quantizers import QUANTIZERS
from mebt_jax.tokenizer.tokenizer_config import TokenizerConfig

COLOURS = 3
# Gain of the last convolution of the paper's network: an untrained decoder gives mid-grey instead
# of noise.
OUTPUT_GAIN = 0.1
# Scale of the network beside a fitted shortcut. Adam moves each of the thousands of weights behind
# an output by the learning rate at once: at full scale the first steps would shift pixels by more
# than the whole error of the shortcut.
CORRECTION = 0.05


class Tokenizer(nnx.Module):
    """Encoder, quantizer and decoder.

    Its variables are parameters (`nnx.Param`), and state that no gradient trains: the codebook's
    (`CodebookStat`) and the statistics of BatchNorms (`nnx.BatchStat`).

    Args:
        config: sizes, norm and kind of quantizer.
        rngs: the streams "params", and "codebook" for codebooks that are no parameters.
    """

    def __init__(self, config: TokenizerConfig, *, rngs: nnx.Rngs):
        self.patch, self.compression, self.causal = config.patch, config.compression, config.causal
        dtype = jnp.dtype(config.dtype)
        strides = level_strides(config.compression, config.patch)
        top = config.hidden * 2 ** len(strides)
        kernel = (1, 1, 1) if config.patch == config.compression else (3, 3, 3)
        self.encoder = Encoder(
            config.hidden, config.patch, strides, kernel, config.norm, dtype=dtype, rngs=rngs
        )
        # Beside a shortcut the last layers of encoder and decoder start at zero.
        self.to_features = SameConv3d(
            top,
            config.code_width,
            (1, 1, 1),
            dtype=dtype,
            gain=0.0 if self.has_shortcut else 1.0,
            rngs=rngs,
        )
        self.from_embeddings = SameConv3d(config.code_width, top, (1, 1, 1), dtype=dtype, rngs=rngs)
        self.decoder = Decoder(
            config.hidden,
            config.patch,
            strides,
            config.norm,
            gain=0.0 if self.has_shortcut else OUTPUT_GAIN,
            dtype=dtype,
            rngs=rngs,
        )
        if self.has_shortcut:
            pixels = patch_channels(config.compression)
            self.shortcut_in = linear_shortcut(pixels, config.code_width, dtype=dtype, rngs=rngs)
            self.shortcut_out = linear_shortcut(config.code_width, pixels, dtype=dtype, rngs=rngs)
        self.quantizer = QUANTIZERS[config.quantizer](config, rngs=rngs)

    @property
    def has_shortcut(self) -> bool:
        """Whether a linear shortcut runs around the network: unless it is the paper's."""
        return self.patch != (1, 1, 1)

    def tokenize(self, video: jax.Array) -> jax.Array:
        """Video in [-0.5, 0.5], [B, F, H, W, 3] -> tokens, int32 [B, T, H, W]."""
        return self.quantizer.tokenize(self.encode(video))

    def decode_tokens(self, tokens: jax.Array) -> jax.Array:
        """Tokens [B, T, H, W] -> video, float32 [B, F, H, W, 3]."""
        return self.decode(self.quantizer.lookup(tokens))

    def encode(self, video: jax.Array, state: CausalConvState | None = None) -> jax.Array:
        """Video in [-0.5, 0.5], [B, F, H, W, 3] -> features before quantization, float32 [B, T, H,
        W, E].

        A causal tokenizer takes a state where the video is a part of a longer one; see
        streaming.py.
        """
        state = self._state(state)
        video = constrain(video, "batch", None, None, None, None)
        features = self.to_features(self.encoder(patchify(video, self.patch, state), state))
        if self.has_shortcut:
            features = self.shortcut_in(self.token_patches(video, state)) + CORRECTION * features
        return constrain(features.astype(jnp.float32), "batch", None, None, None, None)

    def decode(self, embeddings: jax.Array, state: CausalConvState | None = None) -> jax.Array:
        """Embeddings [B, T, H, W, E] -> video, float32 [B, F, H, W, 3], near [-0.5, 0.5] but not
        clipped to it.
        """
        state = self._state(state)
        embeddings = constrain(embeddings, "batch", None, None, None, None)
        video = unpatchify(self.decoder(self.from_embeddings(embeddings), state), self.patch, state)
        if self.has_shortcut:
            shortcut = unpatchify(self.shortcut_out(embeddings), self.compression, state)
            video = shortcut + CORRECTION * video
        return constrain(video.astype(jnp.float32), "batch", None, None, None, None)

    def token_patches(self, video: jax.Array, state: CausalConvState | None = None) -> jax.Array:
        """Video [B, F, H, W, 3] -> the pixels that each token stands for, [B, T, H, W, P]."""
        return patchify(video, self.compression, self._state(state))

    def _state(self, state: CausalConvState | None) -> CausalConvState | None:
        return CausalConvState() if self.causal and state is None else state


def tokenizer_hash(variables: nnx.State) -> str:
    """Names a tokenizer by its content: two of the same hash give the same tokens and pixels.

    Args:
        variables: of a `Tokenizer`, its state (such as running counts) included or not; only the
            parameters, the codebook and the statistics of BatchNorms count.
    """
    return hash_arrays(earlier_tokenizers.hashed_tree(variables))


def level_strides(compression: Size, patch: Size) -> tuple[Size, ...]:
    """Strides of each level, first to last, in the encoder and in the decoder alike.

    An axis whose compression is 2^n times its patch is strided in the first n levels (official
    rule, mebt/vqgan.py:282 and :323: the decoder does not run the encoder's levels backwards). If
    no axis has to be strided, one level without stride remains, so that the network keeps its
    residual blocks.
    """
    halvings = [(total // p).bit_length() - 1 for total, p in zip(compression, patch)]
    levels = max(halvings)
    if levels == 0:
        return ((1, 1, 1),)
    return tuple(tuple(2 if n > level else 1 for n in halvings) for level in range(levels))


def patchify(video: jax.Array, patch: Size, state: CausalConvState | None = None) -> jax.Array:
    """Space to depth: [B, F, H, W, C] -> [B, F/pf, H/ph, W/pw, pf*ph*pw*C].

    At the start of a causal video the first frame fills a patch of its own: 1 + pf * n frames
    become 1 + n.
    """
    pf, ph, pw = patch
    video = video if state is None else state.prepend(video, first=pf - 1, later=0)
    return rearrange(video, "b (f pf) (h ph) (w pw) c -> b f h w (pf ph pw c)", pf=pf, ph=ph, pw=pw)


def unpatchify(x: jax.Array, patch: Size, state: CausalConvState | None = None) -> jax.Array:
    """Depth to space, the inverse of `patchify`."""
    pf, ph, pw = patch
    video = rearrange(x, "b f h w (pf ph pw c) -> b (f pf) (h ph) (w pw) c", pf=pf, ph=ph, pw=pw)
    return video[:, pf - 1 :] if state is not None and state.is_first else video


class Encoder(nnx.Module):
    """[B, F, H, W, C] -> [B, T, H, W, hidden * 2^levels]; each level strides, doubles the channels
    and refines.
    """

    def __init__(
        self,
        hidden: int,
        patch: Size,
        strides: tuple[Size, ...],
        kernel: Size,
        norm: str,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.first = SameConv3d(patch_channels(patch), hidden, kernel, dtype=dtype, rngs=rngs)
        self.levels = nnx.List(
            [
                DownLevel(
                    hidden * 2**i, hidden * 2 ** (i + 1), s, kernel, norm, dtype=dtype, rngs=rngs
                )
                for i, s in enumerate(strides)
            ]
        )
        self.norm = NORMS[norm](hidden * 2 ** len(strides), dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, state: CausalConvState | None) -> jax.Array:
        x = self.first(x, state)
        for level in self.levels:
            x = level(x, state)
        return jax.nn.silu(self.norm(x))


class Decoder(nnx.Module):
    """[B, T, H, W, hidden * 2^levels] -> [B, F, H, W, C]; each level but the first halves the
    channels.
    """

    def __init__(
        self,
        hidden: int,
        patch: Size,
        strides: tuple[Size, ...],
        norm: str,
        *,
        gain: float,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        levels = len(strides)
        self.norm = NORMS[norm](hidden * 2**levels, dtype=dtype, rngs=rngs)
        # Note: the first level keeps its channels, the last ends at 2 * hidden (mebt/vqgan.py:330).
        self.levels = nnx.List(
            [
                UpLevel(
                    hidden * 2 ** min(levels, levels - i + 1),
                    hidden * 2 ** (levels - i),
                    s,
                    norm,
                    dtype=dtype,
                    rngs=rngs,
                )
                for i, s in enumerate(strides)
            ]
        )
        self.last = SameConv3d(
            2 * hidden, patch_channels(patch), (3, 3, 3), dtype=dtype, gain=gain, rngs=rngs
        )

    def __call__(self, x: jax.Array, state: CausalConvState | None) -> jax.Array:
        x = jax.nn.silu(self.norm(x))
        for level in self.levels:
            x = level(x, state)
        return self.last(x, state)


class DownLevel(nnx.Module):
    """A (strided) convolution and a residual block."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        strides: Size,
        kernel: Size,
        norm: str,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.down = SameConv3d(
            inputs, outputs, level_kernel(strides, kernel), strides, dtype=dtype, rngs=rngs
        )
        self.refine = ResidualBlock(outputs, kernel, norm, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, state: CausalConvState | None) -> jax.Array:
        """[B, F, H, W, inputs] -> [B, F/s, H/s, W/s, outputs]."""
        return self.refine(self.down(x, state), state)


class UpLevel(nnx.Module):
    """A (strided) transposed convolution and two residual blocks."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        strides: Size,
        norm: str,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.up = SameConvTranspose3d(
            inputs, outputs, level_kernel(strides, (3, 3, 3)), strides, dtype=dtype, rngs=rngs
        )
        self.refine1 = ResidualBlock(outputs, (3, 3, 3), norm, dtype=dtype, rngs=rngs)
        self.refine2 = ResidualBlock(outputs, (3, 3, 3), norm, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, state: CausalConvState | None) -> jax.Array:
        """[B, F, H, W, inputs] -> [B, F*s, H*s, W*s, outputs]."""
        return self.refine2(self.refine1(self.up(x, state), state), state)


class ResidualBlock(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), all of one width."""

    def __init__(self, channels: int, kernel: Size, norm: str, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm1 = NORMS[norm](channels, dtype=dtype, rngs=rngs)
        self.conv1 = SameConv3d(channels, channels, kernel, dtype=dtype, rngs=rngs)
        self.norm2 = NORMS[norm](channels, dtype=dtype, rngs=rngs)
        self.conv2 = SameConv3d(channels, channels, kernel, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, state: CausalConvState | None) -> jax.Array:
        hidden = _norm_silu_conv(self.norm1, self.conv1, x, state)
        return x + _norm_silu_conv(self.norm2, self.conv2, hidden, state)


def _norm_silu_conv(
    norm: nnx.Module, conv: SameConv3d, x: jax.Array, state: CausalConvState | None
) -> jax.Array:
    normalize = norm.for_batch(x)

    def convolve(x: jax.Array) -> jax.Array:
        return conv(jax.nn.silu(normalize(x)), state)

    if state is not None:
        return convolve(x)  # a checkpoint would not let out the frames that the state collects
    # The backward pass computes norm, silu and padding again, which costs little, and not the
    # convolution, whose gradients need its input alone. So one array is kept, and not three or
    # four.
    return jax.checkpoint(convolve)(x)


def level_kernel(strides: Size, kernel: Size) -> Size:
    """Kernel size of the convolution that changes the resolution: 4 on all axes if any is strided
    (official), otherwise that of the level's residual blocks.
    """
    return kernel if strides == (1, 1, 1) else (4, 4, 4)


def linear_shortcut(inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """Linear map that starts as a partial isometry, which keeps lengths."""
    return nnx.Linear(
        inputs, outputs, kernel_init=nnx.initializers.orthogonal(), dtype=dtype, rngs=rngs
    )


def patch_channels(patch: Size) -> int:
    """Channels of a video after `patchify`."""
    pf, ph, pw = patch
    return pf * ph * pw * COLOURS
