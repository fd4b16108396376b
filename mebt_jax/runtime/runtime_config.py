"""Fields of `config.mesh`, `config.runtime` and of the training loop of both stages."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from mebt_jax.config_fields import field
from mebt_jax.errors import UserError

if TYPE_CHECKING:
    from mebt_jax.config import Config


@dataclasses.dataclass(frozen=True)
class TrainingConfig:
    """One training loop; the tokenizer and the prior each have their own."""

    steps: int = field(100_000, "Optimizer steps.", may_change=True)
    batch_size: int = field(
        32, "Clips per optimizer step, over all devices and hosts together.", least=1
    )
    microbatches: int = field(
        1,
        "The batch is computed in so many parts, one after the other, whose gradients are "
        "averaged: less memory, same result.",
        least=1,
        no_result=True,
    )
    learning_rate: float = field(3e-5, "Peak learning rate of AdamW.")
    warmup_steps: int = field(
        0, "Steps of linear warm-up from 0; the official program uses none.", least=0
    )
    decay: str = field(
        "constant",
        'Learning rate after the warm-up: "constant" (official) or "cosine" down to 0 at the last '
        "step.",
        one_of="mebt_jax.runtime.optimizers:DECAYS",
    )
    beta1: float = field(0.9, "Decay of AdamW's first moment.")
    beta2: float = field(0.95, "Decay of AdamW's second moment.")
    weight_decay: float = field(
        1e-4,
        "Decoupled weight decay on matrices; never on norms, biases and embeddings (official "
        "configure_optimizers).",
    )
    grad_clip_norm: float = field(
        1.0, "Gradients are scaled down to this global L2 norm; 0 switches it off (official)."
    )
    ema_decay: float = field(
        0.999,
        "Per-step decay of the averaged weights that validation, sampling and evaluation use; 0 "
        "switches averaging off.",
    )
    log_every: int = field(
        100, "Steps between metric lines; the last step always writes one.", no_result=True
    )
    validate_every: int = field(
        5_000, "Steps between validations; the last step always validates.", no_result=True
    )
    validation_batches: int = field(8, "Batches per validation.", no_result=True)
    checkpoint_every: int = field(
        1_000, "Steps between checkpoints; the last step always saves one.", no_result=True
    )
    keep_every: int = field(
        50_000,
        "Checkpoints at multiples of this step are kept for good, beside the best one and the two "
        "latest.",
        no_result=True,
    )

    def check(self, config: Config, path: str) -> None:
        if self.batch_size % self.microbatches:
            raise UserError(
                f"{path}.batch_size is {self.batch_size}, which must be a positive multiple of "
                f"{path}.microbatches {self.microbatches}."
            )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each axis of the mesh; -1 on one axis means all that are left."""

    data: int = field(-1, "Devices over which the clips of a batch are split.")
    fsdp: int = field(
        1,
        "Devices that split the clips too, and beside them parameters and optimizer state, which "
        "are gathered layer by layer.",
    )
    sequence: int = field(
        1,
        "Devices that split the tokens of a clip, and the state as fsdp does: for clips that are "
        "too long for a device, or batches of fewer clips than devices. The tokenizer splits "
        "clips alone.",
    )
    tensor: int = field(
        1, "Devices that split heads, hidden channels and the codebook; must divide backbone.heads."
    )


@dataclasses.dataclass(frozen=True)
class RuntimeConfig:
    """What holds for the whole run."""

    seed: int = field(
        0, "Root of every random draw that is not data: initialisation, masks, dropout."
    )
    compilation_cache: str = field(
        "",
        'Folder of compiled programs, shared by all runs; "" is ~/.cache/mebt_jax, "off" switches '
        "it off.",
        no_result=True,
    )
    fsdp_min_elements: int = field(
        1_048_576,
        "Arrays below this many elements are not split over the fsdp and sequence axes.",
        no_result=True,
    )
    profile: bool = field(
        False,
        "Write a profile of some steps of each training below its folder; `--profile` sets it.",
        no_result=True,
    )
