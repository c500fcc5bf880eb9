"""Count the instructions of the CUDA kernel from its machine code, which needs no GPU: `pip install nvidia-cuda-nvdisasm`.

    python benchmarks/instructions.py [--source other.cu] [--capability 90] [--json benchmarks/results/instructions.json]

The loops of the kernel are found by their jumps backwards, and told apart by what they do: the one that stores results 16 bytes
at a time, the one over columns of cells, which loads the first four, the one inside of it for more of them, and those around
it (bins, strips of bins). How often each runs follows from the boxes of the cases of benchmarks/cpu.py. An iteration of the
loops over columns and cells counts all instructions, as for four cells; one of a loop around them those on the shortest way
through it. Predicated instructions count whether or not they take effect, since they are issued. The part before the loops
is left out, and so are lists too long for shared memory. Instructions say nothing of waiting for memory: they are a floor,
not a time.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from cpu import CASES, Case, make

from roialign_cli.ops.cuda import launch, nvrtc
from roialign_cli.ops.cuda import run as cuda
from roialign_cli.ops.reference import axis

PROCESSORS = 132  # multiprocessors of an H100
KINDS = {
    "global": "LDG STG", "shared": "LDS STS", "float": "FFMA FADD FMUL FSETP FSEL HFMA2 HADD2 DFMA DADD DMUL F2F F2FP",
    "move": "MOV IMAD.MOV CS2R SEL PRMT", "integer": "IMAD IADD3 IADD LEA SHF LOP3 VIADD ISETP PLOP3 IABS VIMNMX VIADDMNMX",
    "jump": "BRA BSSY BSYNC EXIT CALL WARPSYNC",
}  # fmt: skip


@dataclass
class Loop:
    """Instructions from `first` to `last`; `own` are those in no loop inside of it."""

    first: int
    last: int
    inside: list[Loop] = field(default_factory=list)
    own: list[str] = field(default_factory=list)

    def count(self, opcode: str) -> int:
        """Return the number of own instructions whose name begins so."""
        return sum(own.startswith(opcode) for own in self.own)

    def __contains__(self, opcode: str) -> bool:
        return self.count(opcode) > 0

    @property
    def kinds(self) -> dict[str, int]:
        """Number of instructions by kind."""
        found = dict.fromkeys([*KINDS, "other"], 0)
        for opcode in self.own:
            names = {name: kind for kind, names in KINDS.items() for name in names.split()}
            longest = max((name for name in names if opcode.startswith(name)), key=len, default="")
            found[names.get(longest, "other")] += 1
        return found


@dataclass(frozen=True)
class Line:
    """Hold an instruction and the label that it jumps to, or a label, whose opcode is empty."""

    opcode: str
    label: str = ""
    always: bool = False  # it jumps in any case


def disassemble(code: bytes) -> list[Line]:
    """Return the lines of machine code."""
    tool = shutil.which("nvdisasm") or next(
        (str(p) for folder in sys.path for p in Path(folder).glob("nvidia/*/bin/nvdisasm")), ""
    )
    if not tool:
        sys.exit("expected nvdisasm, found none: pip install nvidia-cuda-nvdisasm")
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        text = subprocess.run([tool, "-c", file.name], capture_output=True, text=True, check=True).stdout
    found = []
    for line in text.splitlines():
        if label := re.match(r"(\.L\w+):", line):
            found.append(Line("", label[1]))
        elif instruction := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(@!?U?P\w+\s+)?([A-Z][\w.]*)(.*)", line):
            predicate, opcode, rest = instruction.groups()
            target = re.search(r"`\((\.L\w+)\)", rest)
            jumps = opcode.startswith(("BRA", "EXIT"))
            always = jumps and not predicate and not re.match(r"\s+!?U?P", rest)
            found.append(Line(opcode, target[1] if target and opcode.startswith("BRA") else "", always))
    return found


def shortest(lines: list[Line], begin: int, end: int) -> int:
    """Return the least number of instructions from a line to a later one, both included."""
    places = {line.label: i for i, line in enumerate(lines) if not line.opcode}
    steps = {begin: int(bool(lines[begin].opcode))}
    for i in range(begin, end):  # all jumps that do not go back go forward
        if i not in steps:
            continue
        line = lines[i]
        following = [] if line.always else [i + 1]
        following += [places[line.label]] if line.opcode and places.get(line.label, 0) > i else []
        for to in following:
            steps[to] = min(steps.get(to, 1 << 30), steps[i] + bool(lines[to].opcode))
    return steps.get(end, 1 << 30)


def find_loops(lines: list[Line]) -> list[Loop]:
    """Return the outermost loops, with those inside of them."""
    places = {line.label: i for i, line in enumerate(lines) if not line.opcode}
    last: dict[int, int] = {}
    for i, line in enumerate(lines):
        if line.opcode and places.get(line.label, i) < i:
            last[places[line.label]] = i
    loops = [Loop(first, end) for first, end in sorted(last.items(), key=lambda pair: (pair[0], -pair[1]))]
    outermost: list[Loop] = []
    for n, loop in enumerate(loops):
        around = [other for other in loops[:n] if other.first <= loop.first and loop.last <= other.last]
        (around[-1].inside if around else outermost).append(loop)
        inner = [other for other in loops[n + 1 :] if other.first <= loop.last]
        covered = {i for other in inner for i in range(other.first, other.last + 1)}
        own = [lines[i].opcode for i in range(loop.first, loop.last + 1) if i not in covered]
        loop.own = [opcode for opcode in own if opcode]
    return outermost


def walk(loops: list[Loop], path: tuple[Loop, ...] = ()) -> Iterator[tuple[Loop, ...]]:
    """Yield every loop after those around it."""
    for loop in loops:
        yield (*path, loop)
        yield from walk(loop.inside, (*path, loop))


@dataclass(frozen=True)
class Kernel:
    """Hold the instructions of one iteration of each loop; strips, bins, columns and cells are nested.

    `columns` sums up to four cells of a column, `cells` four more; `store` is for one element.
    """

    strips: float
    bins: float
    columns: float
    cells: float
    store: float


def find_kernel(code: bytes, itemsize: int) -> tuple[Kernel, dict[str, Loop]]:
    """Return the counts of a kernel in mode avg, and its loops by what they do; the output has elements of `itemsize` bytes."""
    lines = disassemble(code)
    paths = list(walk(find_loops(lines)))
    strips, bins, columns, cells = max((path for path in paths if "LDG" in path[-1]), key=len)[-4:]
    (store,) = (path[-1] for path in paths if "STG.E.128" in path[-1])

    def around(loop: Loop, inner: Loop) -> int:
        return shortest(lines, loop.first, inner.first) + shortest(lines, inner.last, loop.last) - 1

    kernel = Kernel(
        around(strips, bins), around(bins, columns), len(columns.own), len(cells.own), len(store.own) * itemsize / 16
    )  # fmt: skip
    return kernel, {"strips": strips, "bins": bins, "columns": columns, "cells": cells, "store": store}


def entries(low: float, high: float, scale: float, bins: int, ratio: int, size: int) -> list[list[int]]:
    """Return the cells that each bin reads along an axis."""
    of_axis = axis(low, high, scale, bins, ratio, True)
    found = []
    for p in range(bins):
        at = [min(max(s, 0), size - 1) for s in of_axis.samples(p, size) if -1 <= s <= size]
        found.append(sorted({int(s) for s in at} | {int(s) + 1 for s in at if s > int(s)}))
    return found


def count(case: Case, dtype: torch.dtype, kernel: Kernel) -> dict[str, float]:
    """Return the instructions of a thread per output element, by loop."""
    vector, size = launch.LOAD_BYTES // dtype.itemsize, case.output
    blocks = launch.cut_into_blocks(
        case.rois, case.channels, size, size, vector, dtype.itemsize, PROCESSORS, launch.MAX_THREADS, False
    )
    runs = dict.fromkeys(("strips", "bins", "columns", "cells"), 0.0)
    rois = make(case)[1][:100].tolist()
    for _, x1, y1, x2, y2 in rois:
        y = entries(y1, y2, 1 / case.stride, size, case.ratio, case.height)
        x = entries(x1, x2, 1 / case.stride, size, case.ratio, case.width)
        more = sum(max(math.ceil(len(cells) / 4) - 1, 0) for cells in y)
        cuts = [
            x[first : first + blocks.strip]
            for begin in range(0, size, blocks.columns)
            for first in range(begin, min(begin + blocks.columns, size), blocks.strip)
        ]
        runs["strips"] += size * len(cuts)
        runs["bins"] += size * size
        columns = sum(len(set(itertools.chain(*cut))) for cut in cuts)
        runs["columns"] += size * columns
        runs["cells"] += more * columns
    elements = len(rois) * size * size * vector
    found = {name: number / elements * getattr(kernel, name) for name, number in runs.items()}
    found["store"] = kernel.store
    return {**found, "all": sum(found.values())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, help="another version of the kernel")
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    source = options.source.read_text() if options.source else cuda.source()
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        defines = launch.specialise(dtype, "avg", launch.LOAD_BYTES // dtype.itemsize)
        kernel, loops = find_kernel(nvrtc.compile_source(source, defines, options.capability).code, dtype.itemsize)
        print(f"{dtype}: {kernel}")
        for name, loop in loops.items():
            kinds = ", ".join(f"{kind} {number}" for kind, number in loop.kinds.items() if number)
            print(f"  {name}, all instructions: {len(loop.own)} ({kinds})")
        for case in CASES:
            found = count(case, dtype, kernel)
            rows.append(
                {"dtype": str(dtype), "case": str(case), **{name: round(value, 2) for name, value in found.items()}}
            )
            print(f"  {case}: " + ", ".join(f"{name} {value:.1f}" for name, value in found.items()))
    if options.json:
        facts = {"date": time.strftime("%Y-%m-%d"), "nvrtc": nvrtc.version(), "capability": options.capability}
        options.json.write_text(json.dumps({"machine": facts, "per element": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
