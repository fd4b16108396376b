"""Fields of `config.evaluate`."""

import dataclasses

from mebt_jax.config_fields import field


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """The evaluate stage."""

    clips: int = field(256, "Held-out clips to evaluate on (fewer if the data has fewer).", least=1)
    batch_size: int = field(16, "Clips at a time.", least=1)
    protocol: str = field(
        "weight-free",
        'How distances are measured, see docs/evaluation.md: "weight-free" (no download, not '
        'FVD), "i3d" (FVD of all clips there are), or a published one with its own number of '
        'clips: "mebt-paper", "tats", "styleganv", "magvit10k", ...',
    )
    i3d: str = field(
        "",
        "Folder of converted I3D weights (mebt_jax/interop/convert.py), for all protocols but "
        '"weight-free".',
    )
    c3d: str = field(
        "", "Folder of converted C3D weights, for the Inception Score, measured where it is given."
    )
    lpips: str = field("", "Folder of converted LPIPS weights, measured where it is given.")
    window: int = field(
        16,
        "Distance over time: frames of a window (paper, Figure 7: 16).",
        least=1,
    )
    window_every: int = field(
        8, "Frames from the start of a window to that of the next (paper, Figure 7: 8).", least=1
    )
    real: str = field(
        "",
        "Folder of real videos: with `fake`, --stage=evaluate compares the two and needs no model.",
    )
    fake: str = field("", "Folder of generated videos, for the same.")
    resolution: int = field(
        0,
        "Pixels to bring the squares of both folders to; 0 keeps their size, which must then be "
        "the same.",
    )
    any_frame_rate: bool = field(
        False, "Compare folders even if their files tell different frame rates."
    )
