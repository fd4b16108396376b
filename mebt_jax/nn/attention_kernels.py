"""The attention kernels of TPUs and GPUs; `attention` uses them where they apply, and its sums are
what they are tested against.

Both are JAX's own. That of GPUs was tested in what goes into it and comes out, and as a program for
GPUs, not yet on one.
"""

from typing import Any

import jax
import jax.numpy as jnp

# Rows of a block of the kernel: the largest of these that divides the length. Its smallest tile is
# 128.
QUERY_BLOCKS = (256, 128)
KEY_BLOCKS = (1024, 512, 256, 128)


def fits_splash(queries: int, keys: int) -> bool:
    """Whether the TPU kernel takes these lengths: it has no way to treat a part of a block."""
    return (
        queries % QUERY_BLOCKS[-1] == 0 and keys % KEY_BLOCKS[-1] == 0 and queries > 0 and keys > 0
    )


def splash_attend(
    query: jax.Array, key: jax.Array, value: jax.Array, valid: jax.Array, *, interpret: bool = False
) -> jax.Array:
    """Attention that never makes the scores [B, K, Q, S]; a clip without any valid key gets zeros.

    Args:
        query: [B, Q, K, Dh]; Q and S fit `fits_splash`.
        key, value: [B, S, K, Dh].
        valid: [B, S] bool.
        interpret: run on any platform, slowly.

    Returns:
        [B, Q, K, Dh] in the type of `value`.
    """
    from jax.experimental.pallas.ops.tpu import (
        splash_attention as splash,
    )  # takes a second, which others need not spend

    kernel = _kernel(query.shape[2], query.shape[1], key.shape[1], interpret)
    segments = splash.SegmentIds(
        jnp.ones(query.shape[:2], jnp.int32), valid.astype(jnp.int32)
    )  # equal ones see each other
    scaled = query * query.shape[-1] ** -0.5
    heads_first = [x.swapaxes(1, 2) for x in (scaled, key, value)]  # [B, K, S, Dh]
    result = jax.vmap(kernel)(*heads_first, segments).swapaxes(1, 2)
    # Without a valid key the kernel gives the mean of the padding.
    return jnp.where(valid.any(axis=1)[:, None, None, None], result, 0.0).astype(value.dtype)


def fits_cudnn(query: jax.Array, keys: int) -> bool:
    """Whether cuDNN's flash attention takes queries [B, Q, K, Dh] and so many keys, on the GPU of
    this process.

    JAX refuses other precisions and widths, and Q and S that are odd, in training
    (jax._src.cudnn.fused_attention_stablehlo).
    """
    capability = getattr(
        jax.local_devices()[0], "compute_capability", ""
    )  # "9.0"; of AMD's GPUs a name, of others nothing
    return (
        query.dtype in (jnp.bfloat16, jnp.float16)
        and query.shape[-1] % 8 == 0
        and query.shape[-1] <= 128
        and query.shape[1] % 2 == 0
        and keys % 2 == 0
        and query.shape[1] > 0
        and keys > 0
        and capability[:1].isdigit()
        and float(capability) >= 8.0
    )


def cudnn_attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    valid: jax.Array,
    *,
    implementation: str = "cudnn",
) -> jax.Array:
    """As `splash_attend`, for GPUs; Q and S fit `fits_cudnn`, `implementation="xla"` runs on any
    platform.
    """
    # It can leave out keys at the end only; in what order they come makes no difference.
    order = jnp.argsort(~valid, axis=1, stable=True)  # [B, S]
    number = valid.sum(axis=1, dtype=jnp.int32)  # [B]
    rows = jnp.arange(len(valid))[:, None]  # [B, 1]
    key, value = (
        x.at[rows, order].get(unique_indices=True, mode="promise_in_bounds") for x in (key, value)
    )
    result = jax.nn.dot_product_attention(
        query,
        key,
        value,
        key_value_seq_lengths=jnp.maximum(number, 1),  # 0 is an error there
        implementation=implementation,
    )
    return jnp.where((number > 0)[:, None, None, None], result, 0.0).astype(value.dtype)


def _kernel(heads: int, queries: int, keys: int, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    of_queries = next(size for size in QUERY_BLOCKS if queries % size == 0)
    of_keys = next(size for size in KEY_BLOCKS if keys % size == 0)
    of_compute = min(of_keys, 512)
    sizes = splash.BlockSizes(
        block_q=of_queries,
        block_kv=of_keys,
        block_kv_compute=of_compute,
        block_q_dkv=of_queries,
        block_kv_dkv=of_keys,
        block_kv_dkv_compute=of_compute,
        use_fused_bwd_kernel=True,
    )
    mask = splash.MultiHeadMask([splash.FullMask((queries, keys))] * heads)
    return splash.make_splash_mha(
        mask, head_shards=1, q_seq_shards=1, block_sizes=sizes, interpret=interpret
    )
