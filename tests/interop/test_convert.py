"""The converter from end to end: files as the official programs save them, to folders that stages
and metrics load.
"""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from official_files import (
    TRANSFORMER,
    TRANSFORMER_HYPER,
    VQGAN,
    VQGAN_ARGS,
    config_of,
    tokenizer_weights,
)
from official_weights import assert_close, load_vectors, state_dict_of

from mebt_jax.errors import UserError
from mebt_jax.interop.convert import convert
from mebt_jax.interop.mebt_weights import transformer_from_official
from mebt_jax.interop.names import leaves_of
from mebt_jax.interop.official_settings import transformer_settings
from mebt_jax.interop.tokenizer_weights import tokenizer_from_official
from mebt_jax.interop.torch_files import write_torch_file
from mebt_jax.interop.weight_folders import load_network
from mebt_jax.methods.trained_prior import load_prior
from mebt_jax.metrics.networks.c3d import c3d_logits
from mebt_jax.runtime import mesh as mesh_lib
from mebt_jax.runtime import workdir as workdir_lib
from mebt_jax.stages import (
    data,
    evaluate,
    sample,
)
from mebt_jax.stages import (
    prior as transformer_stage,
)
from mebt_jax.stages import (
    tokenizer as tokenizer_stage,
)
from mebt_jax.tokenizer.trained_tokenizer import load_tokenizer
from mebt_jax.tokenizer.training.discriminators import CLIPS

ROOT = Path(__file__).parents[2]


def assert_same(loaded, expected):
    loaded, expected = leaves_of(loaded), leaves_of(expected)
    assert loaded.keys() == expected.keys()
    for path, leaf in expected.items():
        assert np.asarray(loaded[path]).tobytes() == np.asarray(leaf).tobytes(), path


def test_stages_load_what_was_converted_bit_for_bit(converted):
    config = config_of(converted)
    assert config.grid == (2, 4, 4) and config.data.frames == 4 and config.data.frame_stride == 2
    assert config.backbone.layers == ("encode", "latent", "encode", "decode", "update", "decode")
    assert (config.backbone.heads, config.backbone.attention_dropout) == (4, 0.1)
    method = config.method
    assert (
        method.interval_schedule,
        method.interval_alpha,
        method.ratio_max,
        method.target_budget,
    ) == ("gaussian_renormalized", 30_000, 0.9, 20)
    mesh = mesh_lib.make_mesh(config.mesh)
    tokenizer = load_tokenizer(config, Path("nowhere"), mesh)
    transformer = load_prior(config, Path("nowhere"), mesh, tokenizer.content_hash)
    variables = tokenizer_from_official(tokenizer_weights(codes=64), config.tokenizer)
    assert_same(tokenizer.params, variables)
    assert_same(
        transformer.params,
        transformer_from_official(state_dict_of(TRANSFORMER), config.backbone),
    )
    assert transformer.step == 77

    with pytest.raises(UserError, match="has heads 4, but config.backbone.heads is 8; set it to 4"):
        load_prior(
            config_of(converted, backbone__heads=8),
            Path("nowhere"),
            mesh,
            tokenizer.content_hash,
        )
    with pytest.raises(UserError, match="was trained on the tokens of tokenizer"):
        load_prior(config, Path("nowhere"), mesh, "another")


def test_discriminators_come_along(converted):
    graphdef, state = load_network(converted, "clip_discriminator")
    discriminator = nnx.merge(graphdef, state)
    assert discriminator.layers[0].kernel.shape == (*CLIPS, 3, 8) and len(discriminator.layers) == 5
    np.testing.assert_array_equal(
        state["layers"][1]["norm"]["mean"][...],
        state_dict_of(VQGAN)["video_discriminator.model1.1.running_mean"],
    )


def test_a_transformer_without_its_tokenizer_takes_any(files, tmp_path, capsys):
    convert(files / "alone.ckpt", tmp_path / "out")
    assert "no tokenizer inside" in capsys.readouterr().err
    config = config_of(tmp_path / "out")
    assert config.tokenizer.checkpoint == "" and config.tokenizer.codebook_size == 64
    load_prior(config, tmp_path, mesh_lib.make_mesh(config.mesh), "unknown")
    assert "cannot be checked" in capsys.readouterr().err


def test_feature_networks_are_loaded_with_their_sizes(tmp_path):
    vectors = load_vectors("c3d")
    mean = (np.arange(3 * 16 * 128 * 171) % 200).reshape(3, 16, 128, 171).astype(np.float32)
    np.savez(tmp_path / "c3d.npz", **state_dict_of(vectors))
    np.savez(tmp_path / "mean2.npz", mean=mean)
    with pytest.raises(UserError, match="mean2.npz that belongs to it with --also"):
        convert(tmp_path / "c3d.npz", tmp_path / "out")
    convert(tmp_path / "c3d.npz", tmp_path / "out", also=tmp_path / "mean2.npz")
    graphdef, state = load_network(tmp_path / "out", "c3d")
    logits = jax.jit(lambda state, video: c3d_logits(nnx.merge(graphdef, state), video))(
        state, vectors["video"]
    )
    assert_close(logits, vectors["logits"], 1e-4)
    with pytest.raises(UserError, match="There is no converted i3d in"):
        load_network(tmp_path / "out", "i3d")


def test_everything_that_does_not_fit_is_listed_and_nothing_is_written(tmp_path):
    weights = tokenizer_weights()
    weights["encoder.surplus"] = np.zeros(2, np.float32)
    weights["image_discriminator.model2.0.bias"] = np.zeros(7, np.float32)
    weights["decoder.conv_last.conv.bias"] = np.full(3, np.nan, np.float32)
    del weights["post_vq_conv.conv.bias"]
    write_torch_file(
        tmp_path / "broken.ckpt", {"state_dict": weights, "hyper_parameters": {"args": VQGAN_ARGS}}
    )
    with pytest.raises(UserError) as error:
        convert(tmp_path / "broken.ckpt", tmp_path / "out")
    for problem in (
        "encoder.surplus is unknown",
        "image_discriminator.model2.0.bias has shape (7,) instead of (32,)",
        "post_vq_conv.conv.bias is missing",
        "decoder.conv_last.conv.bias is not finite",
    ):
        assert problem in str(error.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken.ckpt"]


@pytest.mark.parametrize(
    "change, words",
    [
        ({"padding_type": "reflect"}, "pads by 'reflect'"),
        ({"downsample": None}, "give the tokenizer's own checkpoint"),
        ({"downsample": 4}, "not of the form that the official programs save"),
        ({"resolution": 18}, "does not divide"),
    ],
)
def test_other_tokenizers_are_refused(tmp_path, change, words):
    args = {name: value for name, value in (VQGAN_ARGS | change).items() if value is not None}
    write_torch_file(
        tmp_path / "other.ckpt",
        {"state_dict": tokenizer_weights(), "hyper_parameters": {"args": args}},
    )
    with pytest.raises(UserError, match=words):
        convert(tmp_path / "other.ckpt", tmp_path / "out")


@pytest.mark.parametrize(
    "change, words",
    [
        ({"transformer_config": {}}, "no hyper-parameters mode, n_head"),
        ({"mask_config": {"params": {"shape": [2, 2, 8]}}}, "no square frame"),
        (
            {"mask_config": {"params": {"shape": [4, 4, 4]}}},
            "32 positions, but its hyper-parameters describe a grid",
        ),
        (
            {
                "transformer_config": TRANSFORMER_HYPER["transformer_config"]
                | {"mode": ["latent_enc", "mixer"]}
            },
            "kind mixer",
        ),
    ],
)
def test_other_transformers_are_refused(files, tmp_path, change, words):
    write_torch_file(
        tmp_path / "other.ckpt",
        {"state_dict": state_dict_of(TRANSFORMER), "hyper_parameters": TRANSFORMER_HYPER | change},
    )
    with pytest.raises(UserError, match=words):
        convert(tmp_path / "other.ckpt", tmp_path / "out", also=files / "vqgan.ckpt")


def test_mistaken_files_are_named(files, tmp_path):
    write_torch_file(tmp_path / "resnet.pt", {"conv1.weight": np.zeros((3, 3), np.float32)})
    with pytest.raises(UserError, match="none of the official checkpoints .*conv1.weight"):
        convert(tmp_path / "resnet.pt", tmp_path / "out")
    with pytest.raises(UserError, match="is a MeBT transformer, but --also should be a TATS VQGAN"):
        convert(files / "alone.ckpt", tmp_path / "out", also=files / "mebt.ckpt")
    write_torch_file(
        tmp_path / "half.pth", {"lin0.model.1.weight": np.zeros((1, 64, 1, 1), np.float32)}
    )
    with pytest.raises(UserError, match="one half of LPIPS; give the other, a VGG16"):
        convert(tmp_path / "half.pth", tmp_path / "out")
    (tmp_path / "text.npz").write_text("no")
    with pytest.raises(UserError, match="Could not read"):
        convert(tmp_path / "text.npz", tmp_path / "out")
    with pytest.raises(UserError, match="is there already"):
        convert(files / "alone.ckpt", tmp_path)
    tampered = tokenizer_weights(codes=64)
    tampered["codebook.embeddings"] = tampered["codebook.embeddings"] + 1
    write_torch_file(
        tmp_path / "other.ckpt", {"state_dict": tampered, "hyper_parameters": {"args": VQGAN_ARGS}}
    )
    with pytest.raises(UserError, match="inside of .* is another than that of"):
        convert(files / "mebt.ckpt", tmp_path / "out", also=tmp_path / "other.ckpt")


def test_an_interval_schedule_without_counterpart_is_said():
    arrays = {"tok_emb.weight": np.zeros((32, 8)), "sos_emb": np.zeros((1, 4, 8))}
    for prior, sentences in (("gaussian2", 0), ("cubic", 1)):
        hyper = TRANSFORMER_HYPER | {
            "transformer_config": TRANSFORMER_HYPER["transformer_config"] | {"t_prior": prior}
        }
        settings, assumed = transformer_settings(arrays, hyper, (4, 8, 8))
        assert len(assumed) == sentences
    assert "'cubic'" in assumed[0] and settings["method.interval_schedule"] == "longest"


def test_the_command_reads_the_official_layout_and_says_one_sentence(tmp_path):
    """A checkpoint that the official training code saved, with OmegaConf objects; its grid of 2x3x4
    is not square.
    """
    official = ROOT / "tests/interop/vectors/transformer_full_decoder.ckpt"
    given = [
        sys.executable,
        "-m",
        "mebt_jax.interop.convert",
        str(official),
        "--out",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(given, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 2 and not (tmp_path / "out").exists()
    assert "a MeBT transformer, 71 arrays, 14,896 numbers" in done.stderr
    assert "a grid of (2, 3, 4) tokens" in done.stderr and "Traceback" not in done.stderr


def stage_config(converted, **changes):
    settings = {
        "data__train_clips": 16,
        "data__validation_clips": 8,
        "sample__clips": 8,
        "sample__batch_size": 8,
        "decoding__draft_steps": 2,
        "decoding__bootstrap_steps": 0,
        "decoding__revise_rounds": 0,
        "evaluate__clips": 8,
        "evaluate__batch_size": 8,
        "prior__training__batch_size": 8,
        "prior__training__validation_batches": 1,
        "backbone__dtype": "float32",
        "method__bucket_steps": 1,
    }
    return config_of(converted, **settings | changes)


def run_stages(config, workdir, names):
    stages = {
        "data": data,
        "tokenizer": tokenizer_stage,
        "prior": transformer_stage,
        "sample": sample,
        "evaluate": evaluate,
    }
    for name in names:
        workdir_lib.require(config, workdir, name)
        stages[name].run(config, workdir)
        assert workdir_lib.is_done(config, workdir, name)


@pytest.mark.slow
def test_clips_are_sampled_from_a_converted_model(converted, tmp_path):
    config = stage_config(converted)
    run_stages(config, tmp_path, ["data", "tokenizer", "prior", "sample"])
    assert not (tmp_path / "prior" / "checkpoints").exists()
    with np.load(tmp_path / "sample" / "tokens.npz") as tokens:
        assert tokens["codes"].shape == (8, 2, 4, 4) and len(np.unique(tokens["codes"])) > 8


@pytest.mark.slow
def test_a_converted_model_is_trained_further_and_a_new_one_on_its_tokenizer(
    converted, tmp_path, capsys
):
    steps = {"prior__training__steps": 2, "method__interval_schedule": "longest"}
    run_stages(
        stage_config(converted, **steps),
        tmp_path / "further",
        ["data", "tokenizer", "prior", "sample", "evaluate"],
    )
    assert "starting from the weights of step 77" in capsys.readouterr().err
    config = stage_config(
        converted, **steps, prior__checkpoint="", backbone__layers=("encode", "decode")
    )
    run_stages(config, tmp_path / "new", ["data", "tokenizer", "prior"])
    assert "starting from" not in capsys.readouterr().err
