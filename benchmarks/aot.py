"""The table of the memory, work and rate of every config on TPU slices, from compilation alone (no
TPU; libtpu: pip install '.[aot]').

    python -m benchmarks.aot --configs ucf128 sky16 --slices v5e:2x4 2xv5e:2x2 --steps prior

writes the rows of these arguments into docs/scaling.md one by one, and keeps the others. Rows that
the page has already are computed again only with `--again`. A program that several configs have in
common is compiled once. A program takes some minutes on two cores; with `--effort=-1` one minute,
with a worse schedule and perhaps a higher peak of memory.
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

from mebt_jax.aot import chips, programs, roofline
from mebt_jax.config import Config, from_config_dict
from mebt_jax.errors import UserError

ROOT = Path(__file__).parents[1]
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
STEPS = ("prior", "tokenizer", "sample")
PAGE = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- table of benchmarks/aot.py -->", "<!-- end of the table -->"
HEAD = (
    "| config | step | slice | chips | GiB of a chip | TFLOP a chip | GB moved | MB sent | least "
    "seconds | MFU at most | clips/s at most | decoding cores |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|---|\n"
)
# Clips that a core reads and crops per second, by frames (benchmarks/RESULTS.md, JPEG at 128x128);
# from it follows the number of cores that supply the chips.
CLIPS_PER_CORE = {16: 360.0, 128: 57.5}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--configs", nargs="+", default=CONFIGS)
    parser.add_argument(
        "--slices", nargs="+", default=SLICES, help="topologies; two slices are 2xv5e:2x2"
    )
    parser.add_argument("--steps", nargs="+", default=["prior"], choices=STEPS)
    parser.add_argument("--effort", type=float, default=0.0)
    parser.add_argument("--again", action="store_true", help="also the rows of the page")
    options = parser.parse_args()
    written = () if options.again else rows(PAGE.read_text())
    missing = [
        (name, step, slices)
        for name in options.configs
        for step in options.steps
        for slices in options.slices
        if (name, step, slices) not in written
    ]
    for name, step, slices in tqdm(missing):
        config = importlib.import_module(f"configs.{name}").get_config()
        if config.mesh.data == 1:
            # A config for one device: its batch is spread over the chips, and its clips are split
            # if there are more chips than clips.
            count, topology = count_and_topology(slices)
            num_chips = len(chips.devices(topology, count))
            config.mesh.data = math.gcd(config.prior.training.batch_size, num_chips)
            config.mesh.sequence = num_chips // config.mesh.data
        write_row(row(from_config_dict(config), name, step, slices, options.effort))


def count_and_topology(slices: str) -> tuple[int, str]:
    """(2, "v5e:2x2") of "2xv5e:2x2"."""
    count, topology = slices.split("x", 1) if slices[0].isdigit() else ("1", slices)
    return int(count), topology


def row(config: Config, name: str, step: str, slices: str, effort: float) -> str:
    count, topology = count_and_topology(slices)
    chip, devices = chips.of_topology(topology), chips.devices(topology, count)
    first = f"| {name} | {step} | {slices} | {len(devices)} |"
    try:
        reports = [
            report_once(program, slices, chip, count, effort)
            for program in programs.programs(step, config, devices)
        ]
    except roofline.DoesNotFit as error:
        return f"{first} does not fit: {str(error).split('; ')[-1]} |"
    except UserError as error:  # the batch cannot be spread over so many chips
        return f"{first} {error} |"
    rate = roofline.clips_per_second(reports)
    seconds = roofline.total_seconds(reports)
    useful = sum(report.useful_flops * report.turns for report in reports) / chip.flops / seconds
    total = {
        field.name: sum(getattr(report, field.name) * report.turns for report in reports)
        for field in dataclasses.fields(roofline.Report)
        if field.name in ("flops", "memory_traffic")
    }
    sent = sum(sum(report.sent.values()) * report.turns for report in reports)
    cores = (
        f"{math.ceil(rate / CLIPS_PER_CORE[config.data.frames])}"
        if step != "sample" and config.data.frames in CLIPS_PER_CORE
        else ""
    )
    peak = max(report.peak_bytes for report in reports) / 2**30
    return (
        f"{first} {peak:.2f} of {chip.hbm_bytes / 2**30:.2f} | {total['flops'] / 1e12:.3g} | "
        f"{total['memory_traffic'] / 1e9:.3g} | "
        f"{sent / 1e6:.3g} | {seconds:.3g} | {useful:.0%} | {rate:.3g} | {cores} |"
    )


COMPILED: dict[tuple[str, str], roofline.Report | roofline.DoesNotFit] = {}


def report_once(
    program: programs.Program, slices: str, chip: chips.Chip, count: int, effort: float
) -> roofline.Report:
    """The report of a program; a program whose text was compiled for these slices before is not
    compiled again.
    """
    key = slices, hashlib.sha256(roofline.lowered(program).as_text().encode()).hexdigest()
    if key not in COMPILED:
        try:
            COMPILED[key] = roofline.compile_report(program, chip, count, effort)
        except roofline.DoesNotFit as error:
            COMPILED[key] = error
    report = COMPILED[key]
    if isinstance(report, roofline.DoesNotFit):
        raise report
    return report


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
    """Writes a row into the table of the page; it replaces that of the same config, step and
    slices.
    """
    page = PAGE.read_text()
    lines = rows(page) | {key(new): new}

    def order(key: tuple[str, str, str]) -> tuple[int, int, str]:
        name, step, slices = key
        return (CONFIGS + TOKENIZERS).index(name), STEPS.index(step), slices

    table = "\n".join(lines[key] for key in sorted(lines, key=order))
    text = BEGIN + "\n" + HEAD + table + "\n" + END
    PAGE.write_text(page.split(BEGIN)[0] + text + page.split(END)[1])


if __name__ == "__main__":
    main()
