"""Test each intrinsic of the CPU kernel alone: pointers, narrow floats, transposes in registers, streamed lines."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from numba import njit

from roialign_cli.ops.cpu import intrinsics
from roialign_cli.ops.cpu.jit import OPTIONS

STORED = [np.float32, np.float64, np.uint16, np.int16]  # uint16 holds bfloat16 bits, int16 float16 bits
BITS = {2: np.uint16, 4: np.uint32, 8: np.uint64}
FLOAT16, BFLOAT16 = np.dtype(np.int16), np.dtype(np.uint16)

jit = njit(**OPTIONS)


def bits(values: npt.NDArray[np.generic]) -> npt.NDArray[np.unsignedinteger]:
    return values.view(BITS[values.itemsize])


def random_elements(shape: tuple[int, ...], dtype: npt.DTypeLike, seed: int = 0) -> npt.NDArray[np.generic]:
    """Return elements of random bits, which are floats of every kind, also NaN."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer(np.random.default_rng(seed).bytes(size), dtype).reshape(shape).copy()


def assert_same_floats(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> None:
    """Check that numbers agree in all bits, and NaN in being NaN of the same sign: conversions may change its payload."""
    assert found.dtype == expected.dtype
    nan = np.isnan(expected)
    assert np.array_equal(np.isnan(found), nan)
    assert np.array_equal(bits(found)[~nan], bits(expected)[~nan])
    assert np.array_equal(np.signbit(found), np.signbit(expected))


def as_floats(stored: npt.NDArray[np.generic]) -> npt.NDArray[np.floating]:
    """Return what stored elements stand for, in the narrowest type that NumPy has for it."""
    if stored.dtype == BFLOAT16:
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return stored.view(np.float16) if stored.dtype == FLOAT16 else stored


@jit
def copy_by_pointer(target, source, first, count, witness):
    t, s = intrinsics.pointer(target, witness), intrinsics.pointer(source, witness)
    for i in range(first, first + count):
        t[i] = s[i]


@pytest.mark.parametrize("dtype", STORED)
def test_a_pointer_reaches_elements_on_both_sides_of_its_address(dtype: npt.DTypeLike) -> None:
    source, target = random_elements((12,), dtype), np.zeros(12, dtype)
    width = target.itemsize
    copy_by_pointer(target.ctypes.data + 6 * width, source.ctypes.data + 6 * width, -4, 7, np.empty(0, dtype))
    expected = np.zeros(12, dtype)
    expected[2:9] = source[2:9]
    assert np.array_equal(bits(target), bits(expected))


@jit
def widen_all(stored, out):
    for i in range(stored.size):
        out[i] = intrinsics.widen_float(stored[i], out)


def widened(stored: npt.NDArray[np.generic], unit: npt.DTypeLike) -> npt.NDArray[np.floating]:
    out = np.empty(stored.size, unit)
    widen_all(stored, out)
    return out


@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_every_narrow_float_is_widened_exactly(dtype: npt.DTypeLike) -> None:
    stored = np.arange(1 << 16).astype(np.uint16).view(dtype)
    assert_same_floats(widened(stored, np.float32), as_floats(stored).astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_wide_floats_stay_as_they_are(dtype: npt.DTypeLike) -> None:
    stored = random_elements((1000,), dtype)
    assert np.array_equal(bits(widened(stored, dtype)), bits(stored))


@jit
def narrow_all(sums, out):
    for i in range(sums.size):
        out[i] = intrinsics.narrow_float(sums[i], out)


def narrowed(sums: npt.NDArray[np.floating], written: npt.DTypeLike) -> npt.NDArray[np.generic]:
    out = np.empty(sums.size, written)
    narrow_all(sums, out)
    return out


def between(dtype: npt.DTypeLike) -> npt.NDArray[np.float32]:
    """Return every narrow float, the middle to the next one, and the float32 neighbours of both."""
    with np.errstate(all="ignore"):
        exact = as_floats(np.arange(1 << 16).astype(np.uint16).view(dtype)).astype(np.float32)
        middle = (exact[:-1].astype(np.float64) + exact[1:].astype(np.float64)).astype(np.float32) / 2
        points = np.concatenate([exact, middle[np.isfinite(middle)]])
        up, down = np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))
    quiet = np.array([0x7F800001, 0xFF800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FC00000], np.uint32).view(np.float32)
    return np.concatenate([points, up, down, quiet])


def test_float32_is_rounded_to_bfloat16_as_torch_does() -> None:
    sums = between(np.uint16)
    expected = torch.from_numpy(sums).to(torch.bfloat16).float().numpy()
    found = as_floats(narrowed(sums, np.uint16))
    number = ~np.isnan(sums)
    assert_same_floats(found[number], expected[number])
    assert np.isnan(found[~number]).all()
    assert np.array_equal(np.signbit(found[~number]), np.signbit(sums[~number]))


def test_float32_is_rounded_to_float16_as_numpy_does() -> None:
    sums = between(np.int16)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = sums.astype(np.float16)
    assert_same_floats(as_floats(narrowed(sums, np.int16)), expected)


@pytest.mark.parametrize("written", STORED)
def test_float64_is_rounded_to_float32_first(written: npt.DTypeLike) -> None:
    with np.errstate(all="ignore"):
        near = between(np.int16).astype(np.float64) * (1 + 2**-30)
        sums = np.concatenate([random_elements((1000,), np.float64), near])
        single = sums.astype(np.float32)
    expected = sums if written is np.float64 else single if written is np.float32 else narrowed(single, written)
    assert_same_floats(as_floats(narrowed(sums, written)), as_floats(expected))


def test_float32_becomes_float64_exactly() -> None:
    sums = random_elements((1000,), np.float32)
    with np.errstate(invalid="ignore"):
        assert_same_floats(narrowed(sums, np.float64), sums.astype(np.float64))
    assert np.array_equal(bits(narrowed(sums, np.float32)), bits(sums))


@jit
def transpose_square(source, source_stride, target, target_stride, witness):
    intrinsics.transpose(
        intrinsics.pointer(source, witness), source_stride, intrinsics.pointer(target, witness), target_stride
    )


@pytest.mark.parametrize("dtype", STORED)
def test_a_square_is_transposed_and_nothing_else_is_written(dtype: npt.DTypeLike) -> None:
    """The squares begin at odd elements of wider rows, so nothing is aligned to a vector."""
    lanes = intrinsics.LANES
    source, target = random_elements((lanes, lanes + 5), dtype), random_elements((lanes, lanes + 7), dtype, seed=1)
    expected = target.copy()
    expected[:, 3 : 3 + lanes] = source[:, 1 : 1 + lanes].T
    transpose_square(source[:, 1:].ctypes.data, lanes + 5, target[:, 3:].ctypes.data, lanes + 7, np.empty(0, dtype))
    assert np.array_equal(bits(target), bits(expected))


@jit
def stream_line_and_fence(target, source):
    intrinsics.stream_line(target, source)
    intrinsics.fence()


def test_a_line_is_streamed_whole_past_the_caches_and_fenced() -> None:
    line = intrinsics.LINE
    memory, source = (
        random_elements((5 * line,), np.uint16).view(np.uint8),
        np.arange(100, 100 + line + 3, dtype=np.uint8),
    )
    first = line + -memory.ctypes.data % line
    expected = memory.copy()
    expected[first : first + line] = source[3:]
    stream_line_and_fence(memory.ctypes.data + first, source.ctypes.data + 3)
    assert np.array_equal(memory, expected)
    (compiled,) = stream_line_and_fence.inspect_llvm().values()
    assert "!nontemporal" in compiled
    assert "fence seq_cst" in compiled
