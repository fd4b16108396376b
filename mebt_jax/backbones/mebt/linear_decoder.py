"""The linear decoder (paper equation 3): predicts M target tokens from the L latents.

    z_L <- z_L + CrossAttention(z_L, [z_L, z_M])    "update": latents attend to latents and targets
    z_M <- z_M + CrossAttention(z_M, z_L)           "decode": targets attend to the latents

each followed by an MLP (`block.Block`). Targets exchange what they know through the latents alone,
so the cost is linear in their number. The last decode block can run for some of the targets only,
since no other token sees its result (`model.MeBT.from_cache`).
"""

from mebt_jax.backbones.mebt.attention_pattern import AttentionPattern

PATTERNS = {
    "update": AttentionPattern(("latents",), ("latents", "targets")),
    "decode": AttentionPattern(("targets",), ("latents",)),
}


def layers(depth: int) -> tuple[str, ...]:
    """`depth` pairs of (decode, update) and a last decode: 11 layers for the paper's depth of 5."""
    return ("decode", "update") * depth + ("decode",)
