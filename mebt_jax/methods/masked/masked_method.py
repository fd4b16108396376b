"""Masked prediction of tokens, and iterative decoding (paper sections 3.2 and 3.3)."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Self

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mebt_jax.backbones import BACKBONES
from mebt_jax.backbones.interface import MaskedBackbone, TokenGrid
from mebt_jax.errors import UserError
from mebt_jax.methods.interface import Draw, Sampled, SamplingProgram, ValidationDraw
from mebt_jax.methods.masked import cost
from mebt_jax.methods.masked.decode import decode
from mebt_jax.methods.masked.decoding_config import DecodingConfig
from mebt_jax.methods.masked.loss import clip_scores, masked_cross_entropy
from mebt_jax.methods.masked.masked_config import MaskedConfig
from mebt_jax.methods.masked.masking import (
    MaskDraw,
    MaskedExamples,
    draw_masking,
    mask_tokens,
)
from mebt_jax.methods.masked.orders import Grid
from mebt_jax.methods.masked.plan import KINDS, Plan, build_plan, programs
from mebt_jax.methods.masked.presets import with_preset
from mebt_jax.methods.masked.shape_buckets import StepShape, all_shapes

VALIDATION_RATIOS = 4  # mask ratios at which each validation batch is predicted


@dataclasses.dataclass(frozen=True)
class MaskedMethod:
    """Trains a `MaskedBackbone` on random masks, and draws clips by a plan of passes."""

    Config: ClassVar[type] = MaskedConfig
    Decoding: ClassVar[type] = DecodingConfig
    SCORES: ClassVar[dict[str, str]] = {
        "nll": "nats per masked token, mean over mask ratios spread evenly over the schedule",
        "accuracy": "share of the masked tokens whose most probable token is right",
    }
    VALIDATION_METRIC: ClassVar[str] = "nll"

    config: MaskedConfig
    decoding: DecodingConfig
    backbone: type[MaskedBackbone]
    backbone_config: Any
    grid: Grid
    vocab_size: int
    batch_size: int  # of training
    seed: int

    @classmethod
    def from_config(cls, config: Config) -> Self:
        """See `Method`.

        Raises:
            UserError: the preset is unknown, or the backbone does not take a condition.
        """
        backbone = BACKBONES[config.backbone.kind]
        for name in config.prior.conditions:
            if name not in backbone.CONDITIONS:
                raise UserError(
                    f"config.prior.conditions names {name!r}, but the backbone "
                    f"{config.backbone.kind!r} takes "
                    f"{', '.join(backbone.CONDITIONS) or 'no conditions'}; remove it, or choose "
                    "another config.backbone.kind."
                )
        return cls(
            config=config.method,
            decoding=with_preset(config.decoding),
            backbone=backbone,
            backbone_config=config.backbone,
            grid=config.grid,
            vocab_size=config.tokenizer.codebook_size,
            batch_size=config.prior.training.batch_size,
            seed=config.runtime.seed,
        )

    @property
    def num_tokens(self) -> int:
        return math.prod(self.grid)

    def resolved(self, config: Config) -> Config:
        """See `Method`: the preset's numbers."""
        decoding = dataclasses.replace(with_preset(config.decoding), preset="")
        return dataclasses.replace(config, decoding=decoding)

    def check_mesh(self, mesh: Mesh) -> None:
        """See `Method`."""
        self.backbone.check_mesh(self.backbone_config, mesh)

    def create(self, key: jax.Array, codebook: jax.Array | None = None) -> MaskedBackbone:
        """See `Method`."""
        tokens = TokenGrid(self.vocab_size, self.grid, codebook)
        return self.backbone.create(self.backbone_config, tokens, key)

    # ---- training --------------------------------------------------------------------------------

    def programs(self) -> tuple[StepShape, ...]:
        """See `Method`."""
        shapes = all_shapes(self.config, self.grid)
        return tuple(sorted(shapes, key=lambda s: (s.contexts + s.targets, s.targets)))

    def draw(self, step: int) -> Draw:
        """Interval and token counts of a step."""
        return _as_draw(draw_masking(self.config, self.grid, self.batch_size, self.seed, step))

    def prepare(
        self, latents: jax.Array, arrays: Sequence[jax.Array], key: jax.Array, *, static: StepShape
    ) -> tuple[MaskedExamples, jax.Array]:
        """Contexts and targets of tokens [B, T, H, W]; a clip weighs as much as it has targets."""
        examples = mask_tokens(key, latents, *arrays, shape=static)
        return examples, examples.tokens.target_valid.sum(axis=1)

    def loss(
        self, model: MaskedBackbone, examples: MaskedExamples, condition: Any, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Masked cross-entropy (paper section 3.3)."""
        hidden = model(examples.tokens, condition, key=key)  # [B, M, D]
        sums = masked_cross_entropy(
            model,
            hidden,
            examples.target_tokens,
            examples.tokens.target_valid,
            block=self.config.loss_block,
            label_smoothing=self.config.label_smoothing,
        )
        return sums.loss, {"nll": sums.nll, "accuracy": sums.accuracy}

    # ---- validation ------------------------------------------------------------------------------

    def validation_draws(self, num_batches: int, batch_size: int) -> list[ValidationDraw]:
        """Whole clips, at mask ratios spread evenly over the schedule: every ratio counts alike, as
        in training.
        """
        return [
            ValidationDraw(
                batch,
                self.draw_at((i + (batch + 0.5) / num_batches) / VALIDATION_RATIOS, batch_size),
            )
            for batch in range(num_batches)
            for i in range(VALIDATION_RATIOS)
        ]

    def draw_at(self, u: float, batch_size: int) -> Draw:
        """Sizes for whole clips at one point u in [0, 1] of the range of mask ratios."""
        ratio = self.config.ratio_min + u * (self.config.ratio_max - self.config.ratio_min)
        fixed = dataclasses.replace(
            self.config,
            interval_schedule="longest",
            ratio_min=ratio,
            ratio_max=ratio,
            ratio_per_sample=False,
        )
        return _as_draw(draw_masking(fixed, self.grid, batch_size, seed=0, step=0))

    def scores(
        self, model: MaskedBackbone, examples: MaskedExamples, condition: Any
    ) -> dict[str, jax.Array]:
        """Nats per target token and accuracy of each clip, [B] each."""
        hidden = model(examples.tokens, condition)  # [B, M, D]
        nll, accuracy = clip_scores(
            model,
            hidden,
            examples.target_tokens,
            examples.tokens.target_valid,
            block=self.config.loss_block,
        )
        return {"nll": nll, "accuracy": accuracy}

    # ---- sampling --------------------------------------------------------------------------------

    def sample(
        self,
        graphdef: nnx.GraphDef,
        params: nnx.State,
        keys: jax.Array,
        *,
        num_known: int = 0,
        given: jax.Array | None = None,
        known: jax.Array | None = None,
        condition: Any = None,
        mesh: Mesh | None = None,
        on_pass: Callable[[], None] | None = None,
    ) -> Sampled:
        """See `Method`; the latents are tokens."""
        return decode(
            graphdef,
            params,
            self.plan(num_known),
            self.grid,
            keys,
            tokens=given,
            known=known,
            condition=condition,
            mesh=mesh,
            on_pass=on_pass,
        )

    def plan(self, num_known: int = 0) -> Plan:
        """The passes that fill a clip of which `num_known` tokens are given."""
        return build_plan(self.decoding, self.num_tokens, num_known)

    def preview(self) -> "MaskedMethod":
        """Without the passes that polish."""
        quick = dataclasses.replace(self.decoding, bootstrap_steps=0, revise_rounds=0)
        return dataclasses.replace(self, decoding=quick)

    def num_passes(self, num_known: int = 0) -> int:
        """See `Method`."""
        return self.plan(num_known).num_passes

    def sampling_report(self, num_known: Sequence[int]) -> dict[str, Any]:
        """See `Method`."""
        plans = [self.plan(count) for count in num_known]
        graphdef, params = self._abstract()
        flops = {plan: cost.plan_flops(graphdef, params, plan, self.grid) for plan in set(plans)}
        return {
            "decoding": dataclasses.asdict(self.decoding),
            "passes": sum(plan.num_passes for plan in plans),
            "passes_by_kind": {kind: sum(plan.count(kind) for plan in plans) for kind in KINDS},
            "committed_per_pass": [step.committed for plan in plans for step in plan.passes],
            "compiled_programs": len(
                {(plan.num_known, *program) for plan in plans for program in programs(plan)}
            ),
            "teraflop_per_clip": sum(flops[plan] for plan in plans) / 1e12,
        }

    def sampling_programs(
        self, graphdef: nnx.GraphDef, params: Any, batch_size: int, mesh: Mesh
    ) -> list[SamplingProgram]:
        """See `Method`: one program for each kind and size of pass."""
        return cost.pass_programs(graphdef, params, self.plan(), self.grid, batch_size, mesh)

    def bytes_per_clip(self, num_known: int = 0) -> int:
        """See `Method`."""
        return cost.clip_bytes(*self._abstract(), self.plan(num_known), self.grid)

    def _abstract(self) -> tuple[nnx.GraphDef, nnx.State]:
        return nnx.split(nnx.eval_shape(lambda: self.create(jax.random.key(0))), nnx.Param)


def _as_draw(draw: MaskDraw) -> Draw:
    return Draw(
        draw.shape,
        (np.int32(draw.interval), draw.num_contexts, draw.num_targets),
        {"interval": draw.interval},
    )
