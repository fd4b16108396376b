"""Official files, and the folder that one of them was converted to, for all tests of the
converter.
"""

import pytest
from official_files import TRANSFORMER, TRANSFORMER_HYPER, VQGAN_ARGS, tokenizer_weights
from official_weights import state_dict_of

from mebt_jax.interop.convert import convert
from mebt_jax.interop.torch_files import write_torch_file


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Official files of a tokenizer, and of a transformer with and without it inside."""
    folder = tmp_path_factory.mktemp("official")
    weights, tokenizer = state_dict_of(TRANSFORMER), tokenizer_weights(codes=64)
    inside = weights | {f"first_stage_model.{name}": array for name, array in tokenizer.items()}
    for name, arrays, hyper in [
        ("vqgan", tokenizer, {"args": VQGAN_ARGS | {"n_codes": 64}}),
        ("mebt", inside, TRANSFORMER_HYPER),
        ("alone", weights, TRANSFORMER_HYPER),
    ]:
        write_torch_file(
            folder / f"{name}.ckpt",
            {"state_dict": arrays, "hyper_parameters": hyper, "global_step": 77},
        )
    return folder


@pytest.fixture(scope="session")
def converted(files):
    """A MeBT converted with its tokenizer, whose strides are only in the file of the tokenizer."""
    convert(files / "mebt.ckpt", files / "converted", also=files / "vqgan.ckpt")
    return files / "converted"
