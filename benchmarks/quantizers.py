"""Trains the four quantizers with the same number of codes on the same clips, and prints the
quality and the code usage of each.

    python -m benchmarks.quantizers [--folder DIR] [--steps N] [--batch B] [--kinds ema fsq]
                                    [--rate R] [--entropy-weight W] [--seeds 0 1 2]

Trains on the moving shapes of configs/demo.py (512 codes), or with --folder on real clips by
configs/folder.py (4096 codes). With the same seed all kinds see the same batches in the same order;
another seed draws other weights, codes and batches. "Spread" is the standard deviation of a step's
PSNR over the last third of the steps. The part of it that comes from the batches is the same for
all kinds; the rest is instability of the training.
"""

import argparse
import itertools
import tempfile
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from configs import demo, folder
from mebt_jax.config import from_config_dict
from mebt_jax.runtime import telemetry
from mebt_jax.stages import data, tokenizer

# Fields of each kind for 512 codes, then for 4096. The fsq paper advises at least 5 levels.
KINDS = {
    "ema": ({}, {}),
    "gradient": ({}, {}),
    "fsq": ({"levels": (8, 8, 8), "code_width": 3}, {"levels": (8, 8, 8, 8), "code_width": 4}),
    "lfq": ({"code_width": 9}, {"code_width": 12}),
}


def settings(options: argparse.Namespace, kind: str, seed: int, workdir: Path) -> ConfigDict:
    config = folder.get_config() if options.folder else demo.get_config()
    config.runtime.seed = config.data.seed = seed
    config.data.path = options.folder
    config.data.prepared_dir = str(workdir / "records")
    config.tokenizer.quantizer = kind
    config.tokenizer.update(KINDS[kind][bool(options.folder)])
    training = config.tokenizer.training
    training.steps = options.steps or training.steps
    training.batch_size = options.batch or training.batch_size
    training.learning_rate = options.rate or training.learning_rate
    config.tokenizer.entropy_weight = options.entropy_weight or config.tokenizer.entropy_weight
    training.log_every = 1
    training.validate_every = training.checkpoint_every = training.steps
    return config


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", default="", help="videos to train on")
    parser.add_argument("--steps", type=int, default=0, help="of training; 0: as the config says")
    parser.add_argument(
        "--batch", type=int, default=0, help="clips per step; 0: as the config says"
    )
    parser.add_argument(
        "--rate", type=float, default=0.0, help="learning rate; 0: as the config says"
    )
    parser.add_argument(
        "--entropy-weight", type=float, default=0.0, help="of lfq; 0: as the config says"
    )
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    options = parser.parse_args()

    print(
        "kind      seed  steps x clips  held-out dB  training dB  spread dB   use  perplexity  "
        "dead",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as name:
        for kind, seed in itertools.product(options.kinds, options.seeds):
            workdir = Path(name) / f"{kind}_{seed}"
            config = from_config_dict(settings(options, kind, seed, Path(name)))
            data.run(config, workdir)
            tokenizer.run(config, workdir)
            records = telemetry.read_metrics(workdir / "tokenizer" / "metrics.jsonl")
            # [steps], dB
            curve = np.array([record["train/psnr"] for record in records if "train/psnr" in record])
            last = curve[-(len(curve) // 3) :]
            value = {
                name.removeprefix("validation/"): metric
                for record in records
                for name, metric in record.items()
                if name.startswith("validation/")
            }
            training = config.tokenizer.training
            print(
                f"{kind:10s}{seed:4d}{training.steps:7d} x "
                f"{training.batch_size:5d}{value['psnr']:13.2f}{last.mean():13.2f}"
                f"{last.std():11.3f}{100 * value['usage']:5.0f}%{value['perplexity']:12.1f}"
                f"{100 * value['dead']:5.1f}%",
                flush=True,
            )


if __name__ == "__main__":
    main()
