"""The table of what every config needs and reaches on TPU slices, from compilation alone (no TPU;
libtpu: pip install '.[aot]').

    python -m benchmarks.aot --configs ucf128 sky16 --slices v5e:2x4 2xv5e:2x2 --steps transformer

writes the rows that it was asked for into docs/scaling.md one by one, and leaves the others; those
that are there are not made again without `--again`. A program is compiled once, however many
configs share it. That takes some minutes on two cores; with `--effort=-1` one, and then the
schedule is worse and the peak memory may be higher.
"""

import os

os.environ.update(
    JAX_PLATFORMS="cpu",
    TPU_SKIP_MDS_QUERY="1",
    TPU_ACCELERATOR_TYPE="v5litepod-16",  # before JAX: see mebt_jax.aot
    TPU_WORKER_HOSTNAMES="localhost",
    TPU_LOG_DIR="disabled",
    ALLOW_MULTIPLE_LIBTPU_LOAD="1",
    JAX_ENABLE_COMPILATION_CACHE="false",
)

import argparse
import dataclasses
import hashlib
import importlib
import math
from pathlib import Path

from tqdm import tqdm

ROOT = Path(__file__).parents[1]

from mebt_jax.aot import chips, programs, roofline
from mebt_jax.config import Config, from_config_dict
from mebt_jax.errors import UserError

CONFIGS = (
    "demo",
    "folder",
    "folder128",
    "sky16",
    "taichi16",
    "ucf16",
    "sky128",
    "taichi128",
    "ucf128",
    "long1024",
)
TOKENIZERS = ("tokenizer_ucf", "tokenizer_sky", "tokenizer_taichi")  # for --steps tokenizer
SLICES = ("v4:2x2x2", "v5e:2x4", "v5p:2x2x2", "v6e:2x4", "2xv5e:2x2")
STEPS = ("transformer", "tokenizer", "sample")
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- table of benchmarks/aot.py -->", "<!-- end of the table -->"
HEAD = (
    "| config | step | slice | chips | GiB of a chip | TFLOP a chip | GB moved | MB sent | least "
    "seconds | MFU at most | clips/s at "
    "most | decoding cores |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n"
)
# Clips that one core reads and crops a second, by frames (benchmarks/RESULTS.md, JPEG at 128x128),
# to say how many cores keep up.
CLIPS_PER_CORE = {16: 360.0, 128: 57.5}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=CONFIGS)
    parser.add_argument(
        "--slices", nargs="+", default=SLICES, help="topologies, several of one as 2xv5e:2x2"
    )
    parser.add_argument("--steps", nargs="+", default=["transformer"], choices=STEPS)
    parser.add_argument("--effort", type=float, default=0.0)
    parser.add_argument("--again", action="store_true", help="also the rows that are there")
    asked = parser.parse_args()
    there = () if asked.again else rows(PAGE.read_text())
    todo = [
        (c, s, t)
        for c in asked.configs
        for s in asked.steps
        for t in asked.slices
        if (c, s, t) not in there
    ]
    for name, step, slices in tqdm(todo):
        config = importlib.import_module(f"configs.{name}").get_config()
        if (
            config.mesh.data == 1
        ):  # of one device as shipped; what has fewer clips than there are chips splits them
            count, topology = count_and_topology(slices)
            number = len(chips.devices(topology, count))
            config.mesh.data = math.gcd(config.transformer.training.batch_size, number)
            config.mesh.sequence = number // config.mesh.data
        write_row(row(from_config_dict(config), name, step, slices, asked.effort))


def count_and_topology(slices: str) -> tuple[int, str]:
    """(2, "v5e:2x2") of "2xv5e:2x2"."""
    count, topology = slices.split("x", 1) if slices[0].isdigit() else ("1", slices)
    return int(count), topology


def row(config: Config, name: str, step: str, slices: str, effort: float) -> str:
    count, topology = count_and_topology(slices)
    chip, devices = chips.of_topology(topology), chips.devices(topology, count)
    first = f"| {name} | {step} | {slices} | {len(devices)} |"
    try:
        made = [
            once(one, slices, chip, count, effort)
            for one in programs.programs(step, config, devices)
        ]
    except roofline.DoesNotFit as error:
        return f"{first} does not fit: {str(error).split('; ')[-1]} |"
    except UserError as error:  # the batch does not go into so many chips
        return f"{first} {error} |"
    rate = roofline.clips_per_second(made)
    seconds = roofline.total_seconds(made)
    useful = sum(one.useful_flops * one.turns for one in made) / chip.flops / seconds
    total = {
        field.name: sum(getattr(one, field.name) * one.turns for one in made)
        for field in dataclasses.fields(roofline.Report)
        if field.name in ("flops", "memory_traffic")
    }
    sent = sum(sum(one.sent.values()) * one.turns for one in made)
    cores = (
        f"{math.ceil(rate / CLIPS_PER_CORE[config.data.frames])}"
        if step != "sample" and config.data.frames in CLIPS_PER_CORE
        else ""
    )
    peak = max(one.peak_bytes for one in made) / 2**30
    return (
        f"{first} {peak:.2f} of {chip.hbm_bytes / 2**30:.2f} | {total['flops'] / 1e12:.3g} | "
        f"{total['memory_traffic'] / 1e9:.3g} | "
        f"{sent / 1e6:.3g} | {seconds:.3g} | {useful:.0%} | {rate:.3g} | {cores} |"
    )


COMPILED: dict[tuple[str, str], roofline.Report | roofline.DoesNotFit] = {}


def once(
    program: programs.Program, slices: str, chip: chips.Chip, count: int, effort: float
) -> roofline.Report:
    """The report of a program, from an earlier one of the same text for the same slices if there is
    one.
    """
    key = slices, hashlib.sha256(roofline.lowered(program).as_text().encode()).hexdigest()
    if key not in COMPILED:
        try:
            COMPILED[key] = roofline.compile_report(program, chip, count, effort)
        except roofline.DoesNotFit as error:
            COMPILED[key] = error
    found = COMPILED[key]
    if isinstance(found, roofline.DoesNotFit):
        raise found
    return found


def rows(page: str) -> dict[tuple[str, str, str], str]:
    """Lines of the table by config, step and slices."""
    table = page.split(BEGIN)[1].split(END)[0]
    return {
        key(line): line
        for line in table.splitlines()
        if line.startswith("| ") and not line.startswith("| config")
    }


def key(line: str) -> tuple[str, str, str]:
    name, step, slices = (cell.strip() for cell in line.split("|")[1:4])
    return name, step, slices


def write_row(new: str) -> None:
    """Puts a row into the table of the page, in place of that of the same config, step and
    slices.
    """
    page = PAGE.read_text()
    lines = rows(page) | {key(new): new}
    order = sorted(
        lines, key=lambda one: ((CONFIGS + TOKENIZERS).index(one[0]), STEPS.index(one[1]), one[2])
    )
    text = BEGIN + "\n" + HEAD + "\n".join(lines[one] for one in order) + "\n" + END
    PAGE.write_text(page.split(BEGIN)[0] + text + page.split(END)[1])


if __name__ == "__main__":
    main()
