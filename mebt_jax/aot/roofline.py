"""What a compiled program needs and how long it should take on chips with known figures."""

import dataclasses
import re
from typing import Any

import jax

from mebt_jax.aot.chips import Chip
from mebt_jax.aot.programs import Program
from mebt_jax.aot.traffic import read_traffic

# Full effort spends most of the time of a compilation on choosing among schedules.
EFFORT_OPTIONS = ("exec_time_optimization_effort", "memory_fitting_effort")


@dataclasses.dataclass(frozen=True)
class Report:
    """A program on one slice or several; memory, traffic and times are those of one chip and one
    run.
    """

    name: str
    chips: int
    chip: Chip
    clips: int
    runs: int
    peak_bytes: float
    argument_bytes: float
    flops: float  # of one chip
    useful_flops: float  # of one chip
    memory_traffic: float  # bytes
    sent: dict[str, float]  # bytes, by kind of collective
    between_slices: float  # bytes of these
    unknown_loops: int = 0  # counted as one iteration each

    @property
    def parts(self) -> dict[str, float]:
        """Seconds that each resource would take by itself."""
        within = sum(self.sent.values()) - self.between_slices
        return {
            "matrix products": self.flops / self.chip.flops,
            "memory": self.memory_traffic / self.chip.hbm_bytes_per_second,
            "interconnect": within / self.chip.ici_bytes_per_second
            + self.between_slices / self.chip.dcn_bytes_per_second,
        }

    @property
    def seconds(self) -> float:
        """Least time of one run: products and memory traffic overlap, network traffic is added."""
        parts = self.parts
        return max(parts["matrix products"], parts["memory"]) + parts["interconnect"]

    @property
    def utilization(self) -> float:
        """MFU at `seconds`, an upper bound of the measured one."""
        return self.useful_flops / (self.seconds * self.chip.flops)


class DoesNotFit(Exception):
    """The memory of a chip is too small for a program; the message says what to change."""


def compile_report(program: Program, chip: Chip, slices: int = 1, effort: float = 0.0) -> Report:
    """Compiles a program for the devices of its mesh, each of which is a chip; this takes minutes.

    Args:
        effort: of the compiler, from -1 (quick) to 1; 0 is its default.

    Raises:
        DoesNotFit: the program needs more memory than a chip has.
    """
    try:
        compiled = lowered(program).compile(
            dict.fromkeys(EFFORT_OPTIONS, effort) if effort else None
        )
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise DoesNotFit(what_to_change(program, chip, error)) from error
    memory, chips = compiled.memory_analysis(), program.mesh.size
    traffic = read_traffic(compiled.as_text(), chips // slices if slices > 1 else None)
    return Report(
        program.name,
        chips,
        chip,
        program.clips,
        program.runs,
        memory.peak_memory_in_bytes,
        memory.argument_size_in_bytes,
        program.flops / chips,
        program.useful_flops / chips,
        traffic.memory,
        dict(traffic.sent),
        traffic.between_slices,
        traffic.unknown_loops,
    )


def lowered(program: Program) -> jax.stages.Lowered:
    """A program as the compiler for TPUs takes it."""
    return program.traced.lower(lowering_platforms=("tpu",))


def total_seconds(reports: list[Report]) -> float:
    """Least time of all programs of a step, each as often as it runs."""
    return sum(report.seconds * report.runs for report in reports)


def clips_per_second(reports: list[Report]) -> float:
    """Of all chips together."""
    return reports[0].clips / total_seconds(reports)


def lines(reports: list[Report]) -> list[str]:
    """The reports for people to read."""
    rate, seconds = clips_per_second(reports), total_seconds(reports)
    return [
        *(line for report in reports for line in _lines(report)),
        f"{reports[0].clips} clips in {seconds:.3g} s at least: {rate:.3g} clips a second by the "
        f"whole {reports[0].chips} chips",
    ]


def _lines(report: Report) -> list[str]:
    sent = ", ".join(f"{kind} {size / 1e9:.3g}" for kind, size in sorted(report.sent.items()))
    parts = ", ".join(f"{name} {1e3 * seconds:.3g}" for name, seconds in report.parts.items())
    notes = f"; runs {report.runs} times" if report.runs > 1 else ""
    if report.unknown_loops:
        notes += f"; {report.unknown_loops} loops of unknown length count as one iteration"
    return [
        f"{report.name}: fits, {report.peak_bytes / 2**30:.2f} GiB of the "
        f"{report.chip.hbm_bytes / 2**30:.2f} GiB of a chip at its peak, of it "
        f"{report.argument_bytes / 2**30:.2f} weights, optimizer and inputs",
        f"  a chip computes {report.flops / 1e12:.3g} TFLOP (useful "
        f"{report.useful_flops / 1e12:.3g}), moves {report.memory_traffic / 1e9:.3g} GB through "
        f"its memory, and sends in GB: {sent or 'none'}",
        f"  ms by each alone: {parts}; together {1e3 * report.seconds:.3g} ms at least, MFU "
        f"{report.utilization:.0%} at most{notes}",
    ]


def what_to_change(program: Program, chip: Chip, error: Any) -> str:
    """One sentence for a program that does not fit."""
    found = re.search(r"Used ([\d.]+[GMK]?) of ([\d.]+[GMK]?) hbm", str(error))
    need = f"it needs {found[1]} of {found[2]}" if found else str(error).splitlines()[0]
    return (
        f"{program.name}: does not fit the {chip.hbm_bytes / 2**30:.2f} GiB of a {chip.name} chip, "
        f"{need}; {_fix(program, chip)}."
    )


def _fix(program: Program, chip: Chip) -> str:
    shape = dict(program.mesh.shape)
    each = program.clips // (shape["data"] * shape["fsdp"])
    stage = program.batch_field.removesuffix(".batch_size")
    if program.resident_bytes > chip.hbm_bytes / 2 and shape["fsdp"] < program.mesh.size:
        return (
            f"weights and optimizer take {program.resident_bytes / 2**30:.1f} GiB on every chip: "
            f"set config.mesh.data=1 and config.mesh.fsdp={program.mesh.size}, or take more chips"
        )
    if each > 1 and stage.endswith("training"):
        return (
            f"a chip works on {each} clips of a batch: raise {stage}.microbatches up to {each}, so "
            "that it takes them one after the other"
        )
    if each > 1:
        return f"a chip works on {each} clips at a time: lower {program.batch_field}"
    return (
        f"a chip works on one clip already: set config.mesh.sequence={2 * shape['sequence']}, "
        "which splits a clip over chips, or take chips with more memory"
    )
