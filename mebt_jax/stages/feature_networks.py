"""The networks behind the measures, by protocol, from the files that the config names; part of the evaluate stage."""

from mebt_jax.config import Config
from mebt_jax.errors import UserError
from mebt_jax.metrics import random_features
from mebt_jax.metrics.extraction import Extractor, windowed, windows
from mebt_jax.metrics.protocols import WEIGHT_FREE, Protocol
from mebt_jax.stages.evaluated_clips import Networks


def load(protocol: Protocol, config: Config) -> Networks:
    """The network "frechet", whose features a protocol compares.

    Raises:
        UserError: it needs weights that are not here; says how to get them and what runs without.
    """
    if protocol.needs_weights:
        raise UserError(f"Protocol {protocol.name} compares Kinetics-400 logits of I3D, whose weights are not here; without "
                        f"them --config.evaluate.protocol={WEIGHT_FREE} runs.")
    return {"frechet": Extractor("random 3D convolutions, seed 0",
                                 lambda weights, video: random_features.random_features(video))}


def with_windows(networks: Networks, config: Config) -> Networks:
    """The networks, and "windows" besides where clips are longer than one: "frechet" for each window of a clip."""
    window, every = config.evaluate.window, config.evaluate.window_every
    if len(windows(config.data.frames, window, every)) < 2:
        return networks
    return networks | {"windows": windowed(networks["frechet"], config.data.frames, window, every)}


def with_first_window(networks: Networks, config: Config) -> Networks:
    """The networks, and "windows" for the first window alone, which is all that is needed of real clips."""
    if "windows" not in with_windows(networks, config):
        return networks
    return networks | {"windows": windowed(networks["frechet"], config.evaluate.window, config.evaluate.window, 1)}
