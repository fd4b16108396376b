"""The forward pass of decoding: exact keys and values of the known tokens are kept, and nothing is
computed that no one uses.

No layer but `maskgit` changes a context token, so what a context token offers to the latents in
every encode block follows from its code and position alone. It is computed once, when the token
becomes known, and replaced when the token changes. The cache has a slot per token of the clip;
which token lies in which slot is the caller's business.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from mebt_jax.backbones.mebt.block import apply_block, gathered_side
from mebt_jax.backbones.mebt.model import MeBT
from mebt_jax.backbones.mebt.stack import Stack
from mebt_jax.nn.attention import KeySet
from mebt_jax.runtime.mesh import constrain, gather, platform, splits

# For every stack and every encode block of its unit, keys and values [B, repeats, slots, K, Dh].
# Slots are not split over devices: the first C of them, which are asked, would lie on a few; what
# is computed with them is split.
Cache = tuple[tuple[tuple[jax.Array, jax.Array], ...], ...]

CODES_AT_A_TIME = 2048  # of `logits`


def can_cache(model: MeBT) -> bool:
    """Whether the contexts stay as they are from layer to layer."""
    return not any("maskgit" in stack.unit for stack in model.stacks)


def keys_and_values(model: MeBT, codes: jax.Array, positions: jax.Array) -> Cache:
    """What tokens offer to the latents: a cache of as many slots as there are `codes` and
    `positions`, int32 [B, S].
    """
    tokens = model.embed_contexts(codes, positions)  # [B, S, D]
    angles = model.angles(contexts=positions)
    return tuple(
        _offered(stack, tokens, None if angles is None else angles["contexts"])
        for stack in model.stacks
    )


def write(cache: Cache, slots: jax.Array, new: Cache) -> Cache:
    """Replaces the given slots, int32 [S] or one row per clip [B, S], by those of `new`; slots out
    of range are left out.
    """
    if slots.ndim == 1:
        return jax.tree.map(
            lambda kept, made: kept.at[:, :, slots].set(made, mode="drop"), cache, new
        )
    put = jax.vmap(lambda kept, row, made: kept.at[:, row].set(made, mode="drop"))
    return jax.tree.map(lambda kept, made: put(kept, slots, made), cache, new)


def hidden_states(
    model: MeBT,
    cache: Cache,
    context_valid: jax.Array,
    target_positions: jax.Array,
    target_valid: jax.Array,
    *,
    asked: int,
) -> jax.Array:
    """What `MeBT.__call__` gives for the first `asked` targets, [B, asked, D].

    Args:
        cache: of at least C slots.
        context_valid: [B, C] bool, which of the first C slots are contexts.
        target_positions: [B, M] int32; those that are asked for come first.
        target_valid: [B, M] bool.
        asked: the last decode block runs for these alone, since no other token sees its result.
    """
    tokens = model.embed_rest(target_positions)
    valid = {"targets": target_valid}
    angles = model.angles(targets=target_positions)
    for stack, kept in zip(model.stacks, cache):
        if stack is model.stacks[-1] and stack.unit == ("decode",) and stack.repeats == 1:
            tokens, valid = (
                tokens | {"targets": tokens["targets"][:, :asked]},
                {"targets": target_valid[:, :asked]},
            )
            angles = None if angles is None else angles | {"targets": angles["targets"][:, :asked]}
        tokens = _run_stack(stack, kept, tokens, valid, angles, context_valid)
    return model.final_norm(tokens["targets"][:, :asked])


def logits(model: MeBT, hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    """`MeBT.logits`, but on a CPU for some codes at a time, as a product there first copies all of
    its right side [D, V].
    """
    codes = kernel.shape[1]
    if platform() != "cpu" or splits("codes") or codes % CODES_AT_A_TIME:
        return model.logits(hidden, kernel)

    def of_some(first: jax.Array) -> jax.Array:
        return model.logits(
            hidden, jax.lax.dynamic_slice_in_dim(kernel, first, CODES_AT_A_TIME, axis=1)
        )

    made = jax.lax.map(of_some, jnp.arange(0, codes, CODES_AT_A_TIME))  # [V / n, B, m, n]
    return jnp.moveaxis(made, 0, 2).reshape(*hidden.shape[:2], codes)


def _offered(
    stack: Stack, tokens: jax.Array, angles: jax.Array | None
) -> tuple[tuple[jax.Array, jax.Array], ...]:
    graphdef, params = nnx.split(stack.blocks)

    def of_unit(params: nnx.State) -> tuple[tuple[jax.Array, jax.Array], ...]:
        blocks = nnx.merge(graphdef, gather(params))
        offered = (
            block.key_set(tokens, None, angles)
            for block, kind in zip(blocks, stack.unit)
            if kind == "encode"
        )
        return tuple((one.key, one.value) for one in offered)

    if stack.repeats == 1:
        return jax.tree.map(lambda x: x[:, None], of_unit(params))
    return jax.vmap(of_unit, out_axes=1)(params)


def _run_stack(
    stack: Stack,
    kept: tuple[tuple[jax.Array, jax.Array], ...],
    tokens: dict[str, jax.Array],
    valid: dict[str, jax.Array],
    angles: dict[str, jax.Array] | None,
    context_valid: jax.Array,
) -> dict[str, jax.Array]:
    """Runs the repeats of a unit on latents [B, L, D] and targets [B, M, D]."""
    graphdef, params = nnx.split(stack.blocks)
    contexts = context_valid.shape[1]
    latent_angles = None if angles is None else angles["latents"]

    def run_unit(tokens: dict[str, jax.Array], own_and_index: tuple[nnx.State, jax.Array]):
        own, index = own_and_index
        offers = iter(kept)
        for block, kind in zip(nnx.merge(graphdef, gather(own)), stack.unit):
            if kind == "encode":
                # One layer at a time is cut out of the cache; as an operand of the scan all layers
                # would be copied.
                key, value = (
                    constrain(
                        jax.lax.dynamic_index_in_dim(x, index, axis=1, keepdims=False)[
                            :, :contexts
                        ],
                        "batch",
                        "tokens",
                        "heads",
                        None,
                    )
                    for x in next(offers)
                )
                tokens = tokens | {
                    "latents": block(
                        tokens["latents"],
                        [KeySet(key, value, context_valid)],
                        latent_angles,
                        gather=gathered_side("latents"),
                    )
                }
            else:
                tokens = apply_block(block, kind, tokens, valid, angles)
        return tokens, None

    if stack.repeats == 1:
        return run_unit(tokens, (params, jnp.int32(0)))[0]
    return jax.lax.scan(run_unit, tokens, (params, jnp.arange(stack.repeats)))[0]
