"""How much memory a device has, and whether a batch fits, before anything is compiled."""

import os

import jax

from mebt_jax.errors import UserError


def device_bytes() -> int:
    """Memory that one device of this process can use; on a CPU the machine's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_batch(
    batch_size: int,
    *,
    clip_bytes: int,
    parameter_bytes: int,
    shards: int,
    field: str,
    limit: int | None = None,
) -> None:
    """Raises UserError, with the largest size that should fit, if a batch should not fit.

    Args:
        batch_size: clips over all shards.
        clip_bytes: of one clip beside the weights.
        parameter_bytes: of the weights on each device.
        shards: parts that a batch is split into.
        field: config field of the batch size.
        limit: bytes of a device; None asks the device.
    """
    limit = device_bytes() if limit is None else limit
    largest = max(0, limit - parameter_bytes) // clip_bytes * shards
    if batch_size <= largest:
        return
    fix = f"the largest that should is {largest}"
    if not largest:
        fix = (
            f"not a single clip does, as it takes about {clip_bytes / 2**30:.1f} GiB beside the "
            "weights; use larger devices or bfloat16"
        )
    raise UserError(
        f"{field} {batch_size} does not fit the {limit / 2**30:.1f} GiB of each of the {shards} "
        f"device(s): {fix}."
    )
