"""Masked cross-entropy without ever holding all logits.

For M target tokens y with hidden states h and the head W (paper section 3.3):

    L = 1/M sum_m -log softmax(h_m W)[y_m]

With the softmax p and the one-hot target t (smoothed if asked for), the gradients are

    dL/dlogits = (p - t) / M,    dL/dh = dL/dlogits W^T,    dL/dW = h^T dL/dlogits

They are computed in the forward pass, a block of targets at a time, while the logits of the block
exist: the [M, V] array is 0.5 GiB per clip of 128 frames, and computing the logits again in the
backward pass would be a third more work for the head.
"""

import functools

import einops
import jax
import jax.numpy as jnp
from flax import struct

from mebt_jax.backbones.interface import MaskedBackbone
from mebt_jax.runtime.sharding import constrain, copies


@struct.dataclass
class LossSums:
    """Sums over the valid targets, float32 scalars; only `loss` has a gradient."""

    loss: jax.Array  # what training minimises, label smoothing included
    nll: jax.Array  # negative log-likelihood in nats
    accuracy: jax.Array  # targets whose most probable token is the right one


def masked_cross_entropy(
    model: MaskedBackbone,
    hidden: jax.Array,
    target_tokens: jax.Array,
    target_valid: jax.Array,
    *,
    block: int,
    label_smoothing: float,
) -> LossSums:
    """Cross-entropy summed over the valid targets; at most `block` targets per clip have logits at
    one time.

    Args:
        model: gives the head.
        hidden: [B, M, D], output of the model.
        target_tokens: [B, M] int32.
        target_valid: [B, M] bool; padding counts nowhere.
        block: targets per clip whose logits are computed together, and with them their gradient.
        label_smoothing: share of the target probability spread evenly over all V tokens (as torch's
            cross_entropy does).

    Note: official transformer.py:723-730 divides the sum by all masked tokens (avg_loss = 1), as
    `MaskedMethod.prepare` does, unless a target budget leaves masked tokens out: then the official
    loss is smaller by the share of masked tokens kept.
    """
    # In float32: the gradients of all blocks are added up in this type.
    kernels = copies(
        model.head.kernel[...], ("batch", "tokens"), None, "vocabulary"
    )  # [a, s, D, V], one copy for each part that the clips and the targets are split into
    blocks = in_blocks(block, hidden, target_tokens, target_valid, multiple=kernels.shape[1])
    loss, nll, accuracy = _sum_over_blocks(*blocks, kernels, model.dtype, label_smoothing)
    return LossSums(loss, jax.lax.stop_gradient(nll), jax.lax.stop_gradient(accuracy))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _sum_over_blocks(
    hidden: jax.Array,
    targets: jax.Array,
    valid: jax.Array,
    kernels: jax.Array,
    dtype: jnp.dtype,
    label_smoothing: float,
) -> jax.Array:
    """Sums [3] of loss, nll and right answers over blocks [n, B, m, D], [n, B, m], [n, B, m].

    Only the first has a gradient, see the top of the file.
    """

    def add(sums: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        hidden, targets, valid = block
        logits, _ = _logits_by_copies(hidden, kernels, dtype)
        return sums + _sums(logits, _scores(logits, targets), valid, label_smoothing), None

    return jax.lax.scan(add, jnp.zeros(3), (hidden, targets, valid))[0]


def _sum_over_blocks_forward(
    hidden: jax.Array,
    targets: jax.Array,
    valid: jax.Array,
    kernels: jax.Array,
    dtype: jnp.dtype,
    label_smoothing: float,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    a, s = kernels.shape[:2]

    def add(
        carry: tuple[jax.Array, jax.Array], block: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        sums, d_kernels = carry
        hidden, targets, valid = block
        logits, parts = _logits_by_copies(hidden, kernels, dtype)  # [B, m, V], [a, s, b, m', D]
        scores = _scores(logits, targets)
        smoothed = (1.0 - label_smoothing) * _is_target(logits, targets)
        smoothed = smoothed + label_smoothing / logits.shape[-1]
        # p from the log-sum-exp at hand, not by softmax: no other array of the size of the logits.
        d_logits = jnp.exp(logits - scores[0][..., None]) - smoothed
        d_logits = jnp.where(valid[..., None], d_logits, 0.0).astype(dtype)
        d_logits = constrain(
            _in_copies(d_logits, a, s), "batch", "tokens", None, None, "vocabulary"
        )  # [a, s, b, m', V]
        # Written out because differentiation gives the head's gradient transposed, and copies it
        # as it is added: on a CPU 6 % of a step (benchmarks/RESULTS.md).
        d_kernel = jnp.einsum(
            "asbmd,asbmv->asdv", parts, d_logits, preferred_element_type=jnp.float32
        )
        d_parts = jnp.einsum(
            "asbmv,asdv->asbmd", d_logits, kernels.astype(dtype), preferred_element_type=jnp.float32
        )
        d_hidden = einops.rearrange(d_parts, "a s b m d -> (a b) (s m) d").astype(hidden.dtype)
        sums = sums + _sums(logits, scores, valid, label_smoothing)
        return (sums, d_kernels + d_kernel), d_hidden

    start = constrain(jnp.zeros_like(kernels), "batch", "tokens", None, "vocabulary")
    (sums, d_kernels), d_hidden = jax.lax.scan(add, (jnp.zeros(3), start), (hidden, targets, valid))
    return sums, (d_hidden, d_kernels)


def _sum_over_blocks_backward(
    dtype: jnp.dtype,
    label_smoothing: float,
    gradients: tuple[jax.Array, jax.Array],
    d_sums: jax.Array,
) -> tuple[jax.Array, None, None, jax.Array]:
    d_hidden, d_kernels = gradients
    return (d_hidden * d_sums[0]).astype(d_hidden.dtype), None, None, d_kernels * d_sums[0]


_sum_over_blocks.defvjp(_sum_over_blocks_forward, _sum_over_blocks_backward)


def _sums(
    logits: jax.Array, scores: tuple[jax.Array, ...], valid: jax.Array, label_smoothing: float
) -> jax.Array:
    """Sums [3] over one block: logits [B, m, V], its `_scores`, and valid [B, m]."""
    log_total, target_logit, correct = scores
    loss = nll = log_total - target_logit
    if label_smoothing > 0:
        # The cross-entropy against the uniform distribution needs one more pass over the logits.
        uniform = log_total - jnp.mean(logits, axis=-1)
        loss = (1.0 - label_smoothing) * nll + label_smoothing * uniform
    return jnp.stack([jnp.sum(jnp.where(valid, term, 0.0)) for term in (loss, nll, correct)])


def _logits_by_copies(
    hidden: jax.Array, kernels: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """`MaskedBackbone.logits` [B, m, V] of hidden [B, m, D] where every device has its own head.

    Each of the a x s parts of clips and targets is multiplied with its own copy of [a, s, D, V].
    Also returns the parts, [a, s, B / a, m / s, D] in the compute type.
    """
    parts = constrain(
        _in_copies(hidden, *kernels.shape[:2]).astype(dtype), "batch", "tokens", None, None, None
    )
    logits = jnp.einsum(
        "asbmd,asdv->asbmv", parts, kernels.astype(dtype), preferred_element_type=jnp.float32
    )
    logits = constrain(logits, "batch", "tokens", None, None, "vocabulary")
    logits = einops.rearrange(logits, "a s b m v -> (a b) (s m) v")
    return constrain(logits, "batch", "tokens", "vocabulary"), parts


def _in_copies(x: jax.Array, a: int, s: int) -> jax.Array:
    """[B, m, ...] -> [a, s, B / a, m / s, ...]."""
    return einops.rearrange(x, "(a b) (s m) d -> a s b m d", a=a, s=s)


def clip_scores(
    model: MaskedBackbone,
    hidden: jax.Array,
    target_tokens: jax.Array,
    target_valid: jax.Array,
    *,
    block: int,
) -> tuple[jax.Array, jax.Array]:
    """(nats per valid target, accuracy) of each clip, float32 [B] each; without gradient.

    For evaluation, which needs the spread over the clips; arguments as in `masked_cross_entropy`.
    """
    kernel = model.head_kernel()

    def add(sums: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        hidden, targets, valid = block  # [B, m, D], [B, m], [B, m]
        log_total, target_logit, correct = _scores(model.logits(hidden, kernel), targets)
        terms = (log_total - target_logit, correct)
        new = jnp.stack([jnp.sum(jnp.where(valid, term, 0.0), axis=1) for term in terms])
        return sums + new, None

    blocks = in_blocks(block, hidden, target_tokens, target_valid)
    sums, _ = jax.lax.scan(add, jnp.zeros((2, len(hidden))), blocks)
    nll, accuracy = sums / jnp.maximum(jnp.sum(target_valid, axis=1), 1)[None]
    return nll, accuracy


def _scores(logits: jax.Array, targets: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Log-sum-exp, logit of the target, and whether no logit is higher: [B, m] each."""
    target_logit = jnp.sum(jnp.where(_is_target(logits, targets), logits, 0.0), axis=-1)
    # The log-sum-exp needs the maximum anyway; an argmax is another, slow pass over the logits on a
    # CPU (benchmarks/RESULTS.md).
    correct = target_logit >= jnp.max(logits, axis=-1)
    return jax.nn.logsumexp(logits, axis=-1), target_logit, correct


def _is_target(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """One-hot bool [B, m, V]. A comparison, since a gather from a split vocabulary would make
    devices send logits.
    """
    return targets[..., None] == jnp.arange(logits.shape[-1])[None, None]


def in_blocks(block: int, *arrays: jax.Array, multiple: int = 1) -> tuple[jax.Array, ...]:
    """Arrays [B, M, ...] as blocks [n, B, m, ...] of about `block` targets, padded with zeros.

    m is a multiple of `multiple`. Blocks are of equal size: rounding M up to a multiple of `block`
    could double the work. Every n-th target is in one block, so that of targets split over devices
    every device has its part of every block.
    """
    targets = arrays[0].shape[1]
    num_blocks = max(1, -(-targets // block))
    size = -(-targets // (num_blocks * multiple)) * multiple

    def cut(x: jax.Array) -> jax.Array:
        padding = [(0, 0), (0, num_blocks * size - targets)] + [(0, 0)] * (x.ndim - 2)
        return einops.rearrange(jnp.pad(x, padding), "b (m n) ... -> n b m ...", n=num_blocks)

    return tuple(cut(x) for x in arrays)


def join_blocks(blocks: jax.Array, targets: int) -> jax.Array:
    """[n, B, m, ...] -> [B, M, ...]: the inverse of `in_blocks`, without the padding."""
    return einops.rearrange(blocks, "n b m ... -> b (m n) ...")[:, :targets]
