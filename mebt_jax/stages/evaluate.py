"""Fifth stage: measures tokenizer, prior and generated clips on held-out clips, and shows them side
by side.
"""

from pathlib import Path

import jax

from mebt_jax.config import Config
from mebt_jax.data import measured_clips
from mebt_jax.methods.trained_prior import load_prior
from mebt_jax.metrics import protocols, results
from mebt_jax.metrics.distances import neighbours
from mebt_jax.metrics.protocols import ClipForm
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages.evaluation import (
    evaluate_tokenizer,
    feature_networks,
    run_page,
    run_results,
)
from mebt_jax.stages.evaluation.evaluated_clips import EvaluatedClips, Evaluator, load_generated
from mebt_jax.stages.evaluation.feature_networks import FRECHET, INCEPTION
from mebt_jax.stages.evaluation.run_page import PICTURED_CLIPS
from mebt_jax.stages.evaluation.run_results import PHYSICS_CLIPS
from mebt_jax.tokenizer.trained_tokenizer import load_tokenizer

STAGE = "evaluate"


def run(config: Config, workdir: Path) -> None:
    """Writes metrics.json, report.html, contact_sheet.png and curves.png, and prints a table.

    Raises:
        UserError: the mesh, the batch size or a checkpoint do not fit, the generated clips are of
            another tokenizer, or there are fewer clips or other weights than the protocol asks for.
    """
    if workdir_lib.tokenizer_alone(config, workdir):
        evaluate_tokenizer.run(config, workdir)
        return
    # ---- models and data -------------------------------------------------------------------------
    mesh = mesh_lib.make_mesh(config.mesh)
    size = config.evaluate.batch_size
    mesh_lib.check_batch_size(mesh, size, "config.evaluate.batch_size")
    real_split = measured_clips.real_split(config, workdir)
    protocol = protocols.for_data(config.evaluate.protocol, real_split, config.data.frames)
    form = ClipForm.from_config(config)
    measures = feature_networks.load(protocol, config)
    space = load_tokenizer(config, workdir, mesh)
    prior = load_prior(config, workdir, mesh, space.content_hash)
    tokens = load_generated(workdir_lib.generated_folder(workdir), space.content_hash)
    splits = {
        split: measured_clips.open_clips(config, workdir, split) for split in measured_clips.SPLITS
    }
    protocols.check_counts(protocol, real=len(splits[protocol.reals]), fake=len(tokens))

    # ---- clips -----------------------------------------------------------------------------------
    shapes = {part.source for part in config.data.parts} == {"moving_shapes"}
    num_shown = PHYSICS_CLIPS if shapes else PICTURED_CLIPS
    count = max(config.evaluate.clips, protocol.clips)
    evaluator = Evaluator(space, measures, size, config.prior.conditions)
    clips = EvaluatedClips(
        held_out=evaluator.real_clips(splits["validation"], count, num_shown=num_shown),
        train=evaluator.real_clips(splits["train"], count),
        generated=evaluator.generated_clips(tokens, max(num_shown, 2 * PICTURED_CLIPS)),
        real_split=protocol.reals,
    )

    # ---- numbers ---------------------------------------------------------------------------------
    found = run_results.tokenizer_results(clips, measures, config)
    found |= run_results.prior_results(prior, clips, config, mesh)
    found |= run_results.generation_results(clips, measures, protocol, form)
    features = clips.generated.values[FRECHET], clips.held_out.real[FRECHET]
    quality, text = (
        -neighbours.nearest(*features)[1],
        "by the distance to the nearest held-out clip",
    )
    if shapes:
        physics, quality = run_results.physics_results(clips)
        found |= physics
        text = "by their physics score"
    curve = run_results.over_time(clips, protocol, form, config)

    # ---- page ------------------------------------------------------------------------------------
    rows = [
        run_page.ranked(quality, text, clips, evaluator),
        run_page.closest_to_training(clips, splits["train"], evaluator),
    ]
    made_from = {
        "tokenizer": space.content_hash,
        "prior": f"step {prior.step}, {prior.weights} weights",
        **{
            f"network of {name}": measures.generated[name].name
            for name in (FRECHET, INCEPTION)
            if name in measures.generated
        },
    }
    if jax.process_index() == 0:
        directory = workdir / STAGE
        workdir_lib.write_json(
            directory / "metrics.json",
            results.to_json(found) | curve | {"made_from": made_from},
        )
        page = run_page.Page(found, rows, curve, made_from)
        run_page.show(config, workdir, directory, clips, page)
    workdir_lib.mark_done(config, workdir, STAGE, tokenizer=space.content_hash)
