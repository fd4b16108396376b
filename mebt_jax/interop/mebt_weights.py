"""Weights of the official PyTorch transformer (mebt/transformer.py, mebt/modules/gpt.py) as
parameters of `MeBT`, and back.

Works on mappings from names to numpy arrays, whatever file format they come from, without PyTorch.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from flax import nnx

from mebt_jax.backbones.interface import TokenGrid
from mebt_jax.backbones.mebt.mebt_config import MeBTConfig
from mebt_jax.backbones.mebt.model import MeBT
from mebt_jax.backbones.mebt.stack import find_units
from mebt_jax.errors import UserError
from mebt_jax.interop.names import LINEAR, Pair, Part, Path, filled, from_official, part_of

# Of the frozen tokenizer in a training checkpoint, which has its own conversion.
TOKENIZER_PREFIX = "first_stage_model."

# Official kinds of block (gpt.py:166) -> ours. "full" and "modern" have no official counterpart.
KINDS = {
    "latent_enc": "encode",
    "latent_self": "latent",
    "lt2l": "update",
    "latent_dec": "decode",
    "maskgit": "maskgit",
}

TABLES = {
    ("token_embedding",): Pair(("tok_emb.weight",)),
    ("position_embedding",): Pair(("pos_emb",), "1 n d -> n d"),
    ("mask_embedding",): Pair(("mask_emb",), "1 1 d -> d"),
    ("latents",): Pair(("sos_emb",), "1 l d -> l d"),
    ("final_norm", "scale"): Pair(("transformer.ln_f.weight",)),
    ("final_norm", "bias"): Pair(("transformer.ln_f.bias",)),
    ("head", "kernel"): Pair(("transformer.head.weight",), LINEAR),
}
BLOCK_LAYERS = {
    "attention_norm": "ln1",
    "mlp_norm": "ln2",
    "attention.query": "attn.query",
    "attention.key": "attn.key",
    "attention.value": "attn.value",
    "attention.output": "attn.proj",
    "mlp.up_proj": "mlp.0",
    "mlp.down_proj": "mlp.2",
}
LEAVES = {"kernel": ("weight", LINEAR), "scale": ("weight", ""), "bias": ("bias", "")}
FIX = "give config.backbone the layers, width and num_latents of that checkpoint."


def transformer_from_official(
    state_dict: Mapping[str, np.ndarray], config: MeBTConfig
) -> nnx.State:
    """Parameters of `MeBT(config)` from an official state dict; V and N follow from its embedding
    tables.

    Args:
        state_dict: of official transformer.py's Net2NetTransformer: `tok_emb.weight`, `pos_emb`,
            `mask_emb`, `sos_emb` and `transformer.*`, as a training checkpoint names them;
            `first_stage_model.*` (the tokenizer) is ignored.
        config: its `layers` name the kinds of the blocks, which do not follow from the state dict.

    Returns:
        The state that `nnx.split(model, nnx.Param)` gives, float32 numpy arrays.

    Raises:
        UserError: names every parameter that is unknown, missing, or of another shape.
    """
    arrays = {
        name: array for name, array in state_dict.items() if not name.startswith(TOKENIZER_PREFIX)
    }
    vocab_size, positions = (
        arrays[name].shape[axis] if name in arrays and arrays[name].ndim >= 2 else 0
        for name, axis in (("tok_emb.weight", 0), ("pos_emb", -2))
    )
    state, part = transformer_part(config, vocab_size, positions)
    return filled(state, from_official(arrays, {"transformer": part}, fix=FIX)["transformer"])


def transformer_part(config: MeBTConfig, vocab_size: int, positions: int) -> tuple[nnx.State, Part]:
    """Abstract parameters of `MeBT(config)` and their leaves in the official transformer that
    computes the same.

    Raises:
        UserError: there is none, because of the residual, the positions or a kind of block.
    """
    if (
        config.residual != "normed_query"
        or config.positions != "learned"
        or "full" in config.layers
    ):
        kinds = ", ".join(sorted(set(config.layers)))
        raise UserError(
            f"config.backbone has residual {config.residual!r}, positions {config.positions!r} and "
            f"layers {kinds}, but official transformers have 'normed_query', 'learned' and no full "
            "layers; only such a transformer can be converted both ways."
        )
    grid = (positions, 1, 1)  # only the number of positions shows in the parameters
    tokens = TokenGrid(vocab_size, grid)
    model = nnx.eval_shape(lambda: MeBT(config, tokens, rngs=nnx.Rngs(0)))
    state = nnx.state(model, nnx.Param)
    pairs = TABLES | dict(_block_pairs(config))
    return state, part_of(state, pairs.__getitem__)


def _block_pairs(config: MeBTConfig) -> Iterator[tuple[Path, Pair]]:
    """Every parameter of the blocks, whose layers are stacked where a unit of them repeats."""
    first = 0
    for stack, (unit, repeats) in enumerate(find_units(config.layers)):
        for i in range(len(unit)):
            layers = [first + repeat * len(unit) + i for repeat in range(repeats)]
            for ours, official in BLOCK_LAYERS.items():
                for leaf in ("scale" if ours.endswith("norm") else "kernel", "bias"):
                    name, layout = LEAVES[leaf]
                    names = tuple(
                        f"transformer.blocks.{layer}.{official}.{name}" for layer in layers
                    )
                    path = ("stacks", stack, "blocks", i, *ours.split("."), leaf)
                    yield path, Pair(names, layout)
        first += repeats * len(unit)
