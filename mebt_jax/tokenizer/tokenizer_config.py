"""Fields of `config.tokenizer`, with what must hold among them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

from mebt_jax.config_fields import DTYPES, field
from mebt_jax.errors import UserError
from mebt_jax.runtime.runtime_config import TrainingConfig

if TYPE_CHECKING:
    from mebt_jax.config import Config

QUANTIZERS = ("ema", "gradient", "fsq", "lfq")
NORMS = ("group", "layer", "batch")


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
    """Discriminators of single frames and of clips, against which the tokenizer is trained."""

    frame_weight: float = field(
        0.0,
        "Weight of the frame discriminator in the tokenizer's and in its own loss (TATS: 1); with "
        "video_weight 0 too there are no discriminators.",
        least=0,
    )
    video_weight: float = field(0.0, "The same of the video discriminator (TATS: 1).", least=0)
    feature_weight: float = field(
        4.0,
        "Weight of the mean distance between the discriminators' features of real and of "
        "reconstructed video (TATS: 4).",
        least=0,
    )
    loss: str = field(
        "hinge",
        'Loss of the discriminators: "hinge" (TATS) or "vanilla".',
        one_of="mebt_jax.tokenizer.training.adversarial:LOSSES",
    )
    channels: int = field(64, "Channels of the discriminators' first layer (TATS: 64).", least=1)
    layers: int = field(3, "Number of strided layers of the discriminators (TATS: 3).", least=1)
    learning_rate: float = field(
        1e-4,
        "Constant rate of Adam with betas 0.5 and 0.9, TATS's (there the rate of the tokenizer).",
        least=0,
    )
    start: int = field(
        10_000,
        "Finished steps after which the tokenizer sees the discriminators (TATS's README: 10 000). "
        "The checkpoint of this step is kept for good.",
    )
    warmup: int = field(
        500,
        "Steps before `start` in which the discriminators learn alone (TATS: 0), so that their "
        "first gradients are not noise.",
    )
    ramp: int = field(
        5_000,
        "Steps after `start` in which the weight of the discriminators rises from 0 in a line "
        "(TATS: 0, at once).",
        least=0,
    )
    share: float = field(
        0.5,
        "The adversarial gradient is scaled to this share of the reconstruction's, both measured "
        "at the decoder's last layer (as VQGAN, Esser et al. 2021, does), but by no more than "
        "scale_limit; 0 leaves it as it is (TATS).",
        least=0,
    )
    scale_limit: float = field(100.0, "Largest factor of that scaling.", least=0)
    lecam_weight: float = field(
        0.001,
        "Weight of LeCAM (Tseng et al. 2021), which holds the logits near their running means and "
        "so keeps a discriminator from winning on few data; 0 switches it off (TATS).",
        least=0,
    )

    @property
    def on(self) -> bool:
        return self.frame_weight > 0 or self.video_weight > 0

    def check(self, config: Config, path: str) -> None:
        if not 0 <= self.warmup <= self.start:
            raise UserError(
                f"{path}.warmup is {self.warmup}, but the discriminators can only learn alone in "
                f"the 0 to {self.start} steps before {path}.start."
            )


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """The 3D VQ tokenizer, its losses and its training."""

    compression: tuple[int, int, int] = field(
        (4, 8, 8),
        "Input size over latent size on (time, height, width) (paper and TATS: 4, 8, 8).",
        fits_weights=True,
    )
    patch: tuple[int, int, int] = field(
        (1, 1, 1),
        "The part of the compression done by folding pixels into channels before the first "
        "convolution, which lets all convolutions run at low resolution; (1, 1, 1) is the paper's "
        "network. The compression itself makes the encoder pointwise.",
        fits_weights=True,
    )
    causal: bool = field(
        False,
        "No token sees a later frame (MAGVIT-v2): clips have 1 + n * compression[0] frames, the "
        "first token stands for the first frame, an image is a clip of one frame, and long videos "
        "are coded in parts. False is the paper's symmetric padding.",
        fits_weights=True,
    )
    hidden: int = field(
        32,
        "Channels of the first level; each level of striding doubles them (TATS: 16 to 32 by "
        "checkpoint).",
        fits_weights=True,
    )
    quantizer: str = field(
        "ema",
        'How features become tokens: "ema" (official: the nearest of a codebook of running '
        'averages), "gradient" (the nearest of a codebook that gradients train), "fsq" (each '
        'feature rounded to one of its levels), "lfq" (signs). benchmarks/RESULTS.md compares '
        "them.",
        one_of=QUANTIZERS,
        fits_weights=True,
    )
    codebook_size: int = field(
        16_384,
        "V, number of codes (TATS: 16384); for fsq the product of the levels, for lfq "
        "2^code_width.",
        fits_weights=True,
    )
    code_width: int = field(
        256, "E, features per code (TATS: 256); for fsq the number of levels.", fits_weights=True
    )
    levels: tuple[int, ...] = field(
        (),
        "Values that each feature can take, for fsq alone, such as (8, 8, 8, 8, 4) for 16384 "
        "codes; few below 5 (FSQ, section 4.1).",
        fits_weights=True,
    )
    norm: str = field(
        "group",
        '"group" is the official program\'s default and "batch" what TATS\'s training command '
        'asks for, over the clips of all devices; "layer" takes its mean and variance over the '
        "channels of one position alone, so that with a patch of the whole compression no token "
        "depends on its neighbours.",
        one_of=NORMS,
        fits_weights=True,
    )
    l1_weight: float = field(4.0, "Weight of the L1 loss (TATS: 4).")
    l2_weight: float = field(0.0, "Weight of the L2 loss (the paper's equation 1).")
    commitment_weight: float = field(0.25, "Weight of the commitment loss (TATS: 0.25).")
    entropy_weight: float = field(
        0.1,
        "Weight of the entropy of one feature's code less that of all codes together, for lfq "
        "alone (MAGVIT-v2, equation 5).",
    )
    perceptual_weight: float = field(
        0.0,
        "Weight of LPIPS between one random frame of each clip and its reconstruction (TATS: 4); "
        "0 goes without. It needs weights.",
    )
    lpips: str = field(
        "",
        "Folder of converted LPIPS weights, see docs/interop.md; only for a perceptual_weight "
        "above 0.",
    )
    adversarial: AdversarialConfig = field(
        AdversarialConfig(), "Discriminators of single frames and of clips."
    )
    codebook_decay: float = field(
        0.99, "Decay of the codebook's running counts and sums (TATS: 0.99)."
    )
    restart_threshold: float = field(
        1.0,
        "A code whose running count falls below this is restarted from a random feature of the "
        "batch (TATS: 1).",
    )
    dtype: str = field(
        "float32",
        "Compute precision; parameters, norms, distances and losses stay float32.",
        one_of=DTYPES,
    )
    checkpoint: str = field(
        "",
        "Workdir, folder of checkpoints, one checkpoint in it, or folder of the converter with a "
        "trained tokenizer to use instead of training one.",
    )
    training: TrainingConfig = field(
        TrainingConfig(learning_rate=3e-4, beta1=0.5, beta2=0.9, weight_decay=0.0),
        "Its training loop.",
    )

    def frames(self, latents: int) -> int:
        """Frames of so many latent frames from the start of a clip."""
        if self.causal:
            return 1 + (latents - 1) * self.compression[0]
        return latents * self.compression[0]

    def check(self, config: Config, path: str) -> None:
        """Raises UserError if the sizes do not go together, or not with those of the clips."""
        if self.causal:
            self._check_causal(config)
        self._check_sizes(config)
        self._check_codes()
        if self.training.steps < 1:
            raise UserError(
                f"{path}.training.steps is {self.training.steps}, but must be at least 1."
            )

    def _check_sizes(self, config: Config) -> None:
        t, h, w = self.compression
        sizes = [
            ("resolution", config.data.resolution, h),
            ("resolution", config.data.resolution, w),
        ]
        if not self.causal:
            sizes.append(("frames", config.data.frames, t))
        for name, size, factor in sizes:
            if size < 1 or size % factor:
                raise UserError(
                    f"config.data.{name} is {size}, which the tokenizer's compression of {factor} "
                    f"does not divide; use a multiple of {factor} or change "
                    f"config.tokenizer.compression {(t, h, w)}."
                )
        for axis, (total, patch) in enumerate(zip(self.compression, self.patch)):
            strides = total // patch if patch >= 1 else 0
            if patch < 1 or total % patch or strides & (strides - 1):
                raise UserError(
                    f"config.tokenizer.patch is {self.patch}, but on axis {axis} the compression "
                    f"{total} must be the patch times a power of two."
                )

    def _check_causal(self, config: Config) -> None:
        """No norm and no stored token of a causal tokenizer may depend on later frames or on the
        position in the clip.
        """
        step, frames = self.compression[0], config.data.frames
        if frames < 1 or (frames - 1) % step:
            near = max(0, round((frames - 1) / step)) * step + 1
            raise UserError(
                f"config.data.frames is {frames}, but a causal tokenizer of temporal compression "
                f"{step} takes one frame more than a multiple of {step}; use {near}."
            )
        if self.norm != "layer":
            raise UserError(
                f"config.tokenizer.norm is {self.norm!r}, whose statistics reach over time or are "
                "stored, but config.tokenizer.causal needs one that sees no later frame; set it "
                "to 'layer'."
            )
        if config.data.tokens:
            raise UserError(
                "config.data.tokens stores the tokens of long runs of frames, but the first token "
                "of a causal clip stands for one frame alone; set config.data.tokens or "
                "config.tokenizer.causal to False."
            )

    def _check_codes(self) -> None:
        """The quantizers without a search have as many codes as their features have combinations
        of values.
        """
        size, width, levels = self.codebook_size, self.code_width, self.levels
        if self.quantizer == "fsq" and (
            math.prod(levels) != size or len(levels) != width or min(levels, default=0) < 2
        ):
            raise UserError(
                f"config.tokenizer.levels is {levels}, but the quantizer 'fsq' needs "
                f"config.tokenizer.code_width, {width}, levels of at least 2 whose product is "
                f"config.tokenizer.codebook_size, {size}."
            )
        if self.quantizer == "lfq" and size != 2**width:
            raise UserError(
                f"config.tokenizer.codebook_size is {size}, but the quantizer 'lfq' has 2 to the "
                f"power of config.tokenizer.code_width codes, here {2**width}; set one to fit the "
                "other."
            )
