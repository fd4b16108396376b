"""The measures of an evaluation: plain numbers, and features of the networks that the protocol and
the config name, with weights from the folders of the config.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from mebt_jax.config import Config
from mebt_jax.errors import UserError
from mebt_jax.interop import weight_folders
from mebt_jax.metrics.clip_numbers import CLIP_NUMBERS, PAIR_NUMBERS
from mebt_jax.metrics.distances import reconstruction
from mebt_jax.metrics.measures import Measure, Measures, mirrored, windowed, windows
from mebt_jax.metrics.networks import c3d, i3d, random_features
from mebt_jax.metrics.protocols import WEIGHT_FREE, Protocol
from mebt_jax.runtime import hashing

# Names of features.
FRECHET = "frechet"  # of the protocol's distances
WINDOWS = "windows"  # the same of each window of a clip
INCEPTION = "inception"  # class logits of the Inception Score

CLASSES = 400  # of the Kinetics that FVD is defined by


# (folder, key of `weight_folders.NETWORKS`, **arguments of the network) -> (structure, weights, the
# name of the weights).
Reader = Callable[..., tuple[nnx.GraphDef, nnx.State, str]]


def read_network(folder: str, kind: str, **changes: Any) -> tuple[nnx.GraphDef, nnx.State, str]:
    """A network with converted weights, which are named by their content."""
    graphdef, state = weight_folders.load_network(Path(folder), kind, **changes)
    return graphdef, state, hashing.hash_arrays(state)


def load(protocol: Protocol, config: Config, read: Reader = read_network) -> Measures:
    """All measures of a trained run.

    Args:
        read: where the weights of networks come from.

    Raises:
        UserError: weights are needed that are not here (says how to get them and what runs
            without), or clips are too short.
    """
    measures = load_for_folders(protocol, config, read)
    return dataclasses.replace(
        measures,
        reconstructed={FRECHET: measures.real[FRECHET]} | CLIP_NUMBERS,
        pairs=load_pairs(config, read),
    )


def load_for_folders(protocol: Protocol, config: Config, read: Reader = read_network) -> Measures:
    """The measures of real and of generated clips alone; raises UserError as `load`."""
    features = load_features(protocol, config, read)
    real = dict(features)
    if protocol.mirrored:
        real[FRECHET] = mirrored(features[FRECHET])
    window, every = config.evaluate.window, config.evaluate.window_every
    if len(windows(config.data.frames, window, every)) > 1:
        real[WINDOWS] = windowed(real[FRECHET], window, window, 1)  # the first window alone
        features[WINDOWS] = windowed(features[FRECHET], config.data.frames, window, every)
    return Measures(real=real | CLIP_NUMBERS, generated=features | CLIP_NUMBERS)


def load_for_tokenizer(protocol: Protocol, config: Config) -> Measures:
    """The measures of a tokenizer alone; raises UserError as `load`."""
    measures = {FRECHET: load_features(protocol, config)[FRECHET]} | CLIP_NUMBERS
    return Measures(real=measures, reconstructed=measures, pairs=load_pairs(config))


def load_features(
    protocol: Protocol, config: Config, read: Reader = read_network
) -> dict[str, Measure]:
    """The protocol's network, and the Inception Score's if the config names a C3D."""
    if protocol.needs_weights:
        network = _i3d(protocol, config, read)
    else:
        network = Measure(
            "random 3D convolutions, seed 0",
            lambda weights, video: random_features.random_features(video),
        )
    return {FRECHET: network} | ({INCEPTION: _c3d(config, read)} if config.evaluate.c3d else {})


def load_pairs(config: Config, read: Reader = read_network) -> dict[str, Measure]:
    """Measures of real clips and their reconstructions, with LPIPS if the config has weights."""
    pairs = dict(PAIR_NUMBERS)
    if config.data.resolution < reconstruction.WINDOW:
        del pairs["ssim"]
    return pairs | ({"lpips": _lpips(config, read)} if config.evaluate.lpips else {})


def _lpips(config: Config, read: Reader) -> Measure:
    graphdef, state, weights = read(config.evaluate.lpips, "lpips")
    return Measure(
        f"LPIPS {weights}",
        lambda weights, real, other: lpips_of_clips(nnx.merge(graphdef, weights), real, other),
        state,
        definition="mean over {clips} and their frames; VGG16, pixels in [-1, 1]",
    )


def lpips_of_clips(network: nnx.Module, real: jax.Array, other: jax.Array) -> jax.Array:
    """LPIPS [B] of pairs of uint8 clips [B, F, H, W, 3], the mean over the frames."""
    pairs = jnp.stack([real, other]).swapaxes(0, 2)  # [F, B, 2, H, W, 3]

    def compare_frames(pair: jax.Array) -> jax.Array:
        x, y = jnp.moveaxis(pair.astype(jnp.float32) / 127.5 - 1, 1, 0)
        return network(x, y)

    return jax.lax.map(compare_frames, pairs).mean(axis=0)


def _i3d(protocol: Protocol, config: Config, read: Reader) -> Measure:
    if not config.evaluate.i3d:
        raise UserError(
            f"Protocol {protocol.name} compares Kinetics-400 logits of I3D, whose weights are not "
            "here: get i3d_pretrained_400.pt (docs/evaluation.md), run `python -m "
            "mebt_jax.interop.convert i3d_pretrained_400.pt --out DIR`, and pass "
            "--config.evaluate.i3d=DIR; without them "
            f"--config.evaluate.protocol={WEIGHT_FREE} runs."
        )
    lengths = (config.data.frames, min(config.evaluate.window, config.data.frames))
    if (shortest := min(lengths)) < i3d.MIN_FRAMES:
        raise UserError(
            f"Protocol {protocol.name} needs clips and windows of at least {i3d.MIN_FRAMES} "
            f"frames, the least that I3D takes, not {shortest}; raise config.data.frames and "
            f"config.evaluate.window, or use --config.evaluate.protocol={WEIGHT_FREE}."
        )
    graphdef, state, weights = read(config.evaluate.i3d, "i3d", epsilon=protocol.epsilon)
    if (classes := state["logits"]["bias"].shape[0]) != CLASSES:
        raise UserError(
            f"The I3D in {config.evaluate.i3d} has logits of {classes} classes, but every protocol "
            f"compares those of the {CLASSES} classes of Kinetics-400; convert "
            "i3d_pretrained_400.pt and give its folder."
        )
    return Measure(
        f"I3D {weights}, BatchNorm eps {protocol.epsilon:g}, {protocol.resize}",
        lambda weights, video: i3d.i3d_logits(
            nnx.merge(graphdef, weights), video, resize_rule=protocol.resize
        ),
        state,
    )


def _c3d(config: Config, read: Reader) -> Measure:
    if config.data.frames < c3d.FRAMES:
        raise UserError(
            f"The Inception Score takes clips of {c3d.FRAMES} frames, not config.data.frames "
            f"{config.data.frames}; leave config.evaluate.c3d empty."
        )
    graphdef, state, weights = read(config.evaluate.c3d, "c3d")
    return Measure(
        f"C3D {weights}, first {c3d.FRAMES} frames",
        lambda weights, video: c3d.c3d_logits(nnx.merge(graphdef, weights), video[:, : c3d.FRAMES]),
        state,
    )
