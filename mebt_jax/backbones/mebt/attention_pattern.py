"""Which streams of tokens attend to which: the whole difference between the kinds of blocks.

Latents, contexts and targets are the three streams. Parameters have the same shapes for every
pattern, so a checkpoint does not say which one it was trained with.
"""

from typing import NamedTuple


class AttentionPattern(NamedTuple):
    queries: tuple[str, ...]  # streams that attend, and are updated
    keys: tuple[str, ...]  # streams whose keys and values they attend to


# Tokens attend to tokens, at a cost quadratic in their number.
JOINT_PATTERNS = {
    # Paper Table 3, "full decoder": latents and targets as one sequence.
    "full": AttentionPattern(("latents", "targets"), ("latents", "targets")),
    # MaskGIT's layers, without latents (official `maskgit`).
    "maskgit": AttentionPattern(("contexts", "targets"), ("contexts", "targets")),
}
