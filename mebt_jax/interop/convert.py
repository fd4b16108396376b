"""Converts official weights to folders that the stages and metrics load:

    python -m mebt_jax.interop.convert CHECKPOINT --out DIR [--also FILE]
    python -m mebt_jax.interop.convert DIR --out FILE --to-official

CHECKPOINT is recognised by the names in it: a TATS VQGAN or a MeBT `.ckpt`, I3D `.pt`, LPIPS `.pth`
or C3D `.npz`. Every parameter in it must be used exactly once; if some do not fit, all of these are
listed and nothing is written. The output is read back and compared bit for bit. docs/interop.md
says where the files come from.
"""

import argparse
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from mebt_jax.errors import UserError
from mebt_jax.interop import feature_weights, weight_folders
from mebt_jax.interop import official_settings as settings_lib
from mebt_jax.interop.mebt_weights import TOKENIZER_PREFIX, transformer_from_official
from mebt_jax.interop.official_settings import Settings
from mebt_jax.interop.to_official import convert_back
from mebt_jax.interop.tokenizer_weights import (
    DISCRIMINATORS,
    PERCEPTUAL_PREFIX,
    discriminator_from_official,
    tokenizer_from_official,
)
from mebt_jax.interop.torch_files import read_torch_file
from mebt_jax.methods import earlier_priors
from mebt_jax.runtime.telemetry import say, write_parameter_overview
from mebt_jax.tokenizer import earlier_tokenizers
from mebt_jax.tokenizer.autoencoder import tokenizer_hash

# The name of an array that only this kind of file has; the first match decides.
SIGNATURES = {
    "mebt": "tok_emb.weight",
    "vqgan": "codebook.embeddings",
    "i3d": "logits.conv3d.weight",
    "c3d": "conv1a/W",
    "lpips": "lin0.model.1.weight",
    "vgg": "features.0.weight",
}
TITLES = {
    "mebt": "a MeBT transformer",
    "vqgan": "a TATS VQGAN",
    "i3d": "an I3D",
    "c3d": "a C3D",
    "lpips": "LPIPS weights",
    "vgg": "a VGG16",
}


class Source(NamedTuple):
    """One official file."""

    path: Path
    kind: str  # a key of SIGNATURES
    arrays: dict[str, np.ndarray]
    hyper: dict[str, Any]
    step: int


class Converted(NamedTuple):
    """One network that is ready to be written."""

    name: str
    state: nnx.State
    save: Callable[[Path], None]  # writes it below a folder


def convert(path: Path, out: Path, also: Path | None = None) -> None:
    """Converts `path`, with the file `also` if one is not enough, to the new folder `out`.

    Raises:
        UserError: a file is damaged, unsafe or not recognised, parameters do not fit, or `out`
            exists already; then nothing is written.
    """
    if out.exists():
        raise UserError(f"{out} is there already; choose another --out or remove it.")
    source = read_source(path)
    say(
        f"{path}: {TITLES[source.kind]}, {len(source.arrays)} arrays, "
        f"{sum(array.size for array in source.arrays.values()):,} numbers"
    )
    networks, settings = CONVERSIONS[source.kind](source, also, out)

    partial = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        for network in networks:
            network.save(partial)
            count = write_parameter_overview(
                network.state, partial / network.name / "parameters.txt"
            )
            say(
                f"  {network.name}: {count:,} parameters, every shape in "
                f"{out / network.name / 'parameters.txt'}"
            )
        if settings:
            (partial / "config.py").write_text(settings_lib.config_file(settings))
        os.replace(partial, out)
    except OSError as error:
        raise UserError(
            f"Could not write {out} ({error.strerror}); free some space or choose another --out."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    for name, value in settings.items():
        say(f"  config.{name} = {value!r}")
    say(
        f"Written to {out} and read back bit for bit"
        + (f"; --config={out / 'config.py'} uses it." if settings else ".")
    )


def read_source(path: Path) -> Source:
    """Reads a file and recognises its kind by the names in it."""
    if path.suffix == ".npz":
        data: Any = read_npz(path)
    else:
        data = read_torch_file(path)
    data = data if isinstance(data, dict) else {}
    arrays = data["state_dict"] if isinstance(data.get("state_dict"), dict) else data
    arrays = {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}
    kind = next((kind for kind, name in SIGNATURES.items() if name in arrays), None)
    if kind is None:
        shown = ", ".join(list(arrays)[:3]) or "no arrays"
        raise UserError(
            f"{path} is none of the official checkpoints that can be converted (it holds {shown}); "
            "docs/interop.md lists them."
        )
    hyper = data.get("hyper_parameters")
    step = data.get("global_step")
    return Source(
        path,
        kind,
        arrays,
        hyper if isinstance(hyper, dict) else {},
        step if isinstance(step, int) else 0,
    )


def read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(
            f"Could not read {path} ({str(error).splitlines()[0][:200]}); fetch it again."
        ) from error


# ---- kinds of files ------------------------------------------------------------------------------


def convert_tokenizer(
    source: Source, also: Path | None, out: Path
) -> tuple[list[Converted], Settings]:
    """A VQGAN: the tokenizer, and the discriminators and LPIPS of its training if they are
    inside.
    """
    if also is not None:
        raise UserError(f"{source.path} needs no second file; leave out --also.")
    networks, settings, _ = tokenizer_networks(source.arrays, source.hyper, source.step, out)
    return networks, {"name": config_name(source.path)} | settings


def convert_transformer(
    source: Source, also: Path | None, out: Path
) -> tuple[list[Converted], Settings]:
    """A MeBT, with the tokenizer inside of it, or that of the file `also`, or without any."""
    inside = {
        name.removeprefix(TOKENIZER_PREFIX): array
        for name, array in source.arrays.items()
        if name.startswith(TOKENIZER_PREFIX)
    }
    other = expect(also, "vqgan") if also is not None else None
    hyper = other.hyper if other else {}
    networks, settings, content_hash = [], {}, None
    if inside or other:
        networks, settings, content_hash = tokenizer_networks(
            inside or other.arrays, hyper, source.step, out
        )
        if inside and other and tokenizer_networks(other.arrays, hyper, 0, out)[2] != content_hash:
            raise UserError(
                f"The tokenizer inside of {source.path} is another than that of {also}; give the "
                "one that this transformer was trained on, or leave out --also."
            )
    else:
        say(
            "  no tokenizer inside: give the one that this transformer was trained on with --also, "
            "or as config.tokenizer.checkpoint later, where it cannot be checked; its compression "
            f"is taken to be {settings_lib.PUBLISHED_COMPRESSION}"
        )
    compression = settings.get("tokenizer.compression", settings_lib.PUBLISHED_COMPRESSION)
    ours, assumed = settings_lib.transformer_settings(source.arrays, source.hyper, compression)
    for sentence in assumed:
        say(f"  {sentence}")
    codes = feature_weights.shape_of(source.arrays, "tok_emb.weight")[0]
    if settings.setdefault("tokenizer.codebook_size", codes) != codes:
        raise UserError(
            f"The MeBT checkpoint has {codes} codes, but its tokenizer has "
            f"{settings['tokenizer.codebook_size']}; conditional models and other tokenizers "
            "cannot be converted."
        )
    settings = (
        {"name": config_name(source.path)}
        | settings
        | ours
        | {"prior.checkpoint": str(out.resolve()), "prior.training.steps": 0}
    )
    config = settings_lib.config_with(settings)
    params = transformer_from_official(source.arrays, config.backbone)
    positions = params["position_embedding"][...].shape[0]
    if positions != np.prod(config.grid):
        raise UserError(
            f"The MeBT checkpoint has {positions} positions, but its hyper-parameters describe a "
            f"grid of {config.grid}; it is not whole."
        )

    def save(path: Path) -> None:
        weight_folders.save_stage(
            path,
            "prior",
            config,
            {"params": params},
            step=source.step,
            tokenizer=content_hash,
            layout=earlier_priors.LAYOUT,
        )

    return [*networks, Converted("prior", params, save)], settings


def convert_i3d(source: Source, also: Path | None, out: Path) -> tuple[list[Converted], Settings]:
    state = feature_weights.i3d_from_official(source.arrays)
    return [feature_network("i3d", state, {"classes": state["logits"]["bias"][...].size})], {}


def convert_c3d(source: Source, also: Path | None, out: Path) -> tuple[list[Converted], Settings]:
    """C3D, with the mean of the pixels from the file `also`."""
    mean = read_npz(also).get("mean") if also is not None else None
    if mean is None:
        raise UserError(
            f"{source.path} needs the mean of the pixels; give the mean2.npz that belongs to it "
            "with --also."
        )
    state = feature_weights.c3d_from_official(source.arrays, mean)
    sizes = {
        "width": state["convolutions"]["conv1a"]["bias"][...].size,
        "hidden": state["fc7"]["bias"][...].size,
        "classes": state["logits"]["bias"][...].size,
    }
    return [feature_network("c3d", state, sizes)], {}


def convert_lpips(source: Source, also: Path | None, out: Path) -> tuple[list[Converted], Settings]:
    """LPIPS in one file, or its linear weights and VGG16 in two files, in either order."""
    arrays = source.arrays
    if source.kind == "vgg" or not any(name.startswith("net.") for name in arrays):
        needed = "lpips" if source.kind == "vgg" else "vgg"
        if also is None:
            raise UserError(
                f"{source.path} is one half of LPIPS; give the other, {TITLES[needed]}, with "
                "--also."
            )
        other = expect(also, needed)
        linear, vgg = (other.arrays, arrays) if needed == "lpips" else (arrays, other.arrays)
        arrays = feature_weights.join_lpips(linear, vgg)
    return [feature_network("lpips", feature_weights.lpips_from_official(arrays), {})], {}


CONVERSIONS = {
    "mebt": convert_transformer,
    "vqgan": convert_tokenizer,
    "i3d": convert_i3d,
    "c3d": convert_c3d,
    "lpips": convert_lpips,
    "vgg": convert_lpips,
}


def tokenizer_networks(
    arrays: Mapping[str, np.ndarray], hyper: Mapping[str, Any], step: int, out: Path
) -> tuple[list[Converted], Settings, str]:
    """All networks in the state dict of a VQGAN, its settings, and the content hash of the
    tokenizer.

    Raises:
        UserError: lists what does not fit in each of the networks.
    """
    settings, assumed = settings_lib.tokenizer_settings(arrays, hyper)
    settings["tokenizer.checkpoint"] = str(out.resolve())
    for sentence in assumed:
        say(f"  {sentence}")
    config = settings_lib.config_with(settings)
    networks, problems = [], []
    try:
        variables = tokenizer_from_official(arrays, config.tokenizer)
        params, model_state = nnx.split_state(variables, nnx.Param, ...)
        parts = {"params": params, "model_state": model_state}
        networks.append(
            Converted(
                "tokenizer",
                variables,
                lambda path: weight_folders.save_stage(
                    path,
                    "tokenizer",
                    config,
                    parts,
                    step=step,
                    layout=earlier_tokenizers.LAYOUT,
                ),
            )
        )
    except UserError as error:
        problems.append(str(error))
    for name in DISCRIMINATORS:
        try:
            converted = discriminator_from_official(arrays, name)
            networks += [feature_network(name, *converted)] if converted else []
        except UserError as error:
            problems.append(str(error))
    perceptual = {
        name.removeprefix(PERCEPTUAL_PREFIX): array
        for name, array in arrays.items()
        if name.startswith(PERCEPTUAL_PREFIX)
    }
    try:
        if perceptual:
            state = feature_weights.lpips_from_official(perceptual)
            networks.append(feature_network("lpips", state, {}))
    except UserError as error:
        problems.append(str(error))
    if problems:
        raise UserError(" ".join(problems))
    return networks, settings, tokenizer_hash(variables)


def feature_network(name: str, state: nnx.State, sizes: dict[str, int]) -> Converted:
    return Converted(
        name, state, lambda path: weight_folders.save_network(path, name, state, sizes)
    )


def expect(path: Path, kind: str) -> Source:
    source = read_source(path)
    if source.kind != kind:
        raise UserError(
            f"{path} is {TITLES[source.kind]}, but --also should be {TITLES[kind]} here."
        )
    return source


def config_name(path: Path) -> str:
    """The name of the config, and so of its default work directory."""
    return re.sub(r"[^a-z0-9]+", "_", path.stem.lower()).strip("_") or "converted"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m mebt_jax.interop.convert", description="Converts official weights."
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        help="TATS VQGAN or MeBT .ckpt, I3D .pt, LPIPS or VGG16 .pth, C3D .npz",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="new folder for the converted weights"
    )
    parser.add_argument(
        "--also",
        type=Path,
        help="second file: MeBT's VQGAN, the other half of LPIPS, or C3D's mean2.npz",
    )
    parser.add_argument(
        "--to-official",
        action="store_true",
        help="the other way: a workdir or converted folder to a file",
    )
    given = parser.parse_args(arguments)
    jax.config.update("jax_platforms", "cpu")  # an accelerator would not make this faster
    try:
        (convert_back if given.to_official else convert)(given.checkpoint, given.out, given.also)
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
