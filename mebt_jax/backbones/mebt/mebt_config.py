"""Fields of `config.backbone` for the kind "mebt", and named presets of three of them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mebt_jax.config_fields import DTYPES, field
from mebt_jax.errors import UserError

if TYPE_CHECKING:
    from mebt_jax.config import Config

LEAST_ROTARY_WIDTH = 6  # channels of a head: a pair for each axis of the grid

# For `config.backbone.update(FLAVOURS["modern"])`. "paper" computes what the official code
# computes, quirks included, and starts as noise; "modern" starts with heads that look nearby, and
# so learns in hundreds of steps which tokens are neighbours.
FLAVOURS = {
    "paper": {"residual": "normed_query", "positions": "learned", "initialization": "normal"},
    "modern": {"residual": "query", "positions": "rotary", "initialization": "local"},
}


@dataclasses.dataclass(frozen=True)
class MeBTConfig:
    """MeBT: latents that encode the context and from which targets are decoded (paper section
    3.2).
    """

    kind: str = field("mebt", "Which backbone.", fits_weights=True)
    layers: tuple[str, ...] = field(
        ("encode", "latent") * 6 + ("encode",) + ("decode", "update") * 5 + ("decode",),
        "Kinds of block from input to output (24 layers in the paper).",
        one_of="mebt_jax.backbones.mebt.block:ATTENTION_PATTERNS",
        fits_weights=True,
    )
    width: int = field(1024, "D, channels of a token (paper: 1024).", least=1, fits_weights=True)
    heads: int = field(16, "K, attention heads (paper: 16).", least=1, fits_weights=True)
    num_latents: int = field(256, "L, number of latents (paper: 256).", least=1, fits_weights=True)
    residual: str = field(
        "normed_query",
        'What attention adds its output to: "normed_query", the normalised query, as in the paper '
        'and the official code (gpt.py:180-185), or "query" itself, as in a plain pre-norm block.',
        one_of=("normed_query", "query"),
        fits_weights=True,
    )
    positions: str = field(
        "learned",
        '"learned" adds a learned table to the tokens (paper); "rotary" beside that rotates '
        "queries and keys by their positions.",
        one_of=("learned", "rotary"),
        fits_weights=True,
    )
    initialization: str = field(
        "normal",
        '"normal" starts as noise (official); "local" with heads that look nearby.',
        one_of=("normal", "local"),
    )
    embedding_dropout: float = field(0.0, "Dropout rate of embeddings.", least=0, below=1)
    residual_dropout: float = field(0.0, "Dropout rate of block outputs.", least=0, below=1)
    attention_dropout: float = field(0.0, "Dropout rate of attention weights.", least=0, below=1)
    remat: str = field(
        "save_query_projections",
        'What the backward pass computes again, from most memory to least: "none", '
        '"dots_saveable" (all but the linear layers), "save_query_projections" (also keys and '
        'values), "full" (everything inside a block).',
        one_of="mebt_jax.backbones.mebt.stack:REMAT_POLICIES",
        no_result=True,
    )
    attention_implementation: str = field(
        "auto",
        '"auto" for the platform\'s attention kernel where it applies (TPU: splash, GPU: cuDNN in '
        'bfloat16), "xla" to go without.',
        one_of="mebt_jax.nn.attention:IMPLEMENTATIONS",
        no_result=True,
    )
    dtype: str = field(
        "bfloat16",
        "Compute precision; parameters, softmax, norms and loss stay float32.",
        one_of=DTYPES,
    )

    def check(self, config: Config, path: str) -> None:
        if self.width % self.heads:
            raise UserError(
                f"{path}.width is {self.width}, which {path}.heads {self.heads} does not divide."
            )
        if self.positions == "rotary" and self.width // self.heads < LEAST_ROTARY_WIDTH:
            raise UserError(
                f"{path}.width is {self.width} for {self.heads} heads, but the positions 'rotary' "
                f"need {LEAST_ROTARY_WIDTH} channels a head, two for each axis; raise the width or "
                "lower the heads."
            )
