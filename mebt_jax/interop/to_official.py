"""Our tokenizer and transformer as a checkpoint whose `state_dict` the official modules load with
`strict=True`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from mebt_jax.config import Config, from_saved
from mebt_jax.errors import UserError
from mebt_jax.interop import official_settings as settings_lib
from mebt_jax.interop import weight_folders
from mebt_jax.interop.feature_weights import LPIPS_SCALING, lpips_part
from mebt_jax.interop.mebt_weights import TOKENIZER_PREFIX, transformer_part
from mebt_jax.interop.names import leaves_of, to_official
from mebt_jax.interop.tokenizer_weights import (
    DISCRIMINATORS,
    PERCEPTUAL_PREFIX,
    abstract_tokenizer,
    discriminator_part,
    tokenizer_part,
)
from mebt_jax.interop.torch_files import write_torch_file
from mebt_jax.methods import earlier_priors
from mebt_jax.runtime import checkpoints
from mebt_jax.runtime.telemetry import say
from mebt_jax.tokenizer import earlier_tokenizers
from mebt_jax.tokenizer.autoencoder import tokenizer_hash

# Sizes that the official program gives discriminators by default, for tokenizers that were trained
# without any.
DISCRIMINATOR_SIZES = {"channels": 64, "layers": 3}

Arrays = dict[str, np.ndarray]

EARLIER = {"tokenizer": earlier_tokenizers, "prior": earlier_priors}


def convert_back(path: Path, out: Path, also: Path | None = None) -> None:
    """Writes the transformer in `path` with its tokenizer as a MeBT checkpoint. If there is no
    transformer, writes the tokenizer as a VQGAN.

    Args:
        path: a workdir, or a folder of the converter; averaged weights are used if there are any.
        out: the new file, which `torch.load` reads.
        also: a folder of the converter with LPIPS, which is part of the official VQGAN, if there
            is none in `path`.

    Raises:
        UserError: there is neither of them in `path`, no official module computes the same, or
            the transformer was trained with another tokenizer.
    """
    transformer, tokenizer = saved(path, "prior"), saved(path, "tokenizer")
    if transformer is None and tokenizer is None:
        raise UserError(
            f"There is neither a tokenizer nor a transformer in {path}; give a workdir, or a "
            "folder of the converter."
        )
    if transformer is not None and tokenizer is None and transformer.config.tokenizer.checkpoint:
        tokenizer = saved(Path(transformer.config.tokenizer.checkpoint), "tokenizer")

    vqgan, content_hash = vqgan_arrays(tokenizer, path, also) if tokenizer else ({}, None)
    if transformer is None:
        args = settings_lib.official_arguments(tokenizer.config)
        args["disc_channels"] = len(vqgan["image_discriminator.model0.0.weight"])
        args["disc_layers"] = (
            len({name.split(".")[1] for name in vqgan if name.startswith("image_discriminator.")})
            - 2
        )
        arrays, hyper, step = vqgan, {"args": args}, tokenizer.step
    else:
        if tokenizer and transformer.meta["tokenizer"] not in (None, content_hash):
            raise UserError(
                f"The transformer in {path} was trained on the codes of tokenizer "
                f"{transformer.meta['tokenizer']}, but the tokenizer there is {content_hash}; put "
                "the tokenizer of that training into the folder."
            )
        arrays = transformer_arrays(transformer) | {
            TOKENIZER_PREFIX + name: array for name, array in vqgan.items()
        }
        hyper, step = settings_lib.official_hyper_parameters(transformer.config), transformer.step
        if not tokenizer:
            say(
                "  no tokenizer beside the transformer: the official module loads this with "
                "vtokens=True"
            )
    write_torch_file(
        out, {"state_dict": arrays, "hyper_parameters": hyper, "global_step": step, "epoch": 0}
    )
    title = "a VQGAN" if transformer is None else "a MeBT"
    size = sum(array.size for array in arrays.values())
    say(f"Written to {out}: the state_dict of {title}, {len(arrays)} arrays, {size:,} numbers.")


@dataclasses.dataclass(frozen=True)
class Saved:
    """The latest checkpoint of a stage."""

    folder: Path
    meta: dict[str, Any]
    config: Config

    @property
    def step(self) -> int:
        return self.meta["step"]

    def read(self, stage: str, abstract_params: nnx.State, **more: Any) -> dict[str, Any]:
        """{"params": the averaged weights if training kept an average, else the weights, and the
        fields `more`}.
        """
        weights = "ema" if getattr(self.config, stage).training.ema_decay > 0 else "params"
        earlier_path = EARLIER[stage].path_in(self.meta)
        arrays = weight_folders.read_back(
            self.folder, {weights: abstract_params, **more}, earlier_path
        )
        return {"params": arrays.pop(weights), **arrays}


def saved(path: Path, stage: str) -> Saved | None:
    """The latest checkpoint of a stage in `path`; None if there is none."""
    folder = checkpoints.find(path, stage)
    if folder is None:
        return None
    meta = checkpoints.read_meta(folder)
    return (
        Saved(folder, meta, from_saved(meta["config"], folder)) if meta["stage"] == stage else None
    )


def transformer_arrays(transformer: Saved) -> Arrays:
    config = transformer.config
    state, part = transformer_part(
        config.backbone, config.tokenizer.codebook_size, int(np.prod(config.grid))
    )
    return to_official(leaves_of(transformer.read("prior", state)["params"]), part)


def vqgan_arrays(tokenizer: Saved, path: Path, also: Path | None) -> tuple[Arrays, str]:
    """The whole state dict of a VQGAN, and the content hash of the tokenizer in it."""
    config = tokenizer.config.tokenizer
    part = tokenizer_part(config)
    params, model_state = nnx.split_state(abstract_tokenizer(config), nnx.Param, ...)
    found = tokenizer.read("tokenizer", params, model_state=model_state)
    variables = nnx.merge_state(found["params"], found["model_state"])
    arrays = to_official(leaves_of(variables), part)
    for name in DISCRIMINATORS:
        arrays |= discriminator_arrays(name, path)
    arrays |= perceptual_arrays([path] + ([also] if also else []))
    counters = {
        name.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64)
        for name in arrays
        if name.endswith("running_mean")
    }
    return arrays | counters, tokenizer_hash(variables)


def discriminator_arrays(name: str, path: Path) -> Arrays:
    """Weights of a discriminator in the folder; new ones if the tokenizer was trained without it,
    since encoding and decoding do not use it.
    """
    folder = path / name / "checkpoints"
    if checkpoints.has_checkpoint(folder):
        sizes = checkpoints.read_meta(folder)["sizes"]
        _, state = weight_folders.load_network(path, name)
    else:
        sizes = DISCRIMINATOR_SIZES
        say(f"  no {name} in {path}: an untrained one of the official size is written")
        state = nnx.state(weight_folders.NETWORKS[name](**sizes, rngs=nnx.Rngs(0)))
    return to_official(leaves_of(state), discriminator_part(name, **sizes)[1])


def perceptual_arrays(paths: list[Path]) -> Arrays:
    """Weights of LPIPS from the first folder that has them; {} if none has."""
    path = next(
        (path for path in paths if checkpoints.has_checkpoint(path / "lpips" / "checkpoints")), None
    )
    if path is None:
        say(
            "  no LPIPS: the official VQGAN loads this with strict=False, or convert LPIPS and "
            "give its folder with --also"
        )
        return {}
    _, state = weight_folders.load_network(path, "lpips")
    arrays = to_official(leaves_of(state), lpips_part()[1]) | LPIPS_SCALING
    return {PERCEPTUAL_PREFIX + name: array for name, array in arrays.items()}
