"""Test how a launch of the CUDA kernel is planned, which needs no device."""

from __future__ import annotations

import pytest
import torch
from helpers.requests import make_request
from hypothesis import given, settings
from hypothesis import strategies as st

from roialign_cli.errors import KernelError
from roialign_cli.ops.cuda import launch


@settings(max_examples=300, deadline=None)
@given(
    channels=st.integers(1, 300),
    side=st.sampled_from([1, 7, 100, 800, 1800]),
    size=st.tuples(st.integers(1, 160), st.integers(1, 160)),
    ratio=st.integers(0, 40),
    mode=st.sampled_from(["avg", "max", "exact"]),
    dtype=st.sampled_from(list(launch.ELEMENTS)),
    written=st.sampled_from([None, torch.float32, torch.float16]),
    nhwc=st.booleans(),
    processors=st.sampled_from([1, 132, 10_000]),
)
def test_a_block_fits_into_shared_memory(
    channels: int, side: int, size: tuple[int, int], ratio: int, mode: str, dtype: torch.dtype,
    written: torch.dtype | None, nhwc: bool, processors: int,
) -> None:  # fmt: skip
    strides = (0, 1, channels * side, channels) if nhwc else (0, side * side, side, 1)
    maps = torch.empty(0, dtype=dtype).as_strided((0, channels, side, side), strides)  # takes no memory
    rois = torch.zeros(100, 5)
    request = make_request([maps], rois, None, size, [1.0], ratio, True, mode, dtype=written)
    planned = launch.plan_launch(request, torch.empty(0), processors)
    assert planned.shared <= launch.MAX_SHARED_BYTES
    assert 1 <= planned.threads <= launch.MAX_THREADS
    assert planned.threads % launch.WARP == 0


def test_a_map_whose_cells_are_too_far_apart_is_refused() -> None:
    maps = torch.empty(0).as_strided((0, 1, 2, 1), (0, 1, launch.MAX_OFFSET + 1, 1))
    request = make_request([maps], torch.zeros(1, 5), None, (1, 1), [1.0], 2, True, "avg")
    with pytest.raises(KernelError) as caught:
        launch.plan_launch(request, torch.empty(0), 1)
    assert caught.value.reference == "kernel-size"
