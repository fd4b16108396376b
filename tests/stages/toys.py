"""A toy backbone and a toy method of some 30 lines each, put into the tables as a newcomer would.

    python tests/stages/toys.py --config=... --stage=prior

is `python -m mebt_jax.main` with both of them known.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from mebt_jax import main
from mebt_jax.backbones import BACKBONES
from mebt_jax.backbones.interface import MaskedBackbone
from mebt_jax.methods import METHODS
from mebt_jax.methods.interface import Draw, Sampled, ValidationDraw


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    kind: str = "toy"
    width: int = 8


@dataclasses.dataclass(frozen=True)
class ToyDecoding:
    kind: str = "toy"


class ToyBackbone(MaskedBackbone):
    """A target is predicted from its position and the mean of the contexts."""

    Config = ToyConfig

    def __init__(self, config, tokens, rngs):
        self.dtype = jnp.dtype("float32")
        self.tokens = nnx.Embed(tokens.vocab_size, config.width, rngs=rngs)
        self.positions = nnx.Embed(math.prod(tokens.grid), config.width, rngs=rngs)
        self.head = nnx.Linear(config.width, tokens.vocab_size, use_bias=False, rngs=rngs)

    @classmethod
    def create(cls, config, tokens, key):
        return cls(config, tokens, nnx.Rngs(key))

    def __call__(self, tokens, condition=None, *, key=None):
        contexts = self.tokens(tokens.context_tokens) + self.positions(tokens.context_positions)
        valid = tokens.context_valid[..., None]
        mean = (contexts * valid).sum(axis=1, keepdims=True) / jnp.maximum(
            valid.sum(axis=1, keepdims=True), 1
        )
        return mean + self.positions(tokens.target_positions)


class Histogram(nnx.Module):
    def __init__(self, grid, vocab_size):
        self.logits = nnx.Param(jnp.zeros((*grid, vocab_size)))


@dataclasses.dataclass(frozen=True)
class ToyMethod:
    """Learns how often each token is at each position, and draws positions independently."""

    Config: ClassVar[type] = ToyConfig
    Decoding: ClassVar[type] = ToyDecoding
    VALIDATION_METRIC: ClassVar[str] = "nll"
    SCORES: ClassVar[dict[str, str]] = {"nll": "nats per token"}
    grid: tuple[int, int, int]
    vocab_size: int

    @classmethod
    def from_config(cls, config):
        return cls(config.grid, config.tokenizer.codebook_size)

    def resolved(self, config):
        return config

    def check_mesh(self, mesh):
        pass

    def create(self, key, codebook=None):
        return Histogram(self.grid, self.vocab_size)

    def programs(self):
        return (None,)

    def draw(self, step):
        return Draw(None)

    def prepare(self, latents, arrays, key, *, static):
        return latents, jnp.full((len(latents),), float(math.prod(self.grid)))

    def loss(self, model, examples, condition, key):
        return self.scores(model, examples, condition)["nll"].sum() * math.prod(self.grid), {}

    def validation_draws(self, num_batches, batch_size):
        return [ValidationDraw(batch, Draw(None)) for batch in range(num_batches)]

    def scores(self, model, examples, condition):
        logits = jnp.broadcast_to(model.logits[...], (len(examples), *model.logits.shape))
        nll = optax.softmax_cross_entropy_with_integer_labels(logits, examples)
        return {"nll": nll.mean(axis=(1, 2, 3))}

    def sample(self, graphdef, params, keys, **given: Any):
        logits = nnx.merge(graphdef, params).logits[...]
        return Sampled(jax.vmap(lambda key: jax.random.categorical(key, logits))(keys))

    def preview(self):
        return self

    def num_passes(self, num_known=0):
        return 1

    def sampling_report(self, num_known):
        return {"passes": 1}

    def bytes_per_clip(self, num_known=0):
        return 4 * math.prod(self.grid) * self.vocab_size


def register() -> None:
    BACKBONES["toy"] = ToyBackbone
    METHODS["toy"] = ToyMethod


if __name__ == "__main__":
    register()
    main.run()
