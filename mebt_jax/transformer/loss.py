"""Cross-entropy over the targets without ever holding all their logits (design: never a whole logits array)."""

import einops
import jax
import jax.numpy as jnp
from flax import struct

from mebt_jax.runtime.mesh import constrain, copies
from mebt_jax.transformer.model import MeBT


@struct.dataclass
class LossOutput:
    """Means over the valid targets of the whole batch, float32 scalars."""

    loss: jax.Array  # what training minimises, label smoothing included
    nll: jax.Array  # negative log-likelihood in nats per token
    accuracy: jax.Array  # share of targets whose most probable code is the right one


def masked_cross_entropy(
    model: MeBT,
    hidden: jax.Array,
    target_codes: jax.Array,
    target_valid: jax.Array,
    *,
    block: int,
    label_smoothing: float,
) -> LossOutput:
    """Mean cross-entropy of the valid targets; logits exist for at most `block` targets per clip at one time.

    Args:
        model: gives `logits`.
        hidden: [B, M, D], output of the model.
        target_codes: [B, M] int32.
        target_valid: [B, M] bool; padding counts nowhere, and without any valid target everything is 0.
        block: targets per clip whose logits are made together, in the forward and again in the backward pass.
        label_smoothing: share of the target probability spread over all V codes (as torch's cross_entropy does).

    Note: official transformer.py:723-730 divides the sum by all masked tokens (avg_loss = 1). That is this mean, unless a
    target budget leaves masked tokens out: then the official loss is smaller by the share of masked tokens kept.
    """
    # In float32: the gradients of all blocks are added up in this type.
    kernels = copies(model.head.kernel[...], ("batch", "tokens"), None, "codes")  # [a, s, D, V]

    @jax.checkpoint
    def add_block(sums, inputs):
        hidden, codes, valid = inputs  # [B, m, D], [B, m], [B, m]
        logits = _logits_by_copies(hidden, kernels, model.dtype)  # [B, m, V]
        nll, log_total = negative_log_likelihood(logits, codes)
        smooth = log_total - jnp.mean(logits, axis=-1)  # cross-entropy against the uniform distribution
        loss = (1.0 - label_smoothing) * nll + label_smoothing * smooth
        right = jnp.argmax(logits, axis=-1) == codes
        return sums + jnp.stack([jnp.sum(jnp.where(valid, term, 0.0)) for term in (loss, nll, right)]), None

    blocks = in_blocks(block, hidden, target_codes, target_valid, multiple=kernels.shape[1])
    sums, _ = jax.lax.scan(add_block, jnp.zeros(3), blocks)
    loss, nll, accuracy = sums / jnp.maximum(jnp.sum(target_valid), 1)
    return LossOutput(loss=loss, nll=nll, accuracy=accuracy)


def _logits_by_copies(hidden: jax.Array, kernels: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """`MeBT.logits` [B, m, V] of hidden [B, m, D], each of a x s parts of clips and targets by its own copy [a, s, D, V]."""
    a, s = kernels.shape[:2]
    parts = constrain(einops.rearrange(hidden, "(a b) (s m) d -> a s b m d", a=a, s=s), "batch", "tokens", None, None, None)
    logits = jnp.einsum("asbmd,asdv->asbmv", parts.astype(dtype), kernels.astype(dtype), preferred_element_type=jnp.float32)
    logits = constrain(logits, "batch", "tokens", None, None, "codes")
    return constrain(einops.rearrange(logits, "a s b m v -> (a b) (s m) v"), "batch", "tokens", "codes")


def clip_scores(model: MeBT, hidden: jax.Array, target_codes: jax.Array, target_valid: jax.Array, *,
                block: int) -> tuple[jax.Array, jax.Array]:
    """(nats per valid target, share of them whose most probable code is right) of each clip, float32 [B]; no gradient.

    For measuring, where the spread over the clips is wanted; arguments as for `masked_cross_entropy`.
    """
    kernel = model.head_kernel()

    def add_block(sums, inputs):
        hidden, codes, valid = inputs  # [B, m, D], [B, m], [B, m]
        logits = model.logits(hidden, kernel)  # [B, m, V]
        nll, _ = negative_log_likelihood(logits, codes)
        right = jnp.argmax(logits, axis=-1) == codes
        return sums + jnp.stack([jnp.sum(jnp.where(valid, term, 0.0), axis=1) for term in (nll, right)]), None

    sums, _ = jax.lax.scan(add_block, jnp.zeros((2, len(hidden))), in_blocks(block, hidden, target_codes, target_valid))
    nll, accuracy = sums / jnp.maximum(jnp.sum(target_valid, axis=1), 1)[None]
    return nll, accuracy


def negative_log_likelihood(logits: jax.Array, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(nats of codes [B, m], logarithm of the sum over the codes [B, m]) under logits [B, m, V]."""
    log_total = jax.nn.logsumexp(logits, axis=-1)
    # A comparison, not a gather: its gradient is elementwise, a gather's is a scatter into [B, m, V].
    is_target = codes[..., None] == jnp.arange(logits.shape[-1])[None, None]
    return log_total - jnp.sum(jnp.where(is_target, logits, 0.0), axis=-1), log_total


def in_blocks(block: int, *arrays: jax.Array, multiple: int = 1) -> tuple[jax.Array, ...]:
    """Arrays [B, M, ...] as blocks of about `block` targets at most, a multiple of so many, padded with zeros: [n, B, m, ...]."""
    targets = arrays[0].shape[1]
    num_blocks = max(1, -(-targets // block))
    # Even blocks: rounding M up to `block` could double the work.
    size = -(-targets // (num_blocks * multiple)) * multiple

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, num_blocks * size - targets)] + [(0, 0)] * (x.ndim - 2))
        # Every n-th target: of a run of targets split over devices, each device then has its share of every block.
        return einops.rearrange(x, "b (m n) ... -> n b m ...", n=num_blocks)

    return tuple(cut(x) for x in arrays)
