"""Bytes that a compiled program moves, read from its text: through the memory of a device, and
between devices.

XLA's own count of bytes takes the body of a loop once, and counts no bytes between devices.
"""

import collections
import dataclasses
import re

import numpy as np

# Bytes that one device of a group of n sends for each byte of its operand, by the ring algorithms.
SENT = {
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "ragged-all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}
BITS = {"pred": 8, "token": 0, "opaque": 0}
NO_TRAFFIC = {
    "parameter",
    "constant",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "opt-barrier",
    "iota",
}
SLICES = {"dynamic-slice", "slice", "gather"}


@dataclasses.dataclass
class Traffic:
    """Of one device."""

    memory: float = 0.0  # bytes read and written, by whole arrays as the instructions name them
    sent: dict[str, float] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(float)
    )  # by kind of collective
    between_slices: float = 0.0  # of `sent`, in groups that span slices
    unknown_loops: int = 0  # counted as one iteration each

    def add(self, other: "Traffic", times: int) -> None:
        self.memory += times * other.memory
        self.between_slices += times * other.between_slices
        self.unknown_loops += other.unknown_loops
        for kind, size in other.sent.items():
            self.sent[kind] += times * size


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str  # as written, a tuple in parentheses
    opcode: str
    operands: tuple[str, ...]
    attributes: str
    is_root: bool


def read_traffic(text: str, devices_per_slice: int | None = None) -> Traffic:
    """Traffic of a compiled program, from `compiled.as_text()`.

    Every iteration of a loop counts; of the branches of a conditional the largest counts. A fusion
    reads its operands, or the slices of them that it takes, and writes its result, or the slice of
    it that it updates. Arrays on the chip (memory space 1 and up) are free.

    Args:
        devices_per_slice: where there are several slices.
    """
    program = _Program(text, devices_per_slice)
    return program.traffic(program.entry)


class _Program:
    def __init__(self, text: str, devices_per_slice: int | None) -> None:
        self.devices_per_slice = devices_per_slice
        partitions = re.search(r"num_partitions=(\d+)", text)
        self.devices = int(partitions[1]) if partitions else 1
        self.computations: dict[str, dict[str, Instruction]] = {}
        self._totals: dict[str, Traffic] = {}  # of the computations that were read already
        name = self.entry = ""
        for line in text.splitlines():
            if header := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line):
                name = header[2]
                self.entry = name if header[1] else self.entry
                self.computations[name] = {}
            elif found := _instruction(line):
                self.computations[name][found.name] = found

    def traffic(self, computation: str) -> Traffic:
        if computation not in self._totals:
            total = Traffic()
            for instruction in self.computations[computation].values():
                self._add(total, computation, instruction)
            self._totals[computation] = total
        return self._totals[computation]

    def _add(self, total: Traffic, computation: str, instruction: Instruction) -> None:
        opcode = instruction.opcode.removesuffix("-start")
        called = _called(instruction)
        if opcode in NO_TRAFFIC or opcode.endswith("-done") or opcode.endswith("-update"):
            return
        if opcode in SENT:
            size = sum(
                _bytes(self.computations[computation][name].shape, on_chip=True)
                for name in instruction.operands
            )
            group, spans = self._group(instruction)
            if group > 1:
                sent = size * SENT[opcode](group)
                total.sent[opcode] += sent
                total.between_slices += sent if spans else 0
                total.memory += 2 * size
        elif opcode == "while":
            count = self._iterations(instruction)
            total.unknown_loops += count is None
            for inner in called:
                total.add(self.traffic(inner), count or 1)
        elif opcode == "conditional":
            total.add(max(map(self.traffic, called), key=lambda traffic: traffic.memory), 1)
        elif opcode in ("call", "async"):
            for inner in called:
                total.add(self.traffic(inner), 1)
        elif opcode == "fusion":
            (inner,) = called
            operands = [self.computations[computation][name] for name in instruction.operands]
            total.memory += self._written(inner) + sum(
                self._read(inner, i, x.shape) for i, x in enumerate(operands)
            )
            nested = self.traffic(inner)
            # A collective may be fused with the instruction that computes its operand.
            for kind, size in nested.sent.items():
                total.sent[kind] += size
            total.between_slices += nested.between_slices
        else:
            total.memory += self._moved(computation, instruction)

    def _moved(self, computation: str, instruction: Instruction) -> float:
        instructions = self.computations[computation]
        if instruction.opcode.endswith("-start"):
            return _bytes(instruction.shape)  # a tuple of destination and source
        if instruction.opcode in SLICES:
            return 2 * _bytes(instruction.shape)
        if instruction.opcode == "dynamic-update-slice":
            return 2 * _bytes(instructions[instruction.operands[1]].shape)
        return _bytes(instruction.shape) + sum(
            _bytes(instructions[name].shape)
            for name in instruction.operands
            if name in instructions
        )

    def _read(self, computation: str, index: int, shape: str) -> float:
        """Bytes that a fused computation reads of its operand `index`."""
        instructions = self.computations[computation]
        parameter = next(
            (
                instruction.name
                for instruction in instructions.values()
                if instruction.opcode == "parameter"
                and instruction.attributes.startswith(f"({index})")
            ),
            None,
        )
        total = 0.0
        for user in instructions.values():
            if parameter not in user.operands:
                continue
            if user.opcode in SLICES and user.operands[0] == parameter:
                total += _bytes(user.shape)
            elif user.opcode == "fusion":
                total += sum(
                    self._read(_called(user)[0], i, shape)
                    for i, name in enumerate(user.operands)
                    if name == parameter
                )
            elif not (user.opcode == "dynamic-update-slice" and user.operands[0] == parameter):
                return _bytes(shape)
        return min(total, _bytes(shape))

    def _written(self, computation: str) -> float:
        instructions = self.computations[computation]
        root = next(instruction for instruction in instructions.values() if instruction.is_root)
        results = (
            [instructions[name] for name in root.operands] if root.opcode == "tuple" else [root]
        )
        total = 0.0
        for instruction in results:
            while instruction.opcode == "bitcast":
                instruction = instructions[instruction.operands[0]]
            updated = (
                instructions[instruction.operands[1]].shape
                if instruction.opcode == "dynamic-update-slice"
                else instruction.shape
            )
            total += _bytes(updated)
        return total

    def _iterations(self, loop: Instruction) -> int | None:
        """Iterations of a loop: as the compiler found them, or the constant to which it counts from
        0, as a scan does.
        """
        if found := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(found[1])
        condition = self.computations[re.search(r"condition=%?([\w.\-]+)", loop.attributes)[1]]
        root = next(instruction for instruction in condition.values() if instruction.is_root)
        if root.opcode != "compare" or "direction=LT" not in root.attributes:
            return None
        found = re.match(r"\((\d+)\)", condition[root.operands[1]].attributes)
        return int(found[1]) if found and condition[root.operands[1]].opcode == "constant" else None

    def _group(self, instruction: Instruction) -> tuple[int, bool]:
        """Devices of a group of a collective, and whether one of the groups spans slices."""
        if "replica_groups={}" in instruction.attributes:
            groups = [list(range(self.devices))]
        else:
            groups = groups_of(instruction.attributes)
        spans = self.devices_per_slice is not None and any(
            len({device // self.devices_per_slice for device in group}) > 1 for group in groups
        )
        return max(map(len, groups)), spans


def _instruction(line: str) -> Instruction | None:
    found = re.match(r"\s+(ROOT )?%?([\w.\-]+) = (.*)$", line)
    if not found:
        return None
    rest = found[3]
    end = _closing(rest) + 1 if rest.startswith("(") else rest.index(" ")
    call = re.match(r" ?([\w\-]+)(\(.*)$", rest[end:])
    if not call:
        return None
    close = _closing(call[2]) + 1
    # The number of a parameter and the value of a constant stand where others have operands.
    attributes = call[2] if call[1] in ("parameter", "constant") else call[2][close:]
    return Instruction(
        found[2],
        rest[:end],
        call[1],
        tuple(re.findall(r"%([\w.\-]+)", call[2][:close])),
        attributes,
        bool(found[1]),
    )


def _closing(text: str) -> int:
    """Index of the parenthesis that closes the first character of `text`."""
    depth = 0
    for i, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced: {text[:80]}")


def _called(instruction: Instruction) -> list[str]:
    names = re.findall(
        r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)",
        instruction.attributes,
    )
    for several in re.findall(
        r"(?:branch_computations|called_computations)=\{([^}]*)\}", instruction.attributes
    ):
        names += re.findall(r"%?([\w.\-]+)", several)
    return names


def _bytes(shape: str, on_chip: bool = False) -> float:
    """Bytes of the arrays of a shape as written; those on the chip count only with `on_chip`."""
    total = 0.0
    for kind, sizes, layout in re.findall(r"(\w+)\[([\d,]*)\](\{[^}]*\})?", shape):
        if re.search(r"S\([1-9]", layout) and not on_chip:
            continue
        bits = BITS.get(kind) if kind in BITS else int(re.search(r"\d+", kind)[0])
        count = 1
        for size in filter(None, sizes.split(",")):
            count *= int(size)
        total += count * bits / 8
    return total


def groups_of(attributes: str) -> list[list[int]]:
    """Device groups of a collective: written out, as [groups,size]<=[dims]T(permutation), or as
    axes of a mesh, whose devices may be in another order.
    """
    if found := re.search(r"source_target_pairs=\{(\{.*?\})\}", attributes):
        return [[int(x) for x in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", found[1])]
    if found := re.search(r"replica_groups=\{(\{.*?\})\}", attributes):
        return [
            [int(x) for x in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", found[1])
        ]
    if found := re.search(
        r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes
    ):
        return _transposed(found[3], found[4]).reshape(int(found[1]), int(found[2])).tolist()
    if found := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? "
        r"\{([^}]*)\}",
        attributes,
    ):
        groups = _along_axes(found[1], found[4])
        return (_transposed(found[2], found[3])[groups] if found[2] else groups).tolist()
    raise ValueError(f"a collective without groups that are known: {attributes[:200]}")


def _transposed(dims: str, axes: str | None) -> np.ndarray:
    """Devices in the order of [4,2]T(1,0), which counts them in an array of these sizes and then
    transposes it.
    """
    sizes = [int(size) for size in dims.split(",")]
    order = np.arange(np.prod(sizes)).reshape(sizes)
    return (order.transpose([int(axis) for axis in axes.split(",")]) if axes else order).reshape(-1)


def _along_axes(mesh: str, axes: str) -> np.ndarray:
    """Groups along axes such as 'a','b':(2)4 of a mesh such as 'a'=2,'b'=8; (2)4 is the part of
    size 4 inside of one of 2.
    """
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", mesh)}
    dims, along = [], []  # the parts of all axes, and those that the groups lie along
    for name, size in sizes.items():
        parts = [
            (int(before), int(part))
            for axis, before, part in re.findall(r"'([^']+)':\((\d+)\)(\d+)", axes)
            if axis == name
        ]
        whole = re.search(rf"'{re.escape(name)}'(?!:)", axes) is not None
        done = 1
        for before, part in sorted(parts):
            dims += [before // done, part]
            along.append(len(dims) - 1)
            done = before * part
        dims.append(size // done)
        if whole:
            along.append(len(dims) - 1)
    order = np.arange(np.prod(dims)).reshape(dims)
    others = [axis for axis in range(len(dims)) if axis not in along]
    return order.transpose(*others, *along).reshape(
        -1, int(np.prod([dims[axis] for axis in along]))
    )
