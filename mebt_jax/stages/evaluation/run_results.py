"""The numbers of a trained run, from its measured clips: of the tokenizer, of the prior, of the
generated clips.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jax.sharding import Mesh

from mebt_jax.config import Config
from mebt_jax.data import measured_clips
from mebt_jax.methods.trained_prior import TrainedPrior
from mebt_jax.metrics import results, uncertainty
from mebt_jax.metrics.distances import codebook_usage, neighbours
from mebt_jax.metrics.measures import Measures, windows
from mebt_jax.metrics.protocols import ClipForm, Protocol
from mebt_jax.metrics.results import Result, mean
from mebt_jax.metrics.uncertainty import Estimate
from mebt_jax.metrics.worlds import shapes_physics
from mebt_jax.stages import prior as prior_stage
from mebt_jax.stages.evaluation.evaluated_clips import EvaluatedClips, RealClips
from mebt_jax.stages.evaluation.feature_networks import FRECHET, INCEPTION, WINDOWS
from mebt_jax.stages.evaluation.reconstruction_results import paired_frechet, token_numbers

HELD_OUT = measured_clips.SPLITS["validation"]
PHYSICS_CLIPS = 32  # of each kind, on which the physics of moving shapes is measured


# ---- tokenizer -----------------------------------------------------------------------------------


def tokenizer_results(
    clips: EvaluatedClips, measures: Measures, config: Config
) -> dict[str, Result]:
    """Reconstruction and codebook, of held-out clips."""
    found = results.clip_means(measures.pairs, clips.held_out.pairs, f"{HELD_OUT} clips")
    found["train_psnr"] = mean(clips.train.pairs["psnr"], "dB, the same PSNR over training clips")
    for name, number in token_numbers(config.tokenizer.codebook_size, HELD_OUT).items():
        found[name] = token_result(number.measure, clips, number.definition, number.biased)
    return {f"tokenizer/{name}": result for name, result in found.items()}


def token_result(
    measure: Callable[[np.ndarray], float],
    clips: EvaluatedClips,
    definition: str,
    biased: bool | None = True,
) -> Result:
    """A number of held-out tokens [n, T, H, W], beside that of as many training clips."""
    estimate = uncertainty.from_samples(measure, clips.held_out.tokens, biased=biased)
    others = clips.train.tokens[: estimate.count]
    return Result(
        dataclasses.replace(estimate, real_floor=measure(others), real_floor_count=len(others)),
        f"{definition}; real clips: as many training clips",
    )


# ---- prior ---------------------------------------------------------------------------------------


def prior_results(
    prior: TrainedPrior, clips: EvaluatedClips, config: Config, mesh: Mesh
) -> dict[str, Result]:
    """How well the prior predicts held-out clips, beside clips that it was trained on and beside
    what a model without context can do.
    """
    method = prior.method
    score = prior_stage.score_program(method, prior.graphdef, mesh)

    def scores(real: RealClips) -> dict[str, np.ndarray]:
        values = prior_stage.validation(score, method, prior.params, real.batches, config, mesh)
        # The last batch was filled up.
        return {name: rows[: len(real.tokens)] for name, rows in values.items()}

    held_out, train = scores(clips.held_out), scores(clips.train)
    found = {
        f"prior/{name}": mean(
            held_out[name],
            f"{definition}; {prior.weights} weights, whole held-out clips, draws of a fixed seed; "
            "real clips: as many training clips",
            train[name],
        )
        for name, definition in method.SCORES.items()
    }
    return found | unigram_results(held_out, clips, config.tokenizer.codebook_size)


def unigram_results(
    scores: dict[str, np.ndarray], clips: EvaluatedClips, codebook_size: int
) -> dict[str, Result]:
    """What a model without context can do, and the prior's `scores` [n] of the held-out clips
    against it.
    """

    def counts(tokens: np.ndarray) -> np.ndarray:
        return codebook_usage.count_tokens(tokens, codebook_size)

    def entropy(tokens: np.ndarray) -> float:
        return codebook_usage.entropy(counts(tokens))

    train_counts = counts(clips.train.tokens)
    found = {
        "unigram/entropy": token_result(
            entropy,
            clips,
            "nats per token: entropy of the code frequencies of the held-out clips, the least that "
            "any model without context can reach there",
        ),
        "unigram/train_cross_entropy": Result(
            uncertainty.from_samples(
                lambda tokens: codebook_usage.cross_entropy(counts(tokens), train_counts),
                clips.held_out.tokens,
                biased=False,
            ),
            "nats per token of the held-out clips under the code frequencies (plus one) of the "
            "training clips",
        ),
    }
    if "nll" in scores:
        found["nll_over_unigram_entropy"] = Result(
            uncertainty.from_samples(
                lambda nll, tokens: nll.mean() / max(entropy(tokens), 1e-9),
                scores["nll"],
                clips.held_out.tokens,
            ),
            "prior/nll over unigram/entropy",
        )
    return found


# ---- generated clips -----------------------------------------------------------------------------


def generation_results(
    clips: EvaluatedClips, measures: Measures, protocol: Protocol, form: ClipForm
) -> dict[str, Result]:
    """Generated and reconstructed clips against real ones, and copies of training clips."""
    real, other = clips.real, clips.other_real
    sides = {"generated": clips.generated.values, "reconstructed": other.reconstructed}
    found = {}
    for side, values in sides.items():
        means = results.clip_means(getattr(measures, side), values, f"{side} clips", real=real.real)
        found |= {f"{side}/{name}": result for name, result in means.items()}
    found |= distance_results(clips, protocol, form)
    if INCEPTION in real.real:
        found |= results.inception(clips.generated.values[INCEPTION], real.real[INCEPTION])
    return found


def distance_results(
    clips: EvaluatedClips, protocol: Protocol, form: ClipForm
) -> dict[str, Result]:
    """By the features of the protocol; empty if there are too few clips."""
    real, other = clips.real.real[FRECHET], clips.other_real.real[FRECHET]
    fake = clips.generated.values[FRECHET]
    text = clips.real.text
    found = results.distances(protocol, fake, real, other, form, "generated", text)
    if not found:
        return found
    # At the N of the generated clips, so that the two can be compared: the prior is responsible for
    # what lies between them.
    count = next(iter(found.values())).estimate.count
    reconstructed = clips.other_real.reconstructed[FRECHET]
    others = results.distances(
        protocol, reconstructed[:count], real[:count], other[:count], form, "reconstructed", text
    )
    found |= {
        name: result for name, result in others.items() if name.endswith(("frechet", "kernel"))
    }
    found["reconstructed/paired_frechet"] = paired_frechet(
        HELD_OUT, clips.held_out, HELD_OUT, protocol, form
    )
    return found | {"memorisation/close_share": close_share_result(clips, protocol, form)}


def close_share_result(clips: EvaluatedClips, protocol: Protocol, form: ClipForm) -> Result:
    """How many generated clips are closer to a training clip than held-out clips are."""
    fake, held_out = clips.generated.values[FRECHET], clips.held_out.real[FRECHET]
    train = clips.train.real[FRECHET]
    share = neighbours.copied_share(fake, held_out, train)
    return Result(
        Estimate(
            share,
            len(fake),
            1,
            (share * (1 - share) / len(fake)) ** 0.5,
            real_floor=0.05,
            real_floor_count=len(held_out),
        ),
        f"share of generated clips nearer to one of {len(train)} training clips than 95 % of the "
        "held-out clips are; 0.05 for a model that draws anew, 1 for one that recites",
        protocol.describe(
            len(fake), form, 1, f"training (N={len(train)}) and held-out (N={len(held_out)})"
        ),
    )


def over_time(
    clips: EvaluatedClips, protocol: Protocol, form: ClipForm, config: Config
) -> dict[str, Any]:
    """The distance of each window of the generated clips; empty for short clips."""
    window, every = config.evaluate.window, config.evaluate.window_every
    return results.window_curve(
        protocol,
        clips.generated.values.get(WINDOWS),
        clips.real.real.get(WINDOWS),
        clips.other_real.real.get(WINDOWS),
        windows(form.frames, window, every),
        dataclasses.replace(form, frames=window),
        clips.real.text,
    )


def physics_results(clips: EvaluatedClips) -> tuple[dict[str, Result], np.ndarray]:
    """(how well generated and reconstructed moving shapes keep the laws of their world, score [n]
    of the generated clips).
    """
    real, reconstructed = zip(*clips.held_out.shown)
    videos = {
        "generated": clips.generated.shown[:PHYSICS_CLIPS],
        "reconstructed": reconstructed,
        "real": real,
    }
    scores = {kind: shapes_physics.physics(shown) for kind, shown in videos.items()}
    found = {}
    for kind in ("generated", "reconstructed"):
        for name, text in shapes_physics.DEFINITIONS.items():
            definition = f"{shapes_physics.NAME} of {kind} clips: {text}"
            result = mean(scores[kind][name], definition, scores["real"][name])
            if result.estimate.count:
                found[f"physics_{kind}/{name}"] = result
    return found, scores["generated"]["score"]
