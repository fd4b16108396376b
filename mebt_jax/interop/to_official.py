"""Our tokenizer and transformer as a checkpoint whose `state_dict` the official modules load with
`strict=True`.
"""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from mebt_jax.config import Config, from_config_dict, to_dict
from mebt_jax.errors import UserError
from mebt_jax.interop import official_settings as settings_lib
from mebt_jax.interop import weight_folders
from mebt_jax.interop.feature_weights import LPIPS_SCALING, lpips_part
from mebt_jax.interop.mebt_weights import TOKENIZER_PREFIX, transformer_part
from mebt_jax.interop.names import leaves_of, to_official
from mebt_jax.interop.tokenizer_weights import (
    CODEBOOK_NAMES,
    DISCRIMINATORS,
    PERCEPTUAL_PREFIX,
    abstract_tokenizer,
    discriminator_part,
    tokenizer_parts,
)
from mebt_jax.interop.torch_files import write_torch_file
from mebt_jax.runtime import checkpoints
from mebt_jax.runtime.telemetry import say
from mebt_jax.tokenizer.autoencoder import tokenizer_hash
from mebt_jax.tokenizer.quantizers import Codebook

# Of the discriminators that the official program builds by default, for tokenizers that were
# trained without.
DISCRIMINATOR_SIZES = {"channels": 64, "layers": 3}

Arrays = dict[str, np.ndarray]


def convert_back(path: Path, out: Path, also: Path | None = None) -> None:
    """Writes the transformer in `path` with its tokenizer as a MeBT checkpoint, or else the
    tokenizer as a VQGAN.

    Args:
        path: a workdir, or a folder of the converter; averaged weights are taken where there are
            any.
        out: the new file, which `torch.load` reads.
        also: a folder of the converter with LPIPS, which the official VQGAN holds too, if there is
            none in `path`.

    Raises:
        UserError: there is neither of them in `path`, they do something that no official module
            does, or they do not belong together.
    """
    transformer, tokenizer = saved(path, "transformer"), saved(path, "tokenizer")
    if transformer is None and tokenizer is None:
        raise UserError(
            f"There is neither a tokenizer nor a transformer in {path}; give a workdir, or a "
            "folder of the "
            f"converter."
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
                f"{transformer.meta['tokenizer']}, "
                f"but the tokenizer there is {content_hash}; put the two that belong together into "
                "one folder."
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
    say(
        f"Written to {out}: the state_dict of {'a VQGAN' if transformer is None else 'a MeBT'}, "
        f"{len(arrays)} arrays, "
        f"{sum(array.size for array in arrays.values()):,} numbers."
    )


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
        """ "params", averaged where they were averaged, and more fields."""
        weights = "ema" if self.meta["config"][stage]["training"]["ema_decay"] > 0 else "params"
        found = weight_folders.read_back(self.folder, {weights: abstract_params, **more})
        return {"params": found.pop(weights), **found}


def saved(path: Path, stage: str) -> Saved | None:
    """None if `path` holds no checkpoint of that stage."""
    folder = next(
        (
            entry
            for entry in (path / stage / "checkpoints", path / "checkpoints", path)
            if checkpoints.has_checkpoint(entry)
        ),
        None,
    )
    if folder is None:
        return None
    meta = checkpoints.read_meta(folder)
    return Saved(folder, meta, config_of(meta)) if meta["stage"] == stage else None


def config_of(meta: dict[str, Any]) -> Config:
    """The config that a checkpoint was saved with; fields that it did not have yet are those of the
    base config.
    """

    def updated(old: Any, new: Any) -> Any:
        return (
            {name: updated(old[name], new.get(name, old[name])) for name in old}
            if isinstance(old, dict)
            else new
        )

    return from_config_dict(updated(to_dict(settings_lib.config_with({})), meta["config"]))


def transformer_arrays(transformer: Saved) -> Arrays:
    config = transformer.config
    state, part = transformer_part(
        config.transformer, config.tokenizer.codes, int(np.prod(config.grid))
    )
    return to_official(leaves_of(transformer.read("transformer", state)["params"]), part)


def vqgan_arrays(tokenizer: Saved, path: Path, also: Path | None) -> tuple[Arrays, str]:
    """The whole state dict of a VQGAN, and the content hash of the tokenizer in it."""
    config = tokenizer.config.tokenizer
    parts = tokenizer_parts(config)
    shapes = {path[0]: shape for path, shape in parts["codebook"].shapes.items()}
    codebook = Codebook(
        **{field: np.broadcast_to(np.float32(0), shapes[field]) for field in CODEBOOK_NAMES}
    )
    found = tokenizer.read("tokenizer", abstract_tokenizer(config), statistics=codebook)
    params, codebook = found["params"], found["statistics"]
    arrays = to_official(leaves_of(params), parts["tokenizer"])
    arrays |= to_official(
        {(field,): getattr(codebook, field) for field in CODEBOOK_NAMES}, parts["codebook"]
    )
    for name in DISCRIMINATORS:
        arrays |= discriminator_arrays(name, path)
    arrays |= perceptual_arrays([path] + ([also] if also else []))
    counters = {
        name.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64)
        for name in arrays
        if name.endswith("running_mean")
    }
    return arrays | counters, tokenizer_hash(params, codebook)


def discriminator_arrays(name: str, path: Path) -> Arrays:
    """Of the folder, or new ones where the tokenizer was trained without: they take no part in
    encoding and decoding.
    """
    folder = path / name / "checkpoints"
    if checkpoints.has_checkpoint(folder):
        sizes = checkpoints.read_meta(folder)["sizes"]
        _, state = weight_folders.load_network(path, name)
    else:
        sizes = DISCRIMINATOR_SIZES
        say(
            f"  no {name} in {path}: a new one of the official size is written, which knows "
            "nothing yet"
        )
        state = nnx.state(weight_folders.NETWORKS[name](**sizes, rngs=nnx.Rngs(0)))
    return to_official(leaves_of(state), discriminator_part(name, **sizes)[1])


def perceptual_arrays(paths: list[Path]) -> Arrays:
    """LPIPS of the first folder that holds it; none of them may."""
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
