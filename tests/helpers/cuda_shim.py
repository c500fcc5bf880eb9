"""Run the CUDA kernels on machines without a GPU: g++ compiles the same .cu, and every thread of a block is a real thread."""

from __future__ import annotations

import dataclasses
import struct
import subprocess
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from roialign_cli.ops import request
from roialign_cli.ops.cells import Cells
from roialign_cli.ops.cuda import cells as cuda_cells
from roialign_cli.ops.cuda import launch, list_launch
from roialign_cli.ops.cuda import run as cuda

LAUNCHES = pytest.StashKey[int]()  # how many launches conform, for the summary of the session
FOLDER = Path(__file__).parent / "shim"
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
THREADS = 64  # of a block; the kernels take any number


@dataclass(frozen=True)
class Case:
    """A launch of a kernel: the arrays whose addresses its record holds, by their place in it in bytes, and its output."""

    launch: launch.Launch
    arrays: Mapping[int, bytes]
    out_place: int
    out: torch.Tensor


class Shim:
    """Compile variants of a kernel and the program that launches them in a folder."""

    def __init__(
        self,
        folder: Path,
        sanitizer: str,
        variants: Sequence[launch.Defines],
        kernel: str = cuda.ENTRY,
        record: np.dtype[np.void] = launch.CALL,
    ) -> None:
        flags = [
            "-std=c++20",
            "-O1",
            "-ffp-contract=fast",  # as NVRTC does by default; g++ also needs the next two for it
            "-fexpensive-optimizations",
            "-march=native",
            "-g1",
            "-pthread",
            "-Wall",
            "-Wno-unknown-pragmas",
            "-Wno-parentheses",
            "-Werror",
            *SANITIZERS[sanitizer],
        ]
        self.folder, self.kernel, self.launches = folder, kernel, 0
        names = {variant: self._name(variant) for variant in variants}
        listing = folder / "kernels.h"
        listed = " ".join(f"KERNEL({name}, {record.itemsize})" for name in names.values())
        listing.write_text(f"#define KERNEL_LIST {listed}\n")
        source = folder / f"{kernel}.cu"
        source.write_text(cuda.source(kernel))

        def compile_variant(variant: launch.Defines) -> str:
            target = folder / f"{names[variant]}.o"
            defines = [f"-D{name}={value}" for name, value in variant]
            own = [f"-DENTRY={names[variant]}", "-include", str(FOLDER / "cuda_shim.h"), "-x", "c++"]
            _check(["g++", *flags, *defines, *own, "-c", str(source), "-o", str(target)])
            return str(target)

        def compile_runner() -> str:
            target = folder / "runner.o"
            kernels = f'-DKERNELS="{listing}"'
            _check(["g++", *flags, f"-I{FOLDER}", kernels, "-c", str(FOLDER / "runner.cpp"), "-o", str(target)])
            return str(target)

        with ThreadPoolExecutor() as pool:
            runner = pool.submit(compile_runner)
            objects = list(pool.map(compile_variant, variants))
        self.program = folder / "runner"
        _check(["g++", *flags, *objects, runner.result(), "-o", str(self.program)])

    def run(self, calls: Sequence[request.Request], processors: int = 4) -> list[torch.Tensor]:
        """Return the pooled features of each call of `roi_align`."""
        cases = []
        for call in calls:
            out = torch.empty(call.shape, dtype=call.dtype)
            planned = launch.plan_launch(call, out, processors, THREADS)
            arrays = {i * launch.LEVEL.itemsize: _storage(m) for i, m in enumerate(call.maps)}
            for name, values in (("rois", call.rois), ("levels", call.levels)):
                arrays[_place(launch.CALL, name)] = b"" if values is None else _storage(values.contiguous())
            cases.append(Case(planned, arrays, _place(launch.CALL, "out"), out))
        return self.run_cases(cases)

    def run_cells(self, cells: Cells) -> torch.Tensor:
        """Return the pooled features of bins that are lists of cells, in as many launches as there are parts of the lists."""
        out = torch.full(cells.request.shape, torch.nan, dtype=cells.request.dtype)
        for lists in cuda_cells.fill_all(cells):
            planned = list_launch.plan_list_launch(cells, lists, out, THREADS)
            arrays = {8 * i: _storage(m) for i, m in enumerate(cells.request.maps)}
            for field in dataclasses.fields(lists):
                arrays[_place(list_launch.CALL, field.name)] = _storage(getattr(lists, field.name))
            (found,) = self.run_cases([Case(planned, arrays, _place(list_launch.CALL, "out"), out)])
            out[lists.rows] = found[lists.rows]
        return out

    def run_cases(self, launches: Sequence[Case]) -> list[torch.Tensor]:
        """Return the output of each launch."""
        cases = [struct.pack("<q", len(launches))]
        for case in launches:
            planned = case.launch
            name = self._name(planned.defines).encode()
            cases += [struct.pack("<q", len(name)), name]
            cases.append(struct.pack("<5q", *planned.grid, planned.threads, planned.shared))
            cases += [struct.pack("<q", planned.call.nbytes), planned.call.tobytes()]
            cases.append(struct.pack("<q", len(case.arrays)))
            for place, array in case.arrays.items():
                cases += [struct.pack("<2q", place, len(array)), array]
            cases.append(struct.pack("<2q", case.out_place, case.out.nbytes))
        (self.folder / "cases").write_bytes(b"".join(cases))
        _check([str(self.program), str(self.folder / "cases"), str(self.folder / "out")])
        data, at, outs = bytearray((self.folder / "out").read_bytes()), 0, []
        for case in launches:
            outs.append(
                torch.frombuffer(data, dtype=case.out.dtype, count=case.out.numel(), offset=at).view(case.out.shape)
            )
            at += case.out.nbytes
        self.launches += len(launches)
        return outs

    def _name(self, defines: launch.Defines) -> str:
        return "_".join([self.kernel, *(value for _, value in defines)])


def _place(record: np.dtype[np.void], name: str) -> int:
    """Return the place of a field in a record, in bytes."""
    assert record.fields is not None
    return record.fields[name][1]


def _storage(features: torch.Tensor) -> bytes:
    """Return the bytes that a tensor reaches over, from its first element to its last."""
    if features.numel() == 0:
        return b""
    reach = 1 + sum((size - 1) * stride for size, stride in zip(features.shape, features.stride(), strict=True))
    return features.as_strided((reach,), (1,)).view(torch.uint8).numpy().tobytes()


def _check(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-8000:]}"
