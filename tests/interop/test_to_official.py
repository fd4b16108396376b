"""There and back again: what the official modules would load is what came from them, bit for
bit.
"""

import numpy as np
import pytest
from official_files import TRANSFORMER_HYPER, VQGAN_ARGS
from official_weights import load_vectors, state_dict_of

from mebt_jax.config import from_config_dict, to_dict
from mebt_jax.errors import UserError
from mebt_jax.interop import to_official
from mebt_jax.interop.convert import convert
from mebt_jax.interop.to_official import convert_back
from mebt_jax.interop.torch_files import read_torch_file, write_torch_file
from mebt_jax.runtime import checkpoints
from tests.tiny_config import tiny_config


def assert_same_arrays(written, expected):
    assert written.keys() == expected.keys()
    for name, array in expected.items():
        assert written[name].dtype == array.dtype and written[name].shape == array.shape, name
        assert written[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


def test_a_mebt_with_its_tokenizer_comes_back(files, converted, tmp_path):
    convert_back(converted, tmp_path / "back.ckpt")
    written, official = (
        read_torch_file(tmp_path / "back.ckpt"),
        read_torch_file(files / "mebt.ckpt"),
    )
    assert_same_arrays(written["state_dict"], official["state_dict"])
    model, mask = (
        written["hyper_parameters"]["transformer_config"],
        written["hyper_parameters"]["mask_config"]["params"],
    )
    assert model | TRANSFORMER_HYPER["transformer_config"] == model
    assert mask | TRANSFORMER_HYPER["mask_config"]["params"] == mask


@pytest.mark.parametrize(
    "name", ["vqgan_tiny", pytest.param("vqgan_more/batch_norm", marks=pytest.mark.slow)]
)
def test_a_vqgan_comes_back_with_all_that_it_held(tmp_path, name, capsys, monkeypatch):
    monkeypatch.setattr(
        to_official, "DISCRIMINATOR_SIZES", {"channels": 4, "layers": 3}
    )  # made quickly
    vectors = load_vectors(name)
    weights = state_dict_of(vectors)
    args = VQGAN_ARGS
    if "batch_norm" in name:
        args = args | {
            "downsample": [8, 2, 4],
            "resolution": 8,
            "sequence_length": 16,
            "norm_type": "batch",
        }
        # The codebook of batch_norm is smaller than the default of decoding.top_k; a larger one
        # changes nothing else.
        weights |= {
            key: np.resize(array, (40, *array.shape[1:]))
            for key, array in weights.items()
            if "codebook" in key
        }
    else:
        lpips = state_dict_of(load_vectors("lpips"))
        weights |= {f"perceptual_model.{key}": array for key, array in lpips.items()}
    write_torch_file(
        tmp_path / "vqgan.ckpt", {"state_dict": weights, "hyper_parameters": {"args": args}}
    )
    convert(tmp_path / "vqgan.ckpt", tmp_path / "ours")
    convert_back(tmp_path / "ours", tmp_path / "back.ckpt")
    written = read_torch_file(tmp_path / "back.ckpt")
    back = written["state_dict"]
    if "batch_norm" in name:  # it came without them
        assert "no clip_discriminator" in capsys.readouterr().err
        back = {key: array for key, array in back.items() if "discriminator" not in key}
    else:
        scaling = {
            key: back.pop(f"perceptual_model.scaling_layer.{key}") for key in ("shift", "scale")
        }
        assert scaling["scale"].ravel().tolist() == pytest.approx([0.458, 0.448, 0.450])
    assert_same_arrays(back, weights)
    written_args = written["hyper_parameters"]["args"]
    assert [
        written_args[key]
        for key in ("downsample", "norm_type", "lr", "sequence_length", "sample_every_n_frames")
    ] == [
        args[key]
        for key in ("downsample", "norm_type", "lr", "sequence_length", "sample_every_n_frames")
    ]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"tokenizer__patch": (4, 4, 4)}, "official tokenizers have no patches"),
        ({}, "neither a tokenizer nor a transformer"),
    ],
)
def test_what_has_no_official_counterpart_is_refused(tmp_path, changes, words):
    if changes:
        meta = {"stage": "tokenizer", "config": to_dict(from_config_dict(tiny_config(**changes)))}
        with checkpoints.Checkpointer(
            tmp_path / "tokenizer" / "checkpoints", meta, keep_every=1
        ) as checkpointer:
            checkpointer.save(0, {"params": np.zeros(1, np.float32)}, {}, metric=None)
    with pytest.raises(UserError, match=words):
        convert_back(tmp_path, tmp_path / "back.ckpt")
    assert not (tmp_path / "back.ckpt").exists()
