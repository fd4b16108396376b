"""The tokenizer's network: video to features and back, with the codebook of `quantizers.py` in
between.

With `patch == (1, 1, 1)` it computes what the official 3D VQGAN computes (mebt/vqgan.py, the same
as TATS). A larger patch folds pixels into channels before the first convolution and out of them
after the last, so that the same network runs at a lower resolution, and adds a learned linear
shortcut around it (after the residual autoencoding of DC-AE, Chen et al. 2024, whose shortcuts have
no parameters). `fitting.py` starts the shortcuts at the principal components of the patches and the
network in silence, so that it only learns what a linear map of the pixels cannot do.

A causal tokenizer (`config.tokenizer.causal`) sees no later frame: its first token stands for one
frame, so that an image is a clip, and every other for `compression[0]` frames; long videos pass
through it in pieces (`streaming.py`).

A patch of the whole compression makes the encoder pointwise: a code then follows from its own patch
alone, and equal patches have equal codes whatever lies around them, which leaves the transformer
less to guess.
"""

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx

from mebt_jax.config import TokenizerConfig
from mebt_jax.nn.convolutions import Past, SameConv3d, SameConvTranspose3d, Size
from mebt_jax.nn.norms import BatchNorm, make_norm
from mebt_jax.runtime.checkpoints import content_hash
from mebt_jax.runtime.mesh import constrain
from mebt_jax.tokenizer import quantizers

COLOURS = 3
OUTPUT_GAIN = 0.1  # of the last convolution: an untrained decoder paints mid-grey instead of noise
# Beside a fitted shortcut the network counts in units of what that leaves over. Adam moves all of
# the thousands of weights behind an output by the learning rate at once: at full size the first
# steps would shift pixels by more than the whole error of the shortcut.
CORRECTION = 0.05


class Tokenizer(nnx.Module):
    """Encoder, decoder and the projections to and from the code width; a codebook is a part of it
    only if trained by gradient.
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
        folded = config.patch != (1, 1, 1)
        self.to_features = SameConv3d(
            top, config.code_width, (1, 1, 1), dtype=dtype, gain=0.0 if folded else 1.0, rngs=rngs
        )
        self.from_embeddings = SameConv3d(config.code_width, top, (1, 1, 1), dtype=dtype, rngs=rngs)
        self.decoder = Decoder(
            config.hidden,
            config.patch,
            strides,
            config.norm,
            gain=0.0 if folded else OUTPUT_GAIN,
            dtype=dtype,
            rngs=rngs,
        )
        if folded:
            self.shortcut_in = shortcut(
                patch_channels(config.compression), config.code_width, dtype=dtype, rngs=rngs
            )
            self.shortcut_out = shortcut(
                config.code_width, patch_channels(config.compression), dtype=dtype, rngs=rngs
            )

        trained = config.quantizer == "gradient"
        self.codes = (
            nnx.Param(jax.random.normal(rngs.params(), (config.codes, config.code_width)))
            if trained
            else None
        )

    def encode(self, video: jax.Array, past: Past | None = None) -> jax.Array:
        """Video in [-0.5, 0.5], [B, F, H, W, 3] -> features before quantization, float32 [B, T, H,
        W, E].

        A causal tokenizer takes a past where the video is a piece of a stream; see streaming.py.
        """
        past = self._past(past)
        video = constrain(video, "batch", None, None, None, None)
        features = self.to_features(self.encoder(fold_patches(video, self.patch, past), past))
        if self.patch != (1, 1, 1):
            features = self.shortcut_in(self.whole_patches(video, past)) + CORRECTION * features
        return constrain(features.astype(jnp.float32), "batch", None, None, None, None)

    def decode(self, embeddings: jax.Array, past: Past | None = None) -> jax.Array:
        """Embeddings [B, T, H, W, E] -> video, float32 [B, F, H, W, 3], near [-0.5, 0.5] but not
        clipped to it.
        """
        past = self._past(past)
        embeddings = constrain(embeddings, "batch", None, None, None, None)
        video = unfold_patches(
            self.decoder(self.from_embeddings(embeddings), past), self.patch, past
        )
        if self.patch != (1, 1, 1):
            video = (
                unfold_patches(self.shortcut_out(embeddings), self.compression, past)
                + CORRECTION * video
            )
        return constrain(video.astype(jnp.float32), "batch", None, None, None, None)

    def whole_patches(self, video: jax.Array, past: Past | None = None) -> jax.Array:
        """Video [B, F, H, W, 3] -> the pixels that each token stands for, [B, T, H, W, P]."""
        return fold_patches(video, self.compression, self._past(past))

    def _past(self, past: Past | None) -> Past | None:
        return Past() if self.causal and past is None else past


def encode_to_codes(
    tokenizer: Tokenizer, codebook: quantizers.Codebook, video: jax.Array
) -> jax.Array:
    """Video in [-0.5, 0.5], [B, F, H, W, 3] -> code indices, int32 [B, T, H, W]."""
    return quantizers.nearest_codes(own_codes(tokenizer, codebook), tokenizer.encode(video))


def decode_codes(
    tokenizer: Tokenizer, codebook: quantizers.Codebook, codes: jax.Array
) -> jax.Array:
    """Code indices [B, T, H, W] -> video, float32 [B, F, H, W, 3]."""
    return tokenizer.decode(quantizers.lookup(own_codes(tokenizer, codebook), codes))


def own_codes(tokenizer: Tokenizer, codebook: quantizers.Codebook) -> quantizers.Codebook:
    """The codebook with the embeddings that are parameters of the tokenizer, where they are."""
    return (
        codebook if tokenizer.codes is None else codebook.replace(embeddings=tokenizer.codes[...])
    )


def tokenizer_hash(params: nnx.State, codebook: quantizers.Codebook) -> str:
    """Names a tokenizer by content: two of the same hash give the same codes."""
    return content_hash({"params": params, "codes": codebook.embeddings})


def level_strides(compression: Size, patch: Size) -> tuple[Size, ...]:
    """Strides of each level, first to last, in the encoder and in the decoder alike.

    An axis that is compressed by the patch times 2^n is strided in the first n levels (official
    rule, mebt/vqgan.py:282 and :323: the decoder does not run the encoder's levels backwards). If
    nothing is left to stride, one level without stride remains, so that the network keeps its
    residual blocks.
    """
    halvings = [(total // p).bit_length() - 1 for total, p in zip(compression, patch)]
    levels = max(halvings)
    if levels == 0:
        return ((1, 1, 1),)
    return tuple(tuple(2 if n > level else 1 for n in halvings) for level in range(levels))


def fold_patches(video: jax.Array, patch: Size, past: Past | None = None) -> jax.Array:
    """Space to depth: [B, F, H, W, C] -> [B, F/pf, H/ph, W/pw, pf*ph*pw*C].

    Where a past begins, the first frame fills a patch of its own: 1 + pf * n frames become 1 + n.
    """
    pf, ph, pw = patch
    video = video if past is None else past.lead(video, first=pf - 1, later=0)
    return rearrange(video, "b (f pf) (h ph) (w pw) c -> b f h w (pf ph pw c)", pf=pf, ph=ph, pw=pw)


def unfold_patches(x: jax.Array, patch: Size, past: Past | None = None) -> jax.Array:
    """Depth to space, the inverse of `fold_patches`."""
    pf, ph, pw = patch
    video = rearrange(x, "b f h w (pf ph pw c) -> b (f pf) (h ph) (w pw) c", pf=pf, ph=ph, pw=pw)
    return video[:, pf - 1 :] if past is not None and past.begins else video


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
        self.norm = make_norm(norm, hidden * 2 ** len(strides), dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, past: Past | None) -> jax.Array:
        x = self.first(x, past)
        for level in self.levels:
            x = level.refine(level.down(x, past), past)
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
        self.norm = make_norm(norm, hidden * 2**levels, dtype=dtype, rngs=rngs)
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

    def __call__(self, x: jax.Array, past: Past | None) -> jax.Array:
        x = jax.nn.silu(self.norm(x))
        for level in self.levels:
            x = level.refine2(level.refine1(level.up(x, past), past), past)
        return self.last(x, past)


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


class ResidualBlock(nnx.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), all of one width."""

    def __init__(self, channels: int, kernel: Size, norm: str, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm1 = make_norm(norm, channels, dtype=dtype, rngs=rngs)
        self.conv1 = SameConv3d(channels, channels, kernel, dtype=dtype, rngs=rngs)
        self.norm2 = make_norm(norm, channels, dtype=dtype, rngs=rngs)
        self.conv2 = SameConv3d(channels, channels, kernel, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, past: Past | None) -> jax.Array:
        def half(norm: nnx.Module, conv: SameConv3d, x: jax.Array) -> jax.Array:
            norm = norm.for_batch(x) if isinstance(norm, BatchNorm) else norm
            convolved = lambda x: conv(jax.nn.silu(norm(x)), past)  # noqa: E731
            if past is not None:
                return convolved(x)  # a checkpoint would not let out what the layers tell the past
            # The way back makes norm, silu and padding anew, which costs little, and not the
            # convolution, since its gradients need its input alone: one array is kept where there
            # would be three or four.
            return jax.checkpoint(convolved)(x)

        return x + half(self.norm2, self.conv2, half(self.norm1, self.conv1, x))


def level_kernel(strides: Size, kernel: Size) -> Size:
    """Kernel size of a level's own convolution: 4 on all axes if any is strided (official), else
    that of its blocks.
    """
    return kernel if strides == (1, 1, 1) else (4, 4, 4)


def shortcut(inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """Linear map that starts as a partial isometry: it neither shrinks nor swells what it passes
    on.
    """
    return nnx.Linear(
        inputs, outputs, kernel_init=nnx.initializers.orthogonal(), dtype=dtype, rngs=rngs
    )


def patch_channels(patch: Size) -> int:
    """Channels of a video folded by `patch`."""
    pf, ph, pw = patch
    return pf * ph * pw * COLOURS
