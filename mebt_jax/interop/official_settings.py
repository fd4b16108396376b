"""What an official checkpoint says of its own settings, as fields of our config.

Sizes come from the tensors; what tensors cannot show, such as strides and the kinds of blocks, from
the hyper-parameters that the training program saved with them.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from mebt_jax.backbones.mebt.mebt_config import FLAVOURS
from mebt_jax.config import Config, default_config, from_config_dict
from mebt_jax.errors import UserError
from mebt_jax.interop.feature_weights import shape_of
from mebt_jax.interop.mebt_weights import KINDS

# Of every tokenizer that TATS and MeBT published. The one inside of a MeBT checkpoint comes without
# hyper-parameters, and tensors show no strides, but three levels of halving do fit these.
PUBLISHED_COMPRESSION = (4, 8, 8)
# Official `t_prior` (mebt/transformer.py:28) -> interval_schedule, interval_alpha, interval_beta.
INTERVALS = {
    "longest": ("longest", 0.0, 2.0),
    "uniform": ("uniform", 0.0, 2.0),
    "gaussian2": ("gaussian_renormalized", 30_000.0, 2.0),
    "gaussian100000_2": ("gaussian_renormalized", 100_000.0, 2.0),
}

Settings = dict[str, Any]  # such as {"tokenizer.hidden": 32}


def readable(read: Callable[..., Any]) -> Callable[..., Any]:
    """`read`, with what malformed hyper-parameters make it raise as one sentence."""

    @functools.wraps(read)
    def wrapped(*arguments: Any) -> Any:
        try:
            return read(*arguments)
        except (TypeError, ValueError, AttributeError, LookupError) as error:
            raise UserError(
                "The hyper-parameters or arrays of the checkpoint are not of the form that the "
                "official programs "
                f"save ({error}); give the file as it was published."
            ) from error

    return wrapped


@readable
def tokenizer_settings(
    arrays: Mapping[str, np.ndarray], hyper: Mapping[str, Any]
) -> tuple[Settings, list[str]]:
    """Fields of config.tokenizer and config.data for a VQGAN, and what had to be assumed, one
    sentence each.

    Raises:
        UserError: it pads in a way that ours does not, or nothing tells its strides.
    """
    args = hyper.get("args") or {}
    if args.get("padding_type", "replicate") != "replicate":
        raise UserError(
            f"The tokenizer pads by {args['padding_type']!r}; only 'replicate', the default, can "
            "be converted."
        )
    levels = len({name.split(".")[2] for name in arrays if name.startswith("encoder.conv_blocks.")})
    assumed = []
    compression = tuple(args.get("downsample", ()))
    if not compression:
        if 2**levels != max(PUBLISHED_COMPRESSION):
            raise UserError(
                f"The checkpoint has a tokenizer of {levels} levels but no hyper-parameters that "
                "tell its strides; "
                f"give the tokenizer's own checkpoint with --also."
            )
        compression = PUBLISHED_COMPRESSION
        assumed.append(
            f"compression {compression} is assumed, that of every published tokenizer; the "
            "checkpoint does not say"
        )
    codes, width = shape_of(arrays, "codebook.embeddings")
    stride = int(args.get("sample_every_n_frames", 1))
    settings = {
        "tokenizer.compression": tuple(int(factor) for factor in compression),
        "tokenizer.patch": (1, 1, 1),
        "tokenizer.causal": False,
        "tokenizer.quantizer": "ema",
        "tokenizer.hidden": shape_of(arrays, "encoder.conv_first.conv.weight")[0],
        "tokenizer.codebook_size": codes,
        "tokenizer.code_width": width,
        "tokenizer.norm": "batch" if "encoder.final_block.0.running_mean" in arrays else "group",
        "tokenizer.l1_weight": float(args.get("l1_weight", 4.0)),
        "tokenizer.restart_threshold": 0.0
        if args.get("no_random_restart")
        else float(args.get("restart_thres", 1.0)),
        "tokenizer.training.learning_rate": float(args.get("lr", 3e-4)),
        "data.frame_stride": stride,
    }
    if "sequence_length" in args:
        settings["data.frames"] = int(args["sequence_length"]) // stride
    if "resolution" in args:
        settings["data.resolution"] = int(args["resolution"])
    return settings, assumed


@readable
def transformer_settings(
    arrays: Mapping[str, np.ndarray], hyper: Mapping[str, Any], compression: tuple[int, int, int]
) -> tuple[Settings, list[str]]:
    """Fields of config.backbone, config.method and config.data for a MeBT on a tokenizer of
    this compression.

    Returns:
        The fields, and what had to be assumed, one sentence each.

    Raises:
        UserError: it has no hyper-parameters, is conditional, or its grid is not that of square
            frames.
    """
    model, mask = (
        hyper.get("transformer_config") or {},
        (hyper.get("mask_config") or {}).get("params") or {},
    )
    missing = [name for name in ("mode", "n_head") if name not in model] + ["shape"] * (
        "shape" not in mask
    )
    if missing:
        raise UserError(
            f"The MeBT checkpoint has no hyper-parameters {', '.join(missing)}, which its tensors "
            "cannot tell; "
            f"give the file that the training program saved, with its hyper_parameters."
        )
    layers = list(model["mode"])
    layers += ["maskgit"] * (int(model.get("n_layer", 0)) - len(layers))  # gpt.py:206
    unknown = sorted(set(layers) - KINDS.keys())
    if unknown:
        raise UserError(
            f"The MeBT checkpoint has layers of kind {', '.join(unknown)}, but the kinds are "
            f"{', '.join(KINDS)}."
        )
    _, width = shape_of(arrays, "tok_emb.weight")
    t, h, w = (int(size) for size in mask["shape"])
    if h * compression[1] != w * compression[2]:
        raise UserError(
            f"The MeBT checkpoint has a grid of {(t, h, w)} tokens, which with compression "
            f"{compression} is no "
            f"square frame; frames of other shapes have no config field."
        )
    settings = {
        "backbone.layers": tuple(KINDS[kind] for kind in layers),
        **{f"backbone.{name}": value for name, value in FLAVOURS["paper"].items()},
        "backbone.width": width,
        "backbone.heads": int(model["n_head"]),
        "backbone.num_latents": shape_of(arrays, "sos_emb")[-2],
        "backbone.embedding_dropout": float(model.get("embd_pdrop", 0.0)),
        "backbone.residual_dropout": float(model.get("resid_pdrop", 0.0)),
        "backbone.attention_dropout": float(model.get("attn_pdrop", 0.0)),
        "method.label_smoothing": float(model.get("label_smoothing", 0.0)),
        "data.frames": t * compression[0],
        "data.resolution": h * compression[1],
        "method.ratio_schedule": str(mask.get("schedule", "linear")),
    }
    for name, value in zip(("ratio_min", "ratio_max"), mask.get("t_range") or (0.0, 1.0)):
        settings[f"method.{name}"] = float(value)
    prior = str(model.get("t_prior", "longest"))
    assumed = (
        []
        if prior in INTERVALS
        else [
            f"an interval schedule of longest is assumed; the checkpoint's t_prior {prior!r} is "
            "none of "
            f"{', '.join(INTERVALS)}; set config.method.interval_schedule before training it "
            "further"
        ]
    )
    schedule, alpha, beta = INTERVALS.get(prior, INTERVALS["longest"])
    settings |= {"method.interval_schedule": schedule, "method.interval_beta": beta}
    settings |= {"method.interval_alpha": alpha} if alpha else {}
    budget = int(mask.get("budget", 0))
    settings["method.target_budget"] = budget if budget < t * h * w else 0
    return settings, assumed


def official_arguments(config: Config) -> dict[str, Any]:
    """The inverse of `tokenizer_settings`: `args` of the official VQGAN, as far as it needs them to
    be built.
    """
    tokenizer = config.tokenizer
    return {
        "embedding_dim": tokenizer.code_width,
        "n_codes": tokenizer.codebook_size,
        "n_hiddens": tokenizer.hidden,
        "downsample": tokenizer.compression,
        "norm_type": tokenizer.norm,
        "padding_type": "replicate",
        "image_channels": 3,
        "l1_weight": tokenizer.l1_weight,
        "lr": tokenizer.training.learning_rate,
        "no_random_restart": tokenizer.restart_threshold == 0,
        "restart_thres": tokenizer.restart_threshold or 1.0,
        "sequence_length": config.data.frames * config.data.frame_stride,
        "sample_every_n_frames": config.data.frame_stride,
        "resolution": config.data.resolution,
    }


def official_hyper_parameters(config: Config) -> dict[str, Any]:
    """The inverse of `transformer_settings`: hyper-parameters of the official
    Net2NetTransformer.
    """
    model, method = config.backbone, config.method
    official_kinds = {ours: official for official, ours in KINDS.items()}
    intervals = {(schedule, alpha): name for name, (schedule, alpha, _) in INTERVALS.items()}
    tokens = int(np.prod(config.grid))
    schedule = method.interval_schedule
    # The paper's "gaussian_clipped" has no official counterpart; the official Gaussian of the same
    # growth is the nearest.
    growing = (
        ("gaussian_renormalized", method.interval_alpha)
        if schedule.startswith("gaussian")
        else (schedule, 0.0)
    )
    return {
        "transformer_config": {
            "unconditional": True,
            "vtokens": False,
            "vtokens_pos": False,
            "class_cond_dim": None,
            "vocab_size": config.tokenizer.codebook_size,
            "first_stage_vocab_size": config.tokenizer.codebook_size,
            "block_size": tokens,
            "n_layer": len(model.layers),
            "n_head": model.heads,
            "n_embd": model.width,
            "sos_emb": model.num_latents,
            "mode": [official_kinds[kind] for kind in model.layers],
            "n_unmasked": 0,
            "vis_epoch": 100,
            "avg_loss": True,
            "embd_pdrop": model.embedding_dropout,
            "resid_pdrop": model.residual_dropout,
            "attn_pdrop": model.attention_dropout,
            "label_smoothing": method.label_smoothing,
            "t_prior": intervals.get(growing, "longest"),
        },
        "mask_config": {
            "params": {
                "shape": config.grid,
                "schedule": method.ratio_schedule,
                "t_range": (method.ratio_min, method.ratio_max),
                "budget": method.target_budget or tokens,
                "max_token": tokens,
                "method": "mlm",
            }
        },
    }


def config_with(settings: Settings) -> Config:
    """The default config with these fields."""
    values = default_config()
    values.update_from_flattened_dict(settings)
    return from_config_dict(values)


def config_file(settings: Settings) -> str:
    """Text of a file for `--config=` that gives the default config with these fields."""
    lines = [
        '"""What the official checkpoint tells of its settings."""',
        "",
        "from mebt_jax.config import default_config",
        "",
        "",
        "def get_config():",
        "    config = default_config()",
    ]
    lines += [f"    config.{name} = {value!r}" for name, value in settings.items()]
    return "\n".join([*lines, "    return config", ""])
