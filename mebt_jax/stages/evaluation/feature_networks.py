"""The networks behind the measures, by protocol, from the folders that the config names; part of
the evaluate stage.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from mebt_jax.config import Config
from mebt_jax.errors import UserError
from mebt_jax.interop import weight_folders
from mebt_jax.metrics.networks import c3d, i3d, random_features
from mebt_jax.metrics.networks.extraction import Extractor, mirrored, windowed, windows
from mebt_jax.metrics.protocols import WEIGHT_FREE, Protocol
from mebt_jax.runtime import checkpoints
from mebt_jax.stages.evaluation.evaluated_clips import Networks

CLASSES = 400  # of the Kinetics that FVD is defined by


def load(protocol: Protocol, config: Config) -> Networks:
    """The network "frechet", whose features the protocol compares, and "inception" where the config
    names a C3D.

    Raises:
        UserError: weights are needed that are not here, says how to get them and what runs without;
            or clips are too short.
    """
    networks = {
        "frechet": _i3d(protocol, config)
        if protocol.needs_weights
        else Extractor(
            "random 3D convolutions, seed 0",
            lambda weights, video: random_features.random_features(video),
        )
    }
    if config.evaluate.c3d:
        networks["inception"] = _c3d(config)
    return networks


def with_windows(networks: Networks, config: Config) -> Networks:
    """The networks, and "windows" besides where clips are longer than one: "frechet" for each
    window of a clip.
    """
    window, every = config.evaluate.window, config.evaluate.window_every
    if len(windows(config.data.frames, window, every)) < 2:
        return networks
    return networks | {"windows": windowed(networks["frechet"], config.data.frames, window, every)}


def for_reals(networks: Networks, protocol: Protocol, config: Config) -> Networks:
    """The networks as real clips need them: mirrored as the protocol says, and "windows" for the
    first window alone.
    """
    if protocol.mirrored:
        networks = networks | {"frechet": mirrored(networks["frechet"])}
    if "windows" not in with_windows(networks, config):
        return networks
    return networks | {
        "windows": windowed(networks["frechet"], config.evaluate.window, config.evaluate.window, 1)
    }


def load_lpips(config: Config) -> Extractor | None:
    """LPIPS per clip [B] of a pair of uint8 clips [B, F, H, W, 3], mean over the frames; None
    without weights.
    """
    if not config.evaluate.lpips:
        return None
    graphdef, state = weight_folders.load_network(Path(config.evaluate.lpips), "lpips")

    def function(weights: nnx.State, real: jax.Array, rebuilt: jax.Array) -> jax.Array:
        network = nnx.merge(graphdef, weights)
        pairs = jnp.stack([real, rebuilt]).swapaxes(0, 2)  # [F, B, 2, H, W, 3]

        def frame(pair: jax.Array) -> jax.Array:
            x, y = jnp.moveaxis(pair.astype(jnp.float32) / 127.5 - 1, 1, 0)
            return network(x, y)

        return jax.lax.map(frame, pairs).mean(axis=0)

    return Extractor(f"LPIPS {checkpoints.content_hash(state)}", function, state)


def _i3d(protocol: Protocol, config: Config) -> Extractor:
    if not config.evaluate.i3d:
        raise UserError(
            f"Protocol {protocol.name} compares Kinetics-400 logits of I3D, whose weights are not "
            "here: get "
            f"i3d_pretrained_400.pt (docs/evaluation.md), run `python -m mebt_jax.interop.convert "
            f"i3d_pretrained_400.pt --out DIR`, and pass --config.evaluate.i3d=DIR; without them "
            f"--config.evaluate.protocol={WEIGHT_FREE} runs."
        )
    shortest = min(
        [config.data.frames]
        + [config.evaluate.window] * (config.evaluate.window < config.data.frames)
    )
    if shortest < i3d.MIN_FRAMES:
        raise UserError(
            f"Protocol {protocol.name} needs clips and windows of at least {i3d.MIN_FRAMES} "
            "frames, the least that "
            f"I3D takes, not {shortest}; raise config.data.frames and config.evaluate.window, or "
            "use "
            f"--config.evaluate.protocol={WEIGHT_FREE}."
        )
    graphdef, state = weight_folders.load_network(
        Path(config.evaluate.i3d), "i3d", epsilon=protocol.epsilon
    )
    if (classes := state["logits"]["bias"][...].size) != CLASSES:
        raise UserError(
            f"The I3D in {config.evaluate.i3d} tells {classes} classes apart, and the distances of "
            "every protocol "
            f"are of the {CLASSES} of Kinetics-400; convert i3d_pretrained_400.pt and give its "
            "folder."
        )
    return Extractor(
        f"I3D {checkpoints.content_hash(state)}, BatchNorm eps {protocol.epsilon:g}, "
        f"{protocol.resize}",
        lambda weights, video: i3d.i3d_logits(
            nnx.merge(graphdef, weights), video, resize_rule=protocol.resize
        ),
        state,
    )


def _c3d(config: Config) -> Extractor:
    if config.data.frames < c3d.FRAMES:
        raise UserError(
            f"The Inception Score takes clips of {c3d.FRAMES} frames, not config.data.frames "
            f"{config.data.frames}; "
            f"leave config.evaluate.c3d empty."
        )
    graphdef, state = weight_folders.load_network(Path(config.evaluate.c3d), "c3d")
    return Extractor(
        f"C3D {checkpoints.content_hash(state)}, first {c3d.FRAMES} frames",
        lambda weights, video: c3d.c3d_logits(nnx.merge(graphdef, weights), video[:, : c3d.FRAMES]),
        state,
    )
