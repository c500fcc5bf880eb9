"""Run the bundled CUDA kernel for bins that are lists of cells. The host fills the lists, so this waits for the RoIs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from roialign_cli.ops.cells import Cells, Indices, Lists, fill_lists
from roialign_cli.ops.cpu.run import describe
from roialign_cli.ops.cpu.threads import run_all
from roialign_cli.ops.cuda import nvrtc
from roialign_cli.ops.cuda.list_launch import ListTensors, plan_list_launch
from roialign_cli.ops.cuda.run import capability, source
from roialign_cli.ops.request import finish
from roialign_cli.system.device_queue import upload

ENTRY = "pool_lists"
ROWS = 64  # RoIs whose lists a thread fills at a time
ENTRIES = 1 << 18


def run(cells: Cells, out: Tensor | None) -> Tensor:
    """Return the pooled features of a request on CUDA tensors, in `out` if given.

    Raises KernelError if the kernel cannot be built, loaded or launched here.
    """
    request = cells.request
    device = request.maps[0].device
    if request.reduce != "none":
        return finish(run(cells.without_reduction(), None), request, out)
    if out is None:
        out = torch.empty(request.shape, dtype=request.dtype, device=device)
    if out.numel() == 0:
        return out
    with torch.cuda.device(device):
        nvrtc.use_device(torch.cuda.current_device())
        for host in fill_all(cells):
            names = ListTensors.__dataclass_fields__
            lists = ListTensors(**{name: upload(getattr(host, name), device) for name in names})
            launch = plan_list_launch(cells, lists, out)
            kernel = nvrtc.load(source(ENTRY), ENTRY, launch.defines, capability(device))
            stream = torch.cuda.current_stream(device).cuda_stream
            nvrtc.launch(kernel, launch.grid, launch.threads, launch.shared, stream, launch.call)
    return out


def fill_all(cells: Cells, rows: Indices | None = None, maps: Indices | None = None) -> Iterator[ListTensors]:
    """Yield the lists of RoIs in parts, filled on all threads; a thread's parts are in memory at a time.

    rows: the RoIs, all by default. maps: their description, if it is not that of the request's maps.
    """
    if rows is None:
        rows = np.arange(len(cells.request.rois))
    if maps is None:
        maps = np.array([describe(m) for m in cells.request.maps], np.int64)
    parts = iter(np.array_split(rows, max(1, -(-len(rows) // ROWS))))
    while window := list(islice(parts, torch.get_num_threads())):
        found: list[list[ListTensors]] = [[] for _ in window]
        run_all([partial(_fill, cells, part, maps, result) for part, result in zip(window, found, strict=True)])
        for result in found:
            yield from result


def _fill(cells: Cells, rows: Indices, maps: Indices, result: list[ListTensors]) -> None:
    """Append the lists of RoIs to a result, in as many parts as needed."""
    lists = Lists.empty(len(rows), math.prod(cells.request.output_size), ENTRIES, int((maps[:, 1] * maps[:, 2]).max()))
    result.extend(ListTensors.of(cells, some, filled) for some, filled in fill_lists(cells.fill, rows, maps, lists))
