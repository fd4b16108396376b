"""Fields of `config.method` for the kind "masked": how much of a clip is masked in training."""

import dataclasses

from mebt_jax.config_fields import field
from mebt_jax.methods.masked.intervals import INTERVAL_SCHEDULES
from mebt_jax.methods.masked.schedules import SCHEDULES


@dataclasses.dataclass(frozen=True)
class MaskedConfig:
    """Masked prediction of tokens with a curriculum of interval lengths (paper section 3.3)."""

    kind: str = field("masked", "Which method.")
    ratio_schedule: str = field(
        "linear",
        "Mask ratio r = schedule(u), u uniform in [ratio_min, ratio_max] (official: linear, "
        "r = 1 - u, on [0, 1]).",
        one_of=SCHEDULES,
    )
    ratio_min: float = field(0.0, "Least u.")
    ratio_max: float = field(1.0, "Largest u.")
    ratio_per_sample: bool = field(
        False, "One mask ratio per clip instead of one for the whole batch (official)."
    )
    target_budget: int = field(
        0, "Most targets predicted per clip and step; 0 is all masked tokens."
    )
    interval_schedule: str = field(
        "gaussian_clipped",
        'Lengths v of training intervals: "gaussian_clipped" (paper, equation 4), '
        '"gaussian_renormalized" (official code), "uniform", "longest".',
        one_of=INTERVAL_SCHEDULES,
    )
    interval_alpha: float = field(
        100_000.0, "Steps in which the mean interval grows by one latent frame (equation 4)."
    )
    interval_beta: float = field(
        2.0, "Standard deviation of the interval in latent frames (equation 4)."
    )
    bucket_steps: int = field(
        16,
        "Context and target counts are rounded up to this many steps of the whole clip, and fewer "
        "of shorter intervals: compilations against padding, of which 16 leave 6 % of the tokens. "
        "With ratio_per_sample rather 4: the number of programs grows as the square.",
        least=1,
        no_result=True,
    )
    label_smoothing: float = field(0.0, "Share of the target probability spread over all codes.")
    loss_block: int = field(
        1024,
        "Targets whose logits exist at one time in training, per clip; the [M, V] array is never "
        "made.",
        least=1,
        no_result=True,
    )
