"""What a method is: what is learned, and how clips are drawn from the model that learned it.

A method is made once from the config and has no state. The prior's stage trains any method, and
the sampler draws with any: neither has a condition on the kind. A new method is a class with this
face and an entry of `methods.METHODS`.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, Self

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mebt_jax.config import Config


class Draw(NamedTuple):
    """The random choices of one step that are made on the host, the same on every process."""

    static: Hashable  # decides the program, such as array sizes
    # Numbers that need no other program: scalars, or one row per clip of the global batch [B, ...].
    arrays: tuple[np.ndarray, ...] = ()
    metrics: Mapping[str, float] = {}  # to log beside those of the step


class ValidationDraw(NamedTuple):
    batch: int  # index of the validation batch
    draw: Draw


class Sampled(NamedTuple):
    """Drawn clips on the devices."""

    latents: jax.Array  # of the latent space, [B, T, H, W, ...]
    # int32 [B, T, H, W], the pass that first committed each token, -1 where given; None where the
    # method has no such order.
    committed_at: jax.Array | None = None


class SamplingProgram(NamedTuple):
    """A traced program of `Method.sample`."""

    name: str
    traced: Any  # jax.stages.Traced
    state: Any  # abstract arrays that lie on the devices beside the weights
    useful_flops: int  # of the whole batch
    turns: int  # how often a batch runs it


class Method(Protocol):
    """One way to train a backbone and to draw clips with it.

    Attributes:
        Config, Decoding: frozen dataclasses of `config.method` and `config.decoding`.
        SCORES: name of each score -> its definition, as a sentence.
        VALIDATION_METRIC: the score by which the best checkpoint is chosen; lower is better.
    """

    Config: ClassVar[type]
    Decoding: ClassVar[type]
    SCORES: ClassVar[dict[str, str]]
    VALIDATION_METRIC: ClassVar[str]

    @classmethod
    def from_config(cls, config: Config) -> Self: ...

    def resolved(self, config: Config) -> Config:
        """`config` with what names in `config.decoding` stand for put in their place."""

    def check_mesh(self, mesh: Mesh) -> None:
        """Raises UserError if the backbone cannot be split over the mesh."""

    # ---- model -----------------------------------------------------------------------------------

    def create(self, key: jax.Array, codebook: jax.Array | None = None) -> nnx.Module:
        """A model at its starting values; `codebook` [V, E] is that of the latent space, if any."""

    # ---- training --------------------------------------------------------------------------------

    def programs(self) -> tuple[Hashable, ...]:
        """Every `Draw.static` that training can meet, the most expensive last: an upper bound on
        the compilations.
        """

    def draw(self, step: int) -> Draw:
        """The choices of one training step: a function of (seed, step) alone."""

    def prepare(
        self, latents: jax.Array, arrays: Sequence[jax.Array], key: jax.Array, *, static: Hashable
    ) -> tuple[Any, jax.Array]:
        """Training examples of a whole batch, before it is cut into microbatches.

        Args:
            latents: [B, T, H, W, ...].
            arrays: those of the draw, on the devices.
            key: random key of the step.
            static: that of the draw.

        Returns:
            examples: pytree of arrays [B, ...].
            weights: [B], what each clip weighs in the mean loss, such as its number of targets.
        """

    def loss(
        self, model: nnx.Module, examples: Any, condition: Any, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Sum of the loss over some of the examples, and sums of metrics that have no gradient.

        Args:
            model: from `create`.
            examples: rows of those that `prepare` gave.
            condition: dict of the batch's fields to condition on, their rows; or None.
            key: random key, for dropout and the like.
        """

    # ---- validation ------------------------------------------------------------------------------

    def validation_draws(self, num_batches: int, batch_size: int) -> list[ValidationDraw]:
        """Fixed choices at which the validation batches are scored, equally many for each batch."""

    def scores(self, model: nnx.Module, examples: Any, condition: Any) -> dict[str, jax.Array]:
        """Metrics [B] of each clip, without randomness."""

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
        """Draws a batch of clips.

        Args:
            graphdef, params: from `nnx.split(model, nnx.Param)`.
            keys: [B] one typed key per clip; a clip follows from its key alone.
            num_known: known cells of each clip; static.
            given, known: latents [B, T, H, W, ...] and bool [B, T, H, W]; what is known is given
                and never changes. None draws everything.
            condition: see `loss`.
            mesh: the devices, or None for JAX's default.
            on_pass: called after each pass is handed to the device, for a progress bar.

        Raises:
            UserError: the method cannot do the task.
        """

    def preview(self) -> "Method":
        """The same method with quick settings, for the pictures of training."""

    def num_passes(self, num_known: int = 0) -> int:
        """Forward passes of `sample`; raises UserError if the task leaves nothing to draw."""

    def sampling_report(self, num_known: Sequence[int]) -> dict[str, Any]:
        """What drawing clips takes, as plain JSON for the manifest.

        Args:
            num_known: known cells of each window that is drawn one after another.
        """

    def sampling_programs(
        self, graphdef: nnx.GraphDef, params: Any, batch_size: int, mesh: Mesh
    ) -> list[SamplingProgram]:
        """The programs of drawing a batch from nothing, for ahead-of-time compilation.

        Args:
            graphdef, params: of the model; its arrays may be abstract, with their shardings.
            batch_size: clips of the batch.
            mesh: devices that need not be there.
        """

    def bytes_per_clip(self, num_known: int = 0) -> int:
        """Estimated device memory per clip of `sample` beside the weights."""
