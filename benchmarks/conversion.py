"""Time and peak memory of converting a full-size official checkpoint and of writing it back,
against copying the file.

    python -m benchmarks.conversion

The checkpoint has random weights: MeBT of 128 frames with TATS's tokenizer, its discriminators and
LPIPS inside. Peak memory includes the resident pages of the mapped file, which the system may drop
at any time.
"""

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from mebt_jax.config import Config, default_config, from_config_dict
from mebt_jax.interop.feature_weights import lpips_part
from mebt_jax.interop.mebt_weights import TOKENIZER_PREFIX, transformer_part
from mebt_jax.interop.official_settings import official_hyper_parameters
from mebt_jax.interop.tokenizer_weights import (
    DISCRIMINATORS,
    PERCEPTUAL_PREFIX,
    discriminator_part,
    tokenizer_part,
)
from mebt_jax.interop.torch_files import write_torch_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--folder",
        type=Path,
        help="folder for the files, of three times the size of the checkpoint; default: temporary",
    )
    with tempfile.TemporaryDirectory(dir=parser.parse_args().folder) as folder:
        measure(Path(folder))


def measure(folder: Path) -> None:
    source, converted, back = folder / "mebt.ckpt", folder / "converted", folder / "back.ckpt"
    arrays = official_arrays(from_config_dict(default_config()))
    write_torch_file(source, {"state_dict": arrays[0], "hyper_parameters": arrays[1]})
    del arrays
    size = source.stat().st_size
    start = time.perf_counter()
    shutil.copyfile(source, folder / "copy")
    copying = time.perf_counter() - start
    (folder / "copy").unlink()
    print(f"checkpoint {size / 1e9:.2f} GB, copied in {copying:.1f} s")
    commands = {
        "convert": [source, "--out", converted],
        "to-official": [converted, "--out", back, "--to-official"],
    }
    for name, arguments in commands.items():
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        start = time.perf_counter()
        command = [sys.executable, "-m", "mebt_jax.interop.convert", *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True)
        seconds = time.perf_counter() - start
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        # ru_maxrss is that of the largest child so far: `to-official` shows only if it is larger
        # than `convert`.
        largest = after.ru_maxrss * 1024
        print(
            f"{name:12s} {seconds:6.1f} s ({seconds / copying:.1f} copies), {processor:.1f} s of "
            f"processor time, largest process so far {largest / 1e9:.2f} GB "
            f"({largest / size:.1f} checkpoints)"
        )


def official_arrays(config: Config) -> tuple[dict[str, np.ndarray], dict]:
    """State dict with random weights, and hyper-parameters, of the official MeBT of a config."""
    shapes = transformer_part(
        config.backbone, config.tokenizer.codebook_size, int(np.prod(config.grid))
    )[1].official_shapes()
    tokenizer = tokenizer_part(config.tokenizer).official_shapes()
    for name in DISCRIMINATORS:
        tokenizer |= discriminator_part(name, channels=64, layers=3)[1].official_shapes()
    tokenizer |= {
        PERCEPTUAL_PREFIX + name: shape for name, shape in lpips_part()[1].official_shapes().items()
    }
    shapes |= {TOKENIZER_PREFIX + name: shape for name, shape in tokenizer.items()}
    draws = np.random.default_rng(0)
    return (
        {name: draws.standard_normal(shape, np.float32) for name, shape in shapes.items()},
        official_hyper_parameters(config),
    )


if __name__ == "__main__":
    main()
