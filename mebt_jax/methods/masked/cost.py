"""What decoding costs, before anything is compiled: floating-point operations, and how many clips
fit on a device.
"""

import os

import jax
import numpy as np

from mebt_jax.config import Config, TransformerConfig
from mebt_jax.errors import UserError
from mebt_jax.methods.masked.decode import LOGITS_BLOCK
from mebt_jax.methods.masked.plan import DRAFT, REVISE, Pass, Plan, Sizes, shared_sizes

# Arrays of the size of the video's finest feature maps that live at one time while codes are turned
# into pixels.
PIXEL_ARRAYS = 4


def plan_flops(
    model: TransformerConfig, codes: int, plan: Plan, *, plain: bool = False, padded: bool = True
) -> int:
    """Operations of the matrix products of one clip; a multiplication and an addition count as two.

    Args:
        model: the transformer.
        codes: V.
        plan: the passes.
        plain: without cache, and with the last decode block and the head for all targets.
        padded: with the padding that `decode` runs; otherwise for the exact counts.
    """
    total = 0
    for one, shared in zip(plan.passes, shared_sizes(plan)):
        by_confidence = one.kind == DRAFT and plan.order == "confidence"
        exact = Sizes(
            one.contexts,
            one.targets,
            one.targets if by_confidence else one.committed,
            one.committed,
        )
        total += pass_flops(
            model, codes, one, shared if padded else exact, plan.num_tokens, plain=plain
        )
    return total


def pass_flops(
    model: TransformerConfig, codes: int, one: Pass, size: Sizes, num_tokens: int, *, plain: bool
) -> int:
    """Operations of the matrix products of one pass over one clip with arrays of the given sizes,
    see `plan_flops`.
    """
    square, attention, latents, targets = (
        model.width**2,
        4 * model.width,
        model.latents,
        size.targets,
    )
    contexts = num_tokens if one.kind == REVISE and not plain else size.contexts
    asked = targets if plain else size.asked
    last = len(model.layers) - 1
    total = 2 * asked * model.width * codes
    for layer, kind in enumerate(model.layers):
        asking = {
            "decode": asked if layer == last else targets,
            "full": latents + targets,
            "maskgit": contexts + targets,
        }.get(kind, latents)
        keys = {"encode": contexts, "latent": latents, "decode": latents}.get(
            kind, latents + targets
        )
        keys = contexts + targets if kind == "maskgit" else keys
        made = 0 if kind == "encode" and not plain else keys
        # Per asking token query, output and the MLP of width 4 D; per key token key and value; then
        # scores and sums.
        total += 20 * square * asking + 4 * square * made + attention * asking * keys
    if not plain:
        total += model.layers.count("encode") * 4 * square * size.committed
    return total


def clip_bytes(config: Config, plan: Plan, num_tokens: int) -> int:
    """Bytes per clip at the widest point: cache and the largest pass, or the way from codes to
    pixels.
    """
    model, tokenizer = config.transformer, config.tokenizer
    width, item = model.width, np.dtype("float32").itemsize if model.dtype == "float32" else 2
    cached = 0 if "maskgit" in model.layers else model.layers.count("encode")
    cache = 2 * cached * num_tokens * width * item
    passes = [
        (size.targets + model.latents)
        * 12
        * width
        * item  # stream, query, keys, values, and the two of the MLP's width
        + model.heads
        * model.latents
        * max(size.targets, num_tokens)
        * (4 + item)  # attention scores and weights
        + 3 * min(LOGITS_BLOCK, size.asked) * tokenizer.codes * 4  # logits
        for size in shared_sizes(plan)
    ]
    pixels = config.data.frames * config.data.resolution**2
    channels = max(3, 2 * tokenizer.hidden // int(np.prod(tokenizer.patch)))
    return max(cache + max(passes), PIXEL_ARRAYS * pixels * channels * 4)


def check_batch(
    config: Config, plan: Plan, parameter_bytes: int, shards: int, limit: int | None = None
) -> None:
    """Raises UserError if `config.sample.batch_size` clips over `shards` devices should not fit;
    says how many should.

    Args:
        parameter_bytes: of the weights on each device.
        limit: bytes of a device; None asks the device, or on a CPU the machine.
    """
    limit = device_bytes() if limit is None else limit
    each = clip_bytes(config, plan, plan.num_tokens)
    largest = max(0, limit - parameter_bytes) // each * shards
    if config.sample.batch_size > largest:
        mend = (
            f"the largest that should is {largest}"
            if largest
            else f"not one does, as a clip takes about {each / 2**30:.1f} GiB beside the weights; use larger devices or "
            f"bfloat16"
        )
        raise UserError(
            f"config.sample.batch_size {config.sample.batch_size} does not fit the "
            f"{limit / 2**30:.1f} GiB of each "
            f"of the {shards} device(s): {mend}."
        )


def device_bytes() -> int:
    """Memory that one device of this process can use."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
