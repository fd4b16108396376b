"""The latent encoder (paper equation 2): compresses any number of context tokens into L latents.

    z_L <- z_L + CrossAttention(z_L, z_C)    "encode": latents attend to the contexts
    z_L <- z_L + SelfAttention(z_L)          "latent": latents attend to each other

each followed by an MLP (`block.Block`). The contexts themselves never change: their keys and values
in every encode block follow from their tokens and positions alone, which is what makes the context
cache exact (`model.MeBT.init_cache`). The cost is linear in the number of contexts.
"""

from mebt_jax.backbones.mebt.attention_pattern import AttentionPattern

PATTERNS = {
    "encode": AttentionPattern(("latents",), ("contexts",)),
    "latent": AttentionPattern(("latents",), ("latents",)),
}


def layers(depth: int) -> tuple[str, ...]:
    """`depth` pairs of (encode, latent) and a last encode: 13 layers for the paper's depth of 6."""
    return ("encode", "latent") * depth + ("encode",)
