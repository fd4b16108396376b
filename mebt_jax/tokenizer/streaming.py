"""Videos of any length through a causal tokenizer, part by part at constant memory; the result is
that of the whole video at once.

The state between two parts is the last frames that each causal layer saw
(`convolutions.CausalConvState`). The first part has 1 + n * compression[0] frames, any later one a
multiple of compression[0].
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from mebt_jax.nn.convolutions import CausalConvState
from mebt_jax.tokenizer.autoencoder import Tokenizer

# `CausalConvState.next_frames` after a part, [B, f, h, w, c] each; None before the first part.
Frames = tuple[jax.Array, ...] | None


def encode_part(tokenizer: Tokenizer, video: jax.Array, frames: Frames) -> tuple[jax.Array, Frames]:
    """Video [B, F, H, W, 3] in [-0.5, 0.5] and the state before it -> tokens [B, T, H, W] and the
    state after it.
    """
    state = CausalConvState(frames)
    tokens = tokenizer.quantizer.tokenize(tokenizer.encode(video, state))
    return tokens, tuple(state.next_frames)


def decode_part(
    tokenizer: Tokenizer, tokens: jax.Array, frames: Frames
) -> tuple[jax.Array, Frames]:
    """Tokens [B, T, H, W] and the state before them -> video, float32 [B, F, H, W, 3], and the
    state after them.
    """
    state = CausalConvState(frames)
    video = tokenizer.decode(tokenizer.quantizer.lookup(tokens), state)
    return video, tuple(state.next_frames)


def stream(
    step: Callable[[Any, Frames], tuple[Any, Frames]], parts: Iterable[Any]
) -> Iterator[Any]:
    """Results of `step` (one of the above, jitted) for each part, one after the other."""
    state = None
    for part in parts:
        result, state = step(part, state)
        yield result
