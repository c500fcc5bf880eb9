"""Plan one launch of `roi_align.cu`: how the work is divided into blocks, and the record that the kernel receives.

This is plain arithmetic that needs no device; the tests run the same launches on the CPU.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from roialign_cli.errors import KernelError
from roialign_cli.ops.cuda.nvrtc import Defines
from roialign_cli.ops.request import REDUCTIONS, Request

ELEMENTS = {torch.float32: "float", torch.float64: "double", torch.float16: "float16", torch.bfloat16: "bfloat16"}
MAX_LEVELS = 16
MAX_THREADS = 224
MAX_GRID = 65535  # blocks along y and z
WARP = 32
LOAD_BYTES = 16  # the widest load of a thread
TILE_BYTES = 30 << 10  # tile and lists together stay below MAX_SHARED_BYTES
LIST_BYTES = 16 << 10
MAX_SHARED_BYTES = 48 << 10  # that every device gives a block without being asked
MAX_OFFSET = (1 << 30) - 1  # of a cell in its map, in vectors
PLACE_BYTES = 8  # of a List
AXIS_BYTES = 48
MAX_BINS = 128  # of both axes of a block
FEWEST_LANES = 8  # with which a block still reads whole cache lines of a map
BUSY_THREADS = 128  # threads that a block should have even with few channels

# The two records of roi_align.cu, field by field in the same order.
_LEVEL = [(name, np.int64) for name in ("address", "height", "width", "stride_n", "stride_c", "stride_y", "stride_x")]
LEVEL = np.dtype([*_LEVEL, ("scale", np.float64)])
CALL = np.dtype([
    ("level", LEVEL, MAX_LEVELS),
    *((name, np.int64) for name in (
        "rois", "levels", "out",
        "rois_are_double", "level_count", "images", "channels", "ph", "pw", "ratio", "aligned", "reduce",
        "lanes", "rows", "columns", "strip", "chunks",
        "y_capacity", "y_per_cell", "y_per_bin", "x_capacity", "x_per_cell", "x_per_bin",
    )),
])  # fmt: skip


@dataclass(frozen=True)
class Blocks:
    """Describe how the work is divided.

    A block computes rows x columns bins of one RoI, and `chunks` times lanes * vector channels, one chunk after the other.
    """

    vector: int
    lanes: int
    rows: int
    columns: int
    strip: int
    chunks: int
    threads: int
    grid: tuple[int, int, int]


@dataclass(frozen=True)
class Lists:
    """Describe the shared memory for the weights of one axis of a block.

    It has `capacity` entries. The list of a bin takes at most per_cell * (cells under the bin) + per_bin entries, unless
    `overflow` is set.
    """

    capacity: int
    per_cell: int
    per_bin: int
    overflow: bool


@dataclass(frozen=True)
class Launch:
    """Hold what the driver needs: which kernel, how many blocks and threads, and the one argument."""

    defines: Defines
    grid: tuple[int, int, int]
    threads: int
    shared: int
    call: npt.NDArray[np.void]


def specialise(
    dtype: torch.dtype, mode: str, vector: int, *, written: torch.dtype | None = None, overflow: bool = False
) -> Defines:
    """Return the macros that specialise the kernel: element type, mode, channels per load; `written` is the output's type."""
    return (
        ("ELEMENT", ELEMENTS[dtype]), ("WRITTEN", ELEMENTS[written or dtype]), ("MODE", mode.upper()),
        ("VECTOR", str(vector)), ("LONG_LISTS", str(int(overflow))),
    )  # fmt: skip


def can_reduce(request: Request) -> bool:
    """Return whether one block can hold all bins of some channels, which it must to reduce them."""
    ph, pw = request.output_size
    return (
        ph + pw <= MAX_BINS
        and tile_bytes(loaded_channels(request.maps) * ph * pw, request.dtype.itemsize) <= TILE_BYTES
    )


def plan_launch(request: Request, out: Tensor, processors: int, max_threads: int = MAX_THREADS) -> Launch:
    """Return the launch that pools a request into a contiguous `out`.

    K, C, PH and PW are at least 1, and `can_reduce` accepts the request if it reduces. `processors` is the number of
    multiprocessors to keep busy.

    Raises KernelError for more levels than the kernel supports, or sizes that exceed a grid.
    """
    maps, (ph, pw) = request.maps, request.output_size
    if len(maps) > MAX_LEVELS:
        message = f"kernel cuda: expected at most {MAX_LEVELS} levels, found {len(maps)}"
        raise KernelError("kernel-levels", message, "pool them in several calls")
    size, channels = maps[0].element_size(), maps[0].shape[1]
    vector, written, whole = loaded_channels(maps), request.dtype.itemsize, request.reduce != "none"
    blocks = cut_into_blocks(len(request.rois), channels, ph, pw, vector, written, processors, max_threads, whole)
    if max(blocks.grid[1:]) > MAX_GRID:
        message = f"kernel cuda: expected at most {MAX_GRID} parts of bins or channels, found {blocks.grid[1:]}"
        raise KernelError("kernel-size", message, "use kernel torchvision")
    reach = max(sum((m.shape[axis] - 1) * m.stride(axis) for axis in (2, 3)) for m in maps) // vector
    if reach > MAX_OFFSET:
        message = f"kernel cuda: expected maps whose cells lie at most {MAX_OFFSET} loads apart, found {reach}"
        raise KernelError("kernel-size", message, "use kernel torchvision")
    height, width = (max(m.shape[axis] for m in maps) for axis in (2, 3))
    entry = 16 if maps[0].dtype == torch.float64 else 8  # bytes
    y = lists(request.mode, request.sampling_ratio, height, blocks.rows, LIST_BYTES // 2 // entry)
    x = lists(request.mode, request.sampling_ratio, width, blocks.columns, LIST_BYTES // 2 // entry)

    call = np.zeros((), CALL)
    for i, (m, scale) in enumerate(zip(maps, request.scales, strict=True)):
        call["level"][i] = (m.data_ptr(), *m.shape[2:], *(stride * size for stride in m.stride()), scale)
    fields = {
        "rois": request.rois.data_ptr(),
        "levels": 0 if request.levels is None else request.levels.data_ptr(),
        "out": out.data_ptr(),
        "rois_are_double": request.rois.dtype == torch.float64,
        "level_count": len(maps), "images": maps[0].shape[0], "channels": channels, "ph": ph, "pw": pw,
        "ratio": request.sampling_ratio, "aligned": request.aligned, "reduce": REDUCTIONS.index(request.reduce),
        "lanes": blocks.lanes, "rows": blocks.rows, "columns": blocks.columns, "strip": blocks.strip,
        "chunks": blocks.chunks,
        "y_capacity": y.capacity, "y_per_cell": y.per_cell, "y_per_bin": y.per_bin,
        "x_capacity": x.capacity, "x_per_cell": x.per_cell, "x_per_bin": x.per_bin,
    }  # fmt: skip
    for name, value in fields.items():
        call[name] = value
    shared = (
        2 * AXIS_BYTES
        + entry * (y.capacity + x.capacity)
        + PLACE_BYTES * (blocks.rows + blocks.columns)
        + tile_bytes(blocks.lanes * vector * blocks.rows * blocks.columns, written)
    )
    if shared > MAX_SHARED_BYTES:
        found = f"{shared} for {blocks}"
        message = f"kernel cuda: expected blocks of at most {MAX_SHARED_BYTES} bytes of shared memory, found {found}"
        raise KernelError("kernel-size", message, "use kernel torchvision")
    defines = specialise(maps[0].dtype, request.mode, vector, written=request.dtype, overflow=y.overflow or x.overflow)
    return Launch(defines, blocks.grid, blocks.threads, shared, call)


def loaded_channels(maps: Sequence[Tensor]) -> int:
    """Return the channels per load: at most 16 bytes, and a divisor of every address that a thread reads at."""
    size = maps[0].element_size()
    if any(m.stride(1) != 1 for m in maps):
        return 1
    aligned = [maps[0].shape[1] * size]
    for m in maps:
        aligned += [m.data_ptr(), *(m.stride(axis) * size for axis in (0, 2, 3) if m.shape[axis] > 1)]
    vector = LOAD_BYTES // size
    while any(place % (vector * size) for place in aligned):
        vector //= 2
    return vector


@functools.lru_cache(maxsize=256)
def cut_into_blocks(
    rois: int, channels: int, ph: int, pw: int, vector: int, size: int, processors: int, max_threads: int, whole: bool
) -> Blocks:
    """Return blocks whose tile fits into shared memory, and enough of them to keep every multiprocessor busy if possible.

    `size` is the bytes of an output element. `whole` puts all bins of a RoI into one block, with fewer channels if needed.
    """
    vectors = channels // vector
    lanes = most_lanes = min(WARP, 1 << (vectors - 1).bit_length())

    def fits(rows: int, columns: int, lanes: int) -> bool:
        return rows + columns <= MAX_BINS and tile_bytes(lanes * vector * rows * columns, size) <= TILE_BYTES

    # If it can, a block computes all bins of its channels: its output is one run of memory then. Many runs that begin
    # anywhere in a sector of memory took three times as long on an H200.
    while lanes > (1 if whole else FEWEST_LANES) and not fits(ph, pw, lanes):
        lanes //= 2
    if not fits(ph, pw, lanes):
        lanes = most_lanes
    per_block = min(WARP // lanes, -(-vectors // lanes))
    chunks = -(-vectors // (lanes * per_block))
    columns = next(n for n in (-(-pw // parts) for parts in range(1, pw + 1)) if fits(1, n, lanes))
    rows = next(n for n in (-(-ph // parts) for parts in range(1, ph + 1)) if fits(n, columns, lanes))
    column_blocks = -(-pw // columns)
    while not whole and rows > 1 and rois * chunks * -(-ph // rows) * column_blocks < 2 * processors:
        rows = -(-rows // 2)
    strip = columns
    while strip > 1 and lanes * rows * -(-columns // strip) < BUSY_THREADS:
        strip = -(-strip // 2)
    jobs = rows * -(-columns // strip)
    at_once = -(-jobs // -(-jobs * lanes // max_threads))  # as many in the last round as in those before
    threads = -(-lanes * at_once // WARP) * WARP
    grid = (rois, chunks, -(-ph // rows) * column_blocks)
    return Blocks(vector, lanes, rows, columns, strip, per_block, min(threads, max_threads), grid)


def lists(mode: str, ratio: int, side: int, bins: int, most: int) -> Lists:
    """Return the lists for the weights of `bins` bins of an axis of up to `side` cells, with `most` entries or fewer.

    A bin over n cells reads at most n + 2 of them, and at most two per sample. In mode max it keeps every sample inside the
    map; with an adaptive grid these lie at least half a cell apart.
    """
    per_cell, per_bin = (2, 4) if mode == "max" else (1, 3)
    capacity = per_cell * (side + 1) + per_bin * bins
    fixed = ratio * (1 if mode == "max" else 2)
    if ratio > 0 and mode != "exact" and (mode == "max" or fixed * bins < capacity):
        per_cell, per_bin, capacity = 0, fixed, fixed * bins
    return Lists(min(capacity, most), per_cell, per_bin, capacity > most)


def tile_bytes(elements: int, size: int) -> int:
    """Return the bytes of a tile of output elements, padded as `tile_index` in elements.cuh does."""
    group = 128 // size
    return (elements + (elements // group + elements // (8 * group)) * max(4 // size, 1)) * size
