"""Tokenizers that the first version of the package saved.

`earlier/` has two of its runs of 4 steps, each packed after step 2, with the metrics of all steps
and the hash at step 2: "ema" with BatchNorm and discriminators, and "gradient", whose codebook is
a parameter. Their configs are those of CONFIGS.
"""

import functools
import json
import tarfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_config import tiny_config

from mebt_jax.config import from_config_dict
from mebt_jax.runtime import checkpoints
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import sharding as sharding_lib
from mebt_jax.stages import data
from mebt_jax.stages import tokenizer as stage
from mebt_jax.tokenizer import earlier_tokenizers
from mebt_jax.tokenizer.earlier_tokenizers import earlier_path

EARLIER = Path(__file__).parent / "earlier"
COMMON = {
    "mesh__data": 1,
    "data__frames": 4,
    "data__train_clips": 8,
    "data__validation_clips": 4,
    "tokenizer__compression": (2, 2, 2),
    "tokenizer__patch": (2, 2, 2),
    "tokenizer__hidden": 2,
    "tokenizer__codebook_size": 8,
    "tokenizer__code_width": 4,
    "tokenizer__training__steps": 4,
    "tokenizer__training__batch_size": 4,
    "tokenizer__training__log_every": 1,
    "tokenizer__training__checkpoint_every": 2,
}
ADVERSARIAL = {
    "frame_weight": 1.0,
    "video_weight": 1.0,
    "channels": 2,
    "layers": 1,
    "start": 1,
    "warmup": 1,
    "ramp": 2,
}
CONFIGS = {
    "ema": COMMON
    | {"tokenizer__norm": "batch"}
    | {f"tokenizer__adversarial__{name}": value for name, value in ADVERSARIAL.items()},
    "gradient": COMMON | {"tokenizer__quantizer": "gradient"},
}


@pytest.fixture(params=CONFIGS)
def run(request, tmp_path):
    """(config, workdir that stopped after step 2, what the version before then did)."""
    with tarfile.open(EARLIER / f"{request.param}.tar.gz") as packed:
        packed.extractall(tmp_path, filter="data")
    recorded = json.loads((EARLIER / f"{request.param}.json").read_text())
    return from_config_dict(tiny_config(**CONFIGS[request.param])), tmp_path, recorded


def state_on_mesh(config):
    """Abstract TrainState with shardings."""
    mesh = mesh_lib.make_mesh(config.mesh)
    create = functools.partial(
        stage.create_state,
        config,
        stage.training_parts(config),
        jax.random.key(0),
        jax.random.key(1),
    )
    return sharding_lib.with_sharding(jax.eval_shape(create), mesh, 512)


def test_a_tokenizer_keeps_its_name(run):
    config, workdir, recorded = run
    tokenizer = stage.load_tokenizer(config, workdir, mesh_lib.make_mesh(config.mesh))
    assert tokenizer.content_hash == recorded["tokenizer_at_2"]
    assert tokenizer.codebook.shape == (8, 4)


def test_every_array_of_a_train_state_is_found_where_it_was(run):
    config, workdir, _ = run
    folder = workdir / "tokenizer" / "checkpoints"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        path = folder / "2" / "state"
        stored = reader.metadata(path).item_metadata.tree
        arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), stored)
        stored = reader.restore(path, ocp.args.PyTreeRestore(restore_args=arguments))
    with checkpoints.Checkpointer(
        folder, {"layout": earlier_tokenizers.LAYOUT}, 1, earlier_path=earlier_path
    ) as checkpointer:
        state = checkpointer.restore(2, state_on_mesh(config)).state
    used = set()
    for keys, array in jax.tree_util.tree_leaves_with_path(state):
        names = earlier_path(tuple(checkpoints._array_path(keys)))
        found = functools.reduce(
            lambda tree, name: tree[int(name) if isinstance(tree, list) else name], names, stored
        )
        np.testing.assert_array_equal(array, found)
        used.add(names)
    # Only averages and moments of the statistics of BatchNorms are no longer kept.
    left_out = {
        tuple(checkpoints._array_path(keys))
        for keys, _ in jax.tree_util.tree_leaves_with_path(stored)
    } - used
    assert all(names[0] in ("ema", "opt_state") for names in left_out)
    assert {names[-2] for names in left_out} <= {"mean", "variance"}


@pytest.mark.slow
def test_a_run_goes_on(run):
    config, workdir, recorded = run
    data.run(config, workdir)
    stage.run(config, workdir)
    lines = [json.loads(line) for line in (workdir / "tokenizer" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "train/loss" in line] == [1, 2, 3, 4]
    for line in lines:
        for name, value in recorded["metrics"][str(line["step"])].items():
            if name in line:
                assert line[name] == pytest.approx(value, rel=1e-2, abs=1e-4), name
    # What is saved now has the new layout, and is read back without a translation.
    meta = checkpoints.read_meta(workdir / "tokenizer" / "checkpoints")
    assert (meta["step"], meta["layout"]) == (4, earlier_tokenizers.LAYOUT)
    done = json.loads((workdir / "tokenizer" / "done.json").read_text())
    tokenizer = stage.load_tokenizer(config, workdir, mesh_lib.make_mesh(config.mesh))
    assert tokenizer.content_hash == done["tokenizer"]


@pytest.mark.parametrize(
    "now, earlier",
    [
        (("step",), ("step",)),
        (("params", "decoder", "last", "bias", "value"),) * 2,
        (("params", "quantizer", "codebook", "value"), ("params", "codes", "value")),
        (("ema", "quantizer", "codebook", "value"), ("ema", "codes", "value")),
        (
            ("opt_state", "1", "0", "mu", "quantizer", "codebook", "value"),
            ("opt_state", "1", "0", "mu", "codes", "value"),
        ),
        (("model_state", "quantizer", "codebook", "value"), ("statistics", "embeddings")),
        (("model_state", "quantizer", "counts", "value"), ("statistics", "counts")),
        (
            ("model_state", "decoder", "norm", "mean", "value"),
            ("params", "decoder", "norm", "mean", "value"),
        ),
        (("disc_state", "mean_logits", "clip"), ("adversary", "logits", "clip")),
        (("disc_state", "opt_state", "0", "count"), ("adversary", "opt_state", "0", "count")),
    ],
)
def test_paths(now, earlier):
    assert earlier_path(now) == earlier


def test_checkpoints_say_their_layout():
    assert earlier_tokenizers.path_in({}) is earlier_path
    assert earlier_tokenizers.path_in({"layout": earlier_tokenizers.LAYOUT}) is None
