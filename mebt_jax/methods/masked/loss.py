"""Cross-entropy over the targets without ever holding all their logits (design: never a whole
logits array).
"""

import functools

import einops
import jax
import jax.numpy as jnp
from flax import struct

from mebt_jax.backbones.mebt.model import MeBT
from mebt_jax.runtime.mesh import constrain, copies


@struct.dataclass
class LossOutput:
    """Means over the valid targets of the whole batch, float32 scalars; the loss alone has a
    gradient.
    """

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
    """Mean cross-entropy of the valid targets; logits exist for at most `block` targets per clip at
    one time.

    Args:
        model: gives the head.
        hidden: [B, M, D], output of the model.
        target_codes: [B, M] int32.
        target_valid: [B, M] bool; padding counts nowhere, and without any valid target everything
            is 0.
        block: targets per clip whose logits are made together, and with them their gradient.
        label_smoothing: share of the target probability spread over all V codes (as torch's
            cross_entropy does).

    Note: official transformer.py:723-730 divides the sum by all masked tokens (avg_loss = 1). That
    is this mean, unless a target budget leaves masked tokens out: then the official loss is smaller
    by the share of masked tokens kept.
    """
    # In float32: the gradients of all blocks are added up in this type.
    kernels = copies(model.head.kernel[...], ("batch", "tokens"), None, "codes")  # [a, s, D, V]
    blocks = in_blocks(block, hidden, target_codes, target_valid, multiple=kernels.shape[1])
    sums = _sum_over_blocks(*blocks, kernels, model.dtype, label_smoothing)
    loss, nll, accuracy = sums / jnp.maximum(jnp.sum(target_valid), 1)
    return LossOutput(
        loss=loss, nll=jax.lax.stop_gradient(nll), accuracy=jax.lax.stop_gradient(accuracy)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _sum_over_blocks(
    hidden: jax.Array,
    codes: jax.Array,
    valid: jax.Array,
    kernels: jax.Array,
    dtype: jnp.dtype,
    label_smoothing: float,
) -> jax.Array:
    """Sums [3] of loss, nll and right answers over blocks [n, B, m, D], [n, B, m], [n, B, m]; the
    first alone has a gradient.

    The gradient is made block by block on the way forward, while the logits are there: on the way
    back they would have to be made again, a third more work for the head.
    """

    def add(sums: jax.Array, block: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        hidden, codes, valid = block
        logits, _ = _logits_by_copies(hidden, kernels, dtype)
        return sums + _sums(logits, _scores(logits, codes), valid, label_smoothing), None

    return jax.lax.scan(add, jnp.zeros(3), (hidden, codes, valid))[0]


def _forward(
    hidden: jax.Array,
    codes: jax.Array,
    valid: jax.Array,
    kernels: jax.Array,
    dtype: jnp.dtype,
    label_smoothing: float,
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    def add(
        carry: tuple[jax.Array, jax.Array], block: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        sums, of_kernels = carry
        hidden, codes, valid = block
        a, s = kernels.shape[:2]
        logits, parts = _logits_by_copies(hidden, kernels, dtype)  # [B, m, V], [a, s, b, m', D]
        scores = _scores(logits, codes)
        wanted = (1.0 - label_smoothing) * _is_target(
            logits, codes
        ) + label_smoothing / logits.shape[-1]
        # From the sum at hand, and not by softmax, so that no other array of the size of the logits
        # is made on the way.
        of_logits = jnp.where(
            valid[..., None], jnp.exp(logits - scores[0][..., None]) - wanted, 0.0
        ).astype(dtype)
        of_logits = constrain(
            _in_copies(of_logits, a, s), "batch", "tokens", None, None, "codes"
        )  # [a, s, b, m', V]
        # Written out, since what differentiation makes of the head's is transposed, and copied as
        # it is added: on a CPU 6 % of a step (benchmarks/RESULTS.md).
        of_kernel = jnp.einsum(
            "asbmd,asbmv->asdv", parts, of_logits, preferred_element_type=jnp.float32
        )
        of_parts = jnp.einsum(
            "asbmv,asdv->asbmd",
            of_logits,
            kernels.astype(dtype),
            preferred_element_type=jnp.float32,
        )
        of_hidden = einops.rearrange(of_parts, "a s b m d -> (a b) (s m) d").astype(hidden.dtype)
        return (
            sums + _sums(logits, scores, valid, label_smoothing),
            of_kernels + of_kernel,
        ), of_hidden

    start = constrain(jnp.zeros_like(kernels), "batch", "tokens", None, "codes")
    (sums, of_kernels), of_hidden = jax.lax.scan(add, (jnp.zeros(3), start), (hidden, codes, valid))
    return sums, (of_hidden, of_kernels)


def _backward(
    dtype: jnp.dtype,
    label_smoothing: float,
    gradients: tuple[jax.Array, jax.Array],
    of_sums: jax.Array,
) -> tuple[jax.Array, None, None, jax.Array]:
    of_hidden, of_kernels = gradients
    return (of_hidden * of_sums[0]).astype(of_hidden.dtype), None, None, of_kernels * of_sums[0]


_sum_over_blocks.defvjp(_forward, _backward)


def _sums(
    logits: jax.Array, scores: tuple[jax.Array, ...], valid: jax.Array, label_smoothing: float
) -> jax.Array:
    """Those of one block [B, m, V], its `_scores` and [B, m]."""
    log_total, of_target, right = scores
    loss = nll = log_total - of_target
    if (
        label_smoothing > 0
    ):  # the cross-entropy against the uniform distribution is one more look at every logit
        loss = (1.0 - label_smoothing) * nll + label_smoothing * (
            log_total - jnp.mean(logits, axis=-1)
        )
    return jnp.stack([jnp.sum(jnp.where(valid, term, 0.0)) for term in (loss, nll, right)])


def _logits_by_copies(
    hidden: jax.Array, kernels: jax.Array, dtype: jnp.dtype
) -> tuple[jax.Array, jax.Array]:
    """`MeBT.logits` [B, m, V] of hidden [B, m, D], each of a x s parts of clips and targets by its
    own copy [a, s, D, V].

    Also the parts, [a, s, B / a, m / s, D] in the compute type.
    """
    parts = constrain(
        _in_copies(hidden, *kernels.shape[:2]).astype(dtype), "batch", "tokens", None, None, None
    )
    logits = jnp.einsum(
        "asbmd,asdv->asbmv", parts, kernels.astype(dtype), preferred_element_type=jnp.float32
    )
    logits = constrain(logits, "batch", "tokens", None, None, "codes")
    return constrain(
        einops.rearrange(logits, "a s b m v -> (a b) (s m) v"), "batch", "tokens", "codes"
    ), parts


def _in_copies(x: jax.Array, a: int, s: int) -> jax.Array:
    """[B, m, ...] -> [a, s, B / a, m / s, ...]."""
    return einops.rearrange(x, "(a b) (s m) d -> a s b m d", a=a, s=s)


def clip_scores(
    model: MeBT, hidden: jax.Array, target_codes: jax.Array, target_valid: jax.Array, *, block: int
) -> tuple[jax.Array, jax.Array]:
    """(nats per valid target, share of them whose most probable code is right) of each clip,
    float32 [B]; no gradient.

    For measuring, where the spread over the clips is wanted; arguments as for
    `masked_cross_entropy`.
    """
    kernel = model.head_kernel()

    def add_block(sums, inputs):
        hidden, codes, valid = inputs  # [B, m, D], [B, m], [B, m]
        logits = model.logits(hidden, kernel)  # [B, m, V]
        log_total, of_target, right = _scores(logits, codes)
        return sums + jnp.stack(
            [
                jnp.sum(jnp.where(valid, term, 0.0), axis=1)
                for term in (log_total - of_target, right)
            ]
        ), None

    sums, _ = jax.lax.scan(
        add_block, jnp.zeros((2, len(hidden))), in_blocks(block, hidden, target_codes, target_valid)
    )
    nll, accuracy = sums / jnp.maximum(jnp.sum(target_valid, axis=1), 1)[None]
    return nll, accuracy


def _scores(logits: jax.Array, codes: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(logarithm of the sum over the codes, logit of the right one, whether none is higher), each
    [B, m], of logits [B, m, V].
    """
    of_target = jnp.sum(jnp.where(_is_target(logits, codes), logits, 0.0), axis=-1)
    # The maximum is needed for the sum anyway; an argmax is another, slow look at every logit on a
    # CPU (benchmarks/RESULTS.md).
    right = of_target >= jnp.max(logits, axis=-1)
    return jax.nn.logsumexp(logits, axis=-1), of_target, right


def _is_target(logits: jax.Array, codes: jax.Array) -> jax.Array:
    """Whether a logit [B, m, V] is that of the right code. A comparison: a gather from split codes
    would be sent around.
    """
    return codes[..., None] == jnp.arange(logits.shape[-1])[None, None]


def in_blocks(block: int, *arrays: jax.Array, multiple: int = 1) -> tuple[jax.Array, ...]:
    """Arrays [B, M, ...] as blocks of about `block` targets at most, a multiple of so many, padded
    with zeros: [n, B, m, ...].
    """
    targets = arrays[0].shape[1]
    num_blocks = max(1, -(-targets // block))
    # Even blocks: rounding M up to `block` could double the work.
    size = -(-targets // (num_blocks * multiple)) * multiple

    def cut(x: jax.Array) -> jax.Array:
        x = jnp.pad(x, [(0, 0), (0, num_blocks * size - targets)] + [(0, 0)] * (x.ndim - 2))
        # Every n-th target: of a run of targets split over devices, each device then has its share
        # of every block.
        return einops.rearrange(x, "b (m n) ... -> n b m ...", n=num_blocks)

    return tuple(cut(x) for x in arrays)
