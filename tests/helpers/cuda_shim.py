"""Run the CUDA kernel on machines without a GPU: g++ compiles the same .cu, and every thread of a block is a real thread."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from roialign_cli.ops import request
from roialign_cli.ops.cuda import launch
from roialign_cli.ops.cuda import run as cuda

LAUNCHES = pytest.StashKey[int]()  # how many launches conform, for the summary of the session
FOLDER = Path(__file__).parent / "shim"
SANITIZERS = {
    "address": ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
    "thread": ["-fsanitize=thread"],
}
THREADS = 64  # of a block; the kernel takes any number


class Shim:
    """Compile variants of the kernel and the program that launches them in a folder."""

    def __init__(self, folder: Path, sanitizer: str, variants: Sequence[launch.Defines]) -> None:
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
        self.folder, self.launches = folder, 0
        names = {variant: _name(variant) for variant in variants}
        listing = folder / "kernels.h"
        listing.write_text("#define KERNEL_LIST " + " ".join(f"KERNEL({name})" for name in names.values()) + "\n")
        source = folder / "roi_align.cu"
        source.write_text(cuda.source())

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
        """Return the pooled features of each call."""
        cases, outs = [struct.pack("<q", len(calls))], []
        for call in calls:
            out = torch.empty(call.shape, dtype=call.dtype)
            planned = launch.plan_launch(call, out, processors, THREADS)
            name = _name(planned.defines).encode()
            cases += [struct.pack("<q", len(name)), name]
            cases.append(struct.pack("<5q", *planned.grid, planned.threads, planned.shared))
            cases += [struct.pack("<q", planned.call.nbytes), planned.call.tobytes()]
            arrays = [call.rois, call.levels if call.levels is not None else torch.empty(0)]
            cases.append(struct.pack("<q", len(call.maps)))
            for array in (
                *map(_storage, call.maps),
                *(a.contiguous().view(torch.uint8).numpy().tobytes() for a in arrays),
            ):
                cases += [struct.pack("<q", len(array)), array]
            cases.append(struct.pack("<q", out.nbytes))
            outs.append(out)
        (self.folder / "cases").write_bytes(b"".join(cases))
        _check([str(self.program), str(self.folder / "cases"), str(self.folder / "out")])
        data, at = bytearray((self.folder / "out").read_bytes()), 0
        for i, out in enumerate(outs):
            outs[i] = torch.frombuffer(data, dtype=out.dtype, count=out.numel(), offset=at).view(out.shape)
            at += out.nbytes
        self.launches += len(calls)
        return outs


def _name(defines: launch.Defines) -> str:
    return "_".join(["roi_align", *(value for _, value in defines)])


def _storage(features: torch.Tensor) -> bytes:
    """Return the bytes that a map reaches over, from its first element to its last."""
    reach = 1 + sum((size - 1) * stride for size, stride in zip(features.shape, features.stride(), strict=True))
    return features.as_strided((reach,), (1,)).view(torch.uint8).numpy().tobytes()


def _check(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout[-4000:]}{done.stderr[-8000:]}"
