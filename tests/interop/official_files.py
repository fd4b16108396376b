"""Contents of the files that the official programs save, with the weights of the test vectors."""

import importlib.util

import numpy as np
from official_weights import load_vectors, state_dict_of

from mebt_jax.config import from_config_dict

VQGAN = load_vectors("vqgan_tiny")
VQGAN_ARGS = {
    "embedding_dim": 8,
    "n_codes": 32,
    "n_hiddens": 16,
    "downsample": [2, 4, 4],
    "lr": 1e-4,
    "l1_weight": 4.0,
    "norm_type": "group",
    "padding_type": "replicate",
    "restart_thres": 1.0,
    "no_random_restart": True,
    "sequence_length": 8,
    "sample_every_n_frames": 2,
    "resolution": 16,
}
TRANSFORMER = load_vectors("transformer_tiny")
TRANSFORMER_HYPER = {
    "transformer_config": {
        "n_layer": 6,
        "n_head": 4,
        "attn_pdrop": 0.1,
        "t_prior": "gaussian2",
        "mode": ["latent_enc", "latent_self", "latent_enc", "latent_dec", "lt2l", "latent_dec"],
    },
    "mask_config": {
        "params": {"shape": [2, 4, 4], "schedule": "linear", "t_range": [0.0, 0.9], "budget": 20}
    },
}


def tokenizer_weights(codes=32):
    weights = state_dict_of(VQGAN)
    return weights | {
        name: np.resize(weights[name], (codes, *weights[name].shape[1:]))
        for name in ("codebook.embeddings", "codebook.N", "codebook.z_avg")
    }


def config_of(folder, **changes):
    spec = importlib.util.spec_from_file_location("converted_config", folder / "config.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    values = module.get_config()
    values.update_from_flattened_dict(
        {name.replace("__", "."): value for name, value in changes.items()}
    )
    return from_config_dict(values)
