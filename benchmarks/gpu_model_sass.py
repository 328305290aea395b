"""What compiled code does per loop iteration: instructions, busy units, bytes and latency.

Input is the text of ``nvdisasm -hex -gi``: machine code with the source line of every instruction,
and with the lines of the calls where that line belongs to an inlined function. A loop is a backward
branch; its body is everything from the branch's target to the branch.

Each instruction of NVIDIA's chips since Volta is 128 bits. Bits 105 to 121 tell how many cycles the
scheduler stalls after it, which scoreboards it sets and for which it waits. ``latency`` replays
them for a warp that has its scheduler for itself.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.gpu_model_chip import (
    ALU,
    BF16_FLOPS,
    CLOCK,
    CYCLES,
    FMA,
    FP64,
    LATENCY,
    SCHEDULERS,
    SMS,
    TENSOR,
    TF32_FLOPS,
    XU,
)

Line = tuple[str, int]  # file, line
Chain = tuple[Line, ...]  # innermost function's line first, the kernel's own line last

NO_BARRIER = 7
# mma.sync reaches about 0.62 of what wgmma reaches (Luo et al. 2024, "Benchmarking and Dissecting
# the NVIDIA Hopper GPU Architecture via Microbenchmarking").
HMMA_EFFICIENCY = 0.62

_UNITS = {
    FMA: "FFMA FMUL FADD FFMA2 FADD2 FMUL2 HFMA2 HADD2 HMUL2 FSWZADD IMAD",
    ALU: "IADD3 VIADD VIADDMNMX IADD LOP3 SEL FSEL FSETP ISETP FSET FMNMX VIMNMX IMNMX PRMT SHF"
    " LEA I2FP F2FP IABS PLOP3 SGXT LOP BMSK VOTE FCHK HSETP2 HMNMX2 IDP",
    XU: "MUFU I2F F2I F2F POPC FLO BREV I2I FRND",
    FP64: "DFMA DADD DMUL DSETP DMNMX",
}
_UNIT_OF = {name: unit for unit, names in _UNITS.items() for name in names.split()}
_SHARED = {"LDS", "STS", "LDSM", "STSM", "LDGSTS", "ATOMS"}
_GLOBAL = {"LDG", "STG", "LDGSTS", "LD", "ST", "RED", "ATOMG"}
_LOCAL = {"LDL", "STL"}


class Instruction(NamedTuple):
    """One machine instruction."""

    address: int
    opcode: str  # with its modifiers
    operands: str
    control: int  # the upper 64 bits of the encoding
    chain: Chain
    target: int | None = None  # address that a backward branch goes to

    @property
    def name(self) -> str:
        """The opcode without modifiers."""
        return self.opcode.partition(".")[0]

    @property
    def stall(self) -> int:
        """Cycles until the warp's next instruction, at least 1."""
        return max(1, self.control >> 41 & 15)

    @property
    def sets(self) -> tuple[int, int]:
        """Scoreboards that it sets: when its result is there, and when its operands are read."""
        return self.control >> 46 & 7, self.control >> 49 & 7

    @property
    def waits(self) -> list[int]:
        """Scoreboards that it waits for."""
        return [i for i in range(6) if self.control >> 52 + i & 1]

    @property
    def width(self) -> int:
        """Bytes per lane that a load or a store moves."""
        if self.name in ("LDSM", "STSM"):
            return 4 * int(next((p for p in self.opcode.split(".") if p in ("2", "4")), 1))
        for part in self.opcode.split("."):
            if part in ("64", "128"):
                return int(part) // 8
            if part in ("U8", "S8", "U16", "S16"):
                return int(part[1:]) // 8
        return 4

    @property
    def unit(self) -> str | None:
        """The unit with which it may have to wait."""
        return TENSOR if self.flops else _UNIT_OF.get(self.name)

    @property
    def flops(self) -> int:
        """Operations on the matrix units, of one warp."""
        if self.name == "HGMMA":  # of a group of four warps
            m, n, k = map(int, re.match(r"HGMMA\.(\d+)x(\d+)x(\d+)", self.opcode).groups())  # type: ignore[union-attr]
            return 2 * m * n * k // 4
        if self.name == "HMMA":
            shape = next(part for part in self.opcode.split(".") if part.isdigit())
            return 2 * 16 * 8 * int(shape.removeprefix("168"))
        return 0

    @property
    def busy(self) -> float:
        """Cycles that its unit cannot start another instruction of the same scheduler."""
        if self.name == "IMAD":
            return 2  # half of the FMA units multiply integers
        if not self.flops:
            return CYCLES.get(self.unit or "", 0)
        rate = TF32_FLOPS if "TF32" in self.opcode else BF16_FLOPS
        cycles = self.flops / (rate / CLOCK / SMS / SCHEDULERS)
        return cycles if self.name == "HGMMA" else cycles / HMMA_EFFICIENCY


@dataclass
class Cost:
    """What a warp does in some stretch of code."""

    instructions: float = 0.0
    busy: Counter[str] = field(default_factory=Counter)  # unit -> cycles
    shared_bytes: float = 0.0
    global_bytes: float = 0.0  # of all lanes, as if no two read the same
    local: float = 0.0  # loads and stores of registers that were put aside
    flops: float = 0.0  # of matrix units
    latency: float = 0.0  # cycles, alone on a scheduler

    def add(self, other: Cost, times: float = 1.0) -> None:
        """Add another stretch that is executed so often."""
        self.instructions += times * other.instructions
        for unit, cycles in other.busy.items():
            self.busy[unit] += times * cycles
        self.shared_bytes += times * other.shared_bytes
        self.global_bytes += times * other.global_bytes
        self.local += times * other.local
        self.flops += times * other.flops
        self.latency += times * other.latency


@dataclass
class Loop:
    """A loop of machine code; the whole kernel is one, too."""

    first: int  # address
    last: int
    own: list[Instruction] = field(default_factory=list)  # those in no loop inside of this one
    inner: list[Loop] = field(default_factory=list)


def parse(listing: str) -> dict[str, list[Instruction]]:
    """Read the instructions of every kernel in a listing, without the padding at its end."""
    kernels: dict[str, list[Instruction]] = {}
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    new_labels: list[str] = []  # of the next instruction
    chain: list[Line] = []
    chain_ended = True
    for line in listing.splitlines():
        if match := _KERNEL.match(line):
            found, labels, new_labels, chain = [], {}, [], []
            kernels[match[1]] = found
        elif line.lstrip().startswith(".section"):
            found = []  # what follows is data
        elif match := _LABEL.match(line):
            new_labels.append(match[1])
        elif match := _LINE.match(line):
            chain = [] if chain_ended else chain
            chain_ended = False
            chain.append((match[1], int(match[2])))
        elif match := _CODE.match(line):
            address, code = int(match[1], 16), re.sub(r"^@!?U?P\w+\s+", "", match[2])
            opcode, _, operands = code.partition(" ")
            labels.update(dict.fromkeys(new_labels, address))
            new_labels, chain_ended = [], True
            found.append(Instruction(address, opcode, operands.strip(), 0, tuple(chain)))
            if opcode == "BRA" and (match := _LABEL_USED.search(operands)):
                found[-1] = found[-1]._replace(operands=match[1])
        elif found and (match := _REST.match(line)):
            found[-1] = found[-1]._replace(control=int(match[1], 16))
            _resolve_last(found, labels)
    for instructions in kernels.values():
        while instructions[-1].name == "NOP" or instructions[-1].target == instructions[-1].address:
            instructions.pop()
    return kernels


def _resolve_last(found: list[Instruction], labels: dict[str, int]) -> None:
    """Give a backward branch its target; only those make loops."""
    last = found[-1]
    if last.name == "BRA" and last.operands in labels:
        found[-1] = last._replace(target=labels[last.operands])


_KERNEL = re.compile(r"\.text\.(\S+):")
_LABEL = re.compile(r"(\.L_\w+):")
_LABEL_USED = re.compile(r"(\.L_\w+)")
_LINE = re.compile(r'\s*//## File "(.*?)", line (\d+)')
_CODE = re.compile(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s*/\* 0x[0-9a-f]{16} \*/")
_REST = re.compile(r"\s*/\* 0x([0-9a-f]{16}) \*/")


def loops(instructions: list[Instruction]) -> Loop:
    """Find the loops, nested; the outermost is the kernel."""
    spans: dict[int, int] = {}  # target of a backward branch -> last branch to it
    for one in instructions:
        if one.target is not None:
            spans[one.target] = max(spans.get(one.target, 0), one.address)
    whole = Loop(instructions[0].address, instructions[-1].address)
    for first, last in sorted(spans.items(), key=lambda span: (span[0], -span[1])):
        _innermost(whole, first).inner.append(Loop(first, last))
    for one in instructions:
        _innermost(whole, one.address).own.append(one)
    return whole


def cost(instructions: list[Instruction]) -> Cost:
    """Count what a warp does that executes each of them once."""
    total = Cost(instructions=len(instructions), latency=latency(instructions))
    for one in instructions:
        if one.unit:
            total.busy[one.unit] += one.busy
        if one.name in _SHARED or one.name == "SHFL":
            total.shared_bytes += 32 * one.width
        if one.name in _GLOBAL:
            total.global_bytes += 32 * one.width
        total.local += one.name in _LOCAL
        total.flops += one.flops
    return total


def latency(instructions: list[Instruction]) -> float:
    """Cycles that a warp takes for them as the body of a loop, alone on its scheduler.

    Two iterations are replayed, since loads of one may be waited for in the next; the time between
    their ends counts.
    """
    now, ends = 0.0, []
    ready = [0.0] * (NO_BARRIER + 1)  # by scoreboard
    free: Counter[str] = Counter()  # by unit
    copies, groups = 0.0, [0.0]  # asynchronous copies to shared memory: the open group, closed ones
    for _ in range(2):
        for one in instructions:
            now = max([now, *(ready[board] for board in one.waits)])
            if one.unit and one.unit != TENSOR:
                now = max(now, free[one.unit])
            start = now
            if one.unit:
                free[one.unit] = max(start, free[one.unit]) + one.busy
            if one.opcode.startswith("WARPGROUP.DEPBAR"):
                start = now = max(now, free[TENSOR] + LATENCY["tensor"])
            elif one.name == "LDGSTS":
                copies = max(copies, start + LATENCY["global"])
            elif one.name == "LDGDEPBAR":
                groups.append(copies)
            elif one.name == "DEPBAR" and "SB0" in one.operands:
                open_groups = int(one.operands.rpartition(",")[2], 16)
                done = groups[: len(groups) - open_groups]
                now = max([now, *done])
            elif one.name == "BAR":
                now += LATENCY["barrier"]
            result, operands = one.sets
            if result != NO_BARRIER:
                ready[result] = max(ready[result], start + one.busy + _latency_of(one))
            if operands != NO_BARRIER:
                ready[operands] = max(ready[operands], start + LATENCY["other"])
            now += one.stall
        ends.append(now)
    return ends[1] - ends[0]


def _latency_of(one: Instruction) -> float:
    kinds = {
        "global": {"LDG", "LD", "LDL", "ATOMG"},
        "shared": _SHARED - {"LDGSTS"},
        "shuffle": {"SHFL"},
        "constant": {"LDC", "ULDC"},
        "xu": set(_UNITS[XU].split()),
        "tensor": {"HMMA", "HGMMA"},
    }
    return LATENCY[next((kind for kind, names in kinds.items() if one.name in names), "other")]


def _innermost(loop: Loop, address: int) -> Loop:
    for inner in loop.inner:
        if inner.first <= address <= inner.last:
            return _innermost(inner, address)
    return loop
