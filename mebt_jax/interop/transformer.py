"""Weights of the official PyTorch transformer as parameters of `MeBT`.

Only this folder knows PyTorch's names.
"""

from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx, traverse_util

from mebt_jax.config import TransformerConfig
from mebt_jax.errors import UserError
from mebt_jax.transformer.model import MeBT
from mebt_jax.transformer.stack import find_units

# A training checkpoint also holds the frozen tokenizer, which has its own conversion.
IGNORED_PREFIX = "first_stage_model."

EMBEDDINGS = {
    "token_embedding": "tok_emb.weight",
    "position_embedding": "pos_emb",
    "mask_embedding": "mask_emb",
    "latents": "sos_emb",
}
BLOCK_LAYERS = {
    "attention_norm": "ln1", "mlp_norm": "ln2", "query": "attn.query", "key": "attn.key", "value": "attn.value",
    "output": "attn.proj", "mlp_in": "mlp.0", "mlp_out": "mlp.2",
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def transformer_from_official(state_dict: Mapping[str, np.ndarray], config: TransformerConfig) -> nnx.State:
    """Parameters of `MeBT(config)` from an official state dict; V and N follow from its embedding tables.

    Args:
        state_dict: of official transformer.py's Net2NetTransformer: `tok_emb.weight`, `pos_emb`, `mask_emb`, `sos_emb` and
            `transformer.*`, as a training checkpoint names them; `first_stage_model.*` (the tokenizer) is ignored.
        config: its `layers` name the kinds of the blocks, which the state dict does not tell.

    Returns:
        The state that `nnx.split(model, nnx.Param)` gives, float32.

    Raises:
        UserError: names every parameter that is unknown, missing, or of another shape.
    """
    arrays = {name: array for name, array in state_dict.items() if not name.startswith(IGNORED_PREFIX)}
    names = dict(_names(config))
    missing = sorted({name for parts in names.values() for name in parts} - arrays.keys())
    unknown = sorted(arrays.keys() - {name for parts in names.values() for name in parts})
    if missing or unknown:
        raise UserError(f"The official state dict does not fit the {len(config.layers)} layers of config.transformer: "
                        f"missing {', '.join(missing) or 'nothing'}; unknown {', '.join(unknown) or 'nothing'}; set "
                        f"config.transformer.layers to the layers of that checkpoint.")

    model = nnx.eval_shape(lambda: MeBT(config, num_codes=arrays["tok_emb.weight"].shape[0],
                                        num_positions=arrays["pos_emb"].shape[-2], rngs=nnx.Rngs(0)))
    state = nnx.state(model, nnx.Param)
    shapes = {path: leaf.shape[1:] if len(names[path]) > 1 else leaf.shape
              for path, leaf in traverse_util.flatten_dict(nnx.to_pure_dict(state)).items()}
    misshapen = [f"{name} {tuple(arrays[name].shape)} instead of {_official_shape(path, shape)}"
                 for path, shape in shapes.items() for name in names[path]
                 if tuple(arrays[name].shape) != _official_shape(path, shape)]
    if misshapen:
        raise UserError(f"The official state dict has other sizes than config.transformer: {'; '.join(misshapen)}; set its "
                        f"width and latents to those of that checkpoint.")

    def convert(path: tuple, name: str) -> np.ndarray:
        array = np.asarray(arrays[name], np.float32)
        return array.T if path[-1] == "kernel" else array.reshape(shapes[path])

    filled = {}
    for path in shapes:
        parts = [convert(path, name) for name in names[path]]
        filled[path] = jnp.asarray(np.stack(parts) if len(parts) > 1 else parts[0])
    nnx.replace_by_pure_dict(state, traverse_util.unflatten_dict(filled))
    return state


def _names(config: TransformerConfig) -> Iterator[tuple[tuple, list[str]]]:
    """Every parameter's path in our tree with its official name, or names in order where it is stacked."""
    yield from (((ours,), [official]) for ours, official in EMBEDDINGS.items())
    yield ("final_norm", "scale"), ["transformer.ln_f.weight"]
    yield ("final_norm", "bias"), ["transformer.ln_f.bias"]
    yield ("head", "kernel"), ["transformer.head.weight"]
    first = 0
    for stack, (unit, repeats) in enumerate(find_units(config.layers)):
        for i in range(len(unit)):
            layers = [first + repeat * len(unit) + i for repeat in range(repeats)]
            for ours, official in BLOCK_LAYERS.items():
                for leaf in ("scale" if ours.endswith("norm") else "kernel", "bias"):
                    path = ("stacks", stack, "blocks", i, ours, leaf)
                    yield path, [f"transformer.blocks.{layer}.{official}.{LEAVES[leaf]}" for layer in layers]
        first += repeats * len(unit)


def _official_shape(path: tuple, shape: tuple[int, ...]) -> tuple[int, ...]:
    if path[-1] == "kernel":
        return shape[::-1]
    if path[0] == "mask_embedding":
        return (1, 1, *shape)
    return (1, *shape) if path[0] in ("position_embedding", "latents") else shape
