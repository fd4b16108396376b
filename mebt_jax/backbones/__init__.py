"""Neural networks that a method trains, by the name in `config.backbone.kind`."""

from mebt_jax.backbones.interface import MaskedBackbone
from mebt_jax.backbones.mebt.model import MeBT

BACKBONES: dict[str, type[MaskedBackbone]] = {"mebt": MeBT}
