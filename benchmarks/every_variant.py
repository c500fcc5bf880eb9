"""Run every variant of the CUDA kernel once on small inputs and check it, as work for compute-sanitizer and ncu.

    compute-sanitizer --tool memcheck python benchmarks/every_variant.py [--dry]
    ncu --kernel-name roi_align python benchmarks/every_variant.py --case 0 --dtype bfloat16

Element type, mode, layout, long lists, reduction, and a pyramid of two levels; against the float64 reference. With --case, one
case of benchmarks/cpu.py is launched three times instead, unchecked. --dry does it on the CPU.
"""

from __future__ import annotations

import argparse
import itertools
from typing import Any

import torch
from cpu import CASES, make

from roialign_cli import roi_align

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def check_all(device: torch.device) -> int:
    """Return the number of calls that were checked."""
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(6, 2, generator=generator) * 40 - 8
    boxes = torch.cat([corner, corner + torch.rand(6, 2, generator=generator) * 40], 1)
    rois = torch.cat([torch.arange(6)[:, None] % 2, boxes], 1).double()
    levels = torch.arange(6) % 2
    wide = torch.randn(1, 5, 2, 1500, generator=generator).double()  # its lists exceed the room of a block
    across = torch.tensor([[0, -3, 0, 1500, 2]]).double()
    checked = 0
    for dtype, mode, last, reduce in itertools.product(
        TOLERANCE, ("avg", "max", "exact"), (False, True), ("none", "mean")
    ):
        maps = [torch.randn(2, 20, *size, generator=generator).double() for size in ((13, 17), (7, 9))]
        calls: list[tuple[Any, ...]] = [
            (maps, rois, (7, 3), {"spatial_scale": (0.5, 0.25), "levels": levels, "sampling_ratio": 2}),
            (maps[:1], rois, (3, 14), {"spatial_scale": 0.5}),
            ([wide], across, (1, 1), {}),
        ]
        for features, table, size, settings in calls:
            form = torch.channels_last if last else torch.contiguous_format
            there = [m.to(dtype).to(device, memory_format=form) for m in features]
            rounded = [m.to(dtype).double() for m in features]
            found = roi_align(there, table.to(device), size, mode=mode, reduce=reduce, **settings).cpu()
            expected = roi_align(rounded, table, size, mode=mode, reduce=reduce, kernel="reference", **settings)
            error = float((found.double() - expected).abs().max() / expected.abs().max())
            assert error < TOLERANCE[dtype], (dtype, mode, last, reduce, size, error)
            checked += 1
    return checked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", type=int)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    device = torch.device("cpu" if options.dry else "cuda")
    if options.case is None:
        print(f"{check_all(device)} calls are right")
        return
    case = CASES[options.case]
    features, rois = make(case)
    there = features.to(device, getattr(torch, options.dtype), memory_format=torch.channels_last)
    for _ in range(3):
        roi_align(
            there,
            rois.to(device),
            case.output,
            spatial_scale=1 / case.stride,
            sampling_ratio=case.ratio,
            validate=False,
        )
    print(f"{case}, {options.dtype}: launched")


if __name__ == "__main__":
    main()
