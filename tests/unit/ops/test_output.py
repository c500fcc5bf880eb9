"""Test that large outputs on the CPU use the memory of dead ones again, and never that of living ones."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor

from roialign_cli import roi_align
from roialign_cli.ops.cpu import output

MIB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    output.limit_kept_outputs(0)
    output.limit_kept_outputs(output.KEPT_BYTES)
    yield
    output.limit_kept_outputs(0)
    output.limit_kept_outputs(output.KEPT_BYTES)


def pool(value: float, rois: int = 40) -> Tensor:
    """Pool RoIs of a map that is `value` everywhere: 40 RoIs give 2.6 MB."""
    features = torch.full((1, 256, 9, 11), value).contiguous(memory_format=torch.channels_last)
    return roi_align(features, torch.tensor([[0.0, 1, 1, 9, 7]]).repeat(rois, 1), 8)


def test_the_memory_of_a_dead_output_is_used_again() -> None:
    first = pool(1.0)
    address = first.data_ptr()
    del first
    assert output.kept_bytes() > 0
    again = pool(2.0)
    assert again.data_ptr() == address
    assert torch.equal(again, torch.full_like(again, 2.0))


@pytest.mark.parametrize(
    "view",
    [lambda t: t[3], lambda t: t.view(-1)[5:], lambda t: t.numpy(), lambda t: t.detach(), lambda t: memoryview(t.numpy())],
    ids=["row", "slice", "numpy", "detach", "memoryview"],
)  # fmt: skip
def test_memory_stays_while_anything_uses_it(view: object) -> None:
    part = view(pool(1.0))  # type: ignore[operator]
    others = [pool(2.0), pool(3.0)]
    assert (np.asarray(part) == 1.0).all()
    del others
    assert output.kept_bytes() > 0


def test_outputs_of_other_sizes_take_blocks_that_fit_well() -> None:
    large = pool(1.0, 400)
    size, address = large.nbytes, large.data_ptr()
    del large
    assert pool(1.0, 40).data_ptr() != address  # a tenth of the block would be used
    assert pool(1.0, 380).data_ptr() == address
    assert pool(1.0, 800).data_ptr() != address
    assert output.kept_bytes() >= size


def test_kept_memory_stays_below_its_limit() -> None:
    output.limit_kept_outputs(8 * MIB)
    outputs = [pool(1.0) for _ in range(8)]
    del outputs
    assert 4 * MIB <= output.kept_bytes() <= 8 * MIB
    output.limit_kept_outputs(0)
    assert output.kept_bytes() == 0
    pool(1.0)
    assert output.kept_bytes() == 0


def test_a_limit_that_is_none_changes_nothing() -> None:
    for wrong, error in ((-1, ValueError), ("x", TypeError), (1.5, TypeError)):
        with pytest.raises(error):
            output.limit_kept_outputs(wrong)
    pool(1.0)
    assert output.kept_bytes() > 0


def test_a_block_is_hardly_larger_than_its_output() -> None:
    pool(1.0, 21)  # 1.4 MB
    assert 21 * 256 * 64 * 4 <= output.kept_bytes() < 21 * 256 * 64 * 4 + output.PAGE_BYTES


def test_small_outputs_are_not_kept() -> None:
    pool(1.0, 4)
    assert output.kept_bytes() == 0


def test_threads_never_share_memory() -> None:
    def work(seed: int) -> bool:
        good, held = True, []
        for turn in range(30):
            value = float(seed * 100 + turn)
            held.append((value, pool(value)))
            if turn % 3 == 2:
                good &= all(bool((features == value).all()) for value, features in held)
                held = held[1:2]
        return good

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(work, range(6)))


def pool_in_child(features: Tensor, rois: Tensor) -> None:
    # NumPy compares: torch's own threads hang in a child of a process that has used them.
    assert (roi_align(features, rois, 8).numpy() == 5.0).all()


def test_a_forked_child_does_not_write_to_the_memory_of_its_parent() -> None:
    kept = pool(1.0)
    pool(2.0)  # dies at once: parent and child both inherit its block
    arguments = torch.full((1, 256, 9, 11), 5.0), torch.tensor([[0.0, 1, 1, 9, 7]]).repeat(40, 1)
    child = multiprocessing.get_context("fork").Process(target=pool_in_child, args=arguments)
    child.start()
    mine = pool(3.0)
    child.join(60)
    assert child.exitcode == 0
    assert torch.equal(kept, torch.ones_like(kept))
    assert torch.equal(mine, torch.full_like(mine, 3.0))


def test_an_output_larger_than_all_memory_is_a_memory_error() -> None:
    features = torch.empty(1, 1 << 20, 1, 1).expand(1, 1 << 20, 2, 2)
    with pytest.raises(MemoryError, match="bytes for an output"):
        roi_align(features, torch.zeros(1 << 16, 5), 4096)
