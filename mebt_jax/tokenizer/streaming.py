"""Videos of any length through a causal tokenizer, piece by piece at constant memory; the whole at
once gives the same.

The state between two pieces is the last frames that each causal layer saw (`convolutions.Past`).
The first piece has 1 + n * compression[0] frames, any later one a multiple of compression[0].
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax

from mebt_jax.nn.convolutions import Past
from mebt_jax.tokenizer import quantizers
from mebt_jax.tokenizer.autoencoder import Tokenizer, own_codes

Frames = tuple[jax.Array, ...]  # `Past.after` of a piece, [B, f, h, w, c] each


def encode_piece(
    tokenizer: Tokenizer, codebook: quantizers.Codebook, video: jax.Array, before: Frames | None
) -> tuple[jax.Array, Frames]:
    """Frames [B, F, H, W, 3] in [-0.5, 0.5] and the state before them (None: they are the first) ->
    codes [B, T, H, W], state.
    """
    past = Past(before)
    codes = quantizers.nearest_codes(own_codes(tokenizer, codebook), tokenizer.encode(video, past))
    return codes, tuple(past.after)


def decode_piece(
    tokenizer: Tokenizer, codebook: quantizers.Codebook, codes: jax.Array, before: Frames | None
) -> tuple[jax.Array, Frames]:
    """Codes [B, T, H, W] and the state before them -> frames, float32 [B, F, H, W, 3], and the
    state.
    """
    past = Past(before)
    video = tokenizer.decode(quantizers.lookup(own_codes(tokenizer, codebook), codes), past)
    return video, tuple(past.after)


def stream(
    step: Callable[[Any, Frames | None], tuple[Any, Frames]], pieces: Iterable[Any]
) -> Iterator[Any]:
    """What `step` (one of the above, jitted) makes of each piece, one after the other."""
    state = None
    for piece in pieces:
        made, state = step(piece, state)
        yield made
