"""Test the gradients of all operators: by finite differences, as adjoints, against torchvision and closed forms, bit by bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torchvision
from helpers.tensors import layouts, make_rois, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.utils.checkpoint import checkpoint

from roialign_cli import (
    deform_roi_align,
    point_sample,
    ps_roi_align,
    roi_align,
    roi_align_masked,
    roi_align_rotated,
)
from roialign_cli.ops import torchvision as ops_torchvision
from roialign_cli.ops import transposed
from roialign_cli.ops.cells import Cells, channels_last
from roialign_cli.ops.cpu import gradient as cpu_gradient
from roialign_cli.ops.products import fill_products
from roialign_cli.ops.request import Request, new_totals

# Inside, across and outside of a map of 7 x 9 cells at scale 0.5, without area, on whole cells, smaller than a cell.
ROIS = torch.tensor(
    [[0, 0.7, 1.1, 12.3, 9.2], [1, -6.2, -3.3, 5.1, 22], [1, 3, 3, 3, 3], [0, 30, 30, 50, 50], [0, 2, 2, 6, 6],
     [1, 1.3, 2.2, 1.9, 2.7]], dtype=torch.float64,
)  # fmt: skip
SMOOTH = [0, 1, 5]  # those without samples on cells, where the surface has kinks
LEVELS = torch.tensor([0, 1, 0, 1, 1, 0])
TURNED = torch.cat(
    [ROIS[:, :1], (ROIS[:, 1:3] + ROIS[:, 3:]) / 2, ROIS[:, 3:] - ROIS[:, 1:3], torch.arange(6)[:, None] * 23.0], 1
)
TRIANGLE = [[1.0, 1, 9, 2, 5, 8]]

REDUCTIONS = pytest.mark.parametrize(
    "reduce", ["none", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mean", "max"))]
)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def features(channels: int = 3, height: int = 7, width: int = 9) -> Tensor:
    return random(2, channels, height, width, seed=channels).requires_grad_()


@REDUCTIONS
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("mode", ["avg", "exact", "max"])
def test_maps_and_boxes_by_finite_differences(mode: Any, ratio: int, aligned: bool, reduce: Any) -> None:
    arguments: dict[str, Any] = {
        "spatial_scale": 0.5, "sampling_ratio": ratio, "aligned": aligned, "mode": mode, "reduce": reduce,
    }  # fmt: skip
    assert gradcheck(lambda maps: roi_align(maps, ROIS, (2, 3), **arguments), (features(),))
    index, boxes = ROIS[SMOOTH, :1], ROIS[SMOOTH, 1:].clone().requires_grad_()
    assert gradcheck(lambda b: roi_align(features(), torch.cat([index, b], 1), (2, 3), **arguments), (boxes,))


def test_a_pyramid_by_finite_differences() -> None:
    fine, coarse = features(3, 7, 9), features(3, 4, 5)

    def pool(fine: Tensor, coarse: Tensor) -> Tensor:
        return roi_align([fine, coarse], ROIS, (3, 2), levels=LEVELS, spatial_scale=[0.5, 0.25], sampling_ratio=2)

    assert gradcheck(pool, (fine, coarse))
    only = torch.autograd.grad(pool(fine, coarse.detach()).sum(), fine)[0]
    both = torch.autograd.grad(pool(fine, coarse).sum(), (fine, coarse))
    assert torch.equal(only, both[0])


def test_coverage_has_no_gradient() -> None:
    pooled, coverage = roi_align_masked(features(), ROIS, [TRIANGLE] * 6, (2, 3), spatial_scale=0.5)
    assert pooled.requires_grad
    assert not coverage.requires_grad


@REDUCTIONS
@pytest.mark.parametrize("mode", ["avg", "exact"])
def test_other_regions_by_finite_differences(mode: Any, reduce: Any) -> None:
    arguments: dict[str, Any] = {"spatial_scale": 0.5, "mode": mode, "reduce": reduce}
    assert gradcheck(lambda m: roi_align_rotated(m, TURNED, (2, 3), **arguments), (features(),))
    assert gradcheck(lambda m: ps_roi_align(m, ROIS, (2, 2), **arguments), (features(12),))
    for normalize in ("mask", "bin"):
        masked: dict[str, Any] = {**arguments, "normalize": normalize}
        assert gradcheck(lambda m, a=masked: roi_align_masked(m, ROIS, [TRIANGLE] * 6, (2, 3), **a)[0], (features(),))


@pytest.mark.parametrize("reduce", ["none", "max"])
@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("mode", ["avg", "exact"])
def test_moved_bins_by_finite_differences(mode: Any, aligned: bool, reduce: Any) -> None:
    offsets, modulation = random(6, 2, 2, 3).requires_grad_(), random(6, 2, 3, seed=1).requires_grad_()

    def pool(fine: Tensor, coarse: Tensor, offsets: Tensor, modulation: Tensor) -> Tensor:
        return deform_roi_align(
            [fine, coarse], ROIS, offsets, (2, 3), modulation=modulation, levels=LEVELS, spatial_scale=[0.5, 0.25],
            mode=mode, aligned=aligned, reduce=reduce,
        )  # fmt: skip

    assert gradcheck(pool, (features(3, 7, 9), features(3, 4, 5), offsets, modulation))


def test_points_by_finite_differences() -> None:
    index, places = torch.tensor([[0.0], [1], [1]]), random(3, 2).abs().mul(6).requires_grad_()
    for aligned in (True, False):
        assert gradcheck(
            lambda m, p, a=aligned: point_sample(m, torch.cat([index, p], 1), spatial_scale=0.5, aligned=a),
            (features(), places),
        )


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_gradient_of_maps_is_the_adjoint(data: st.DataObject) -> None:
    """For every map M: <passed, pool(M)> = <gradient, M>, because the result is linear in the maps."""
    channels, height, width = (data.draw(st.integers(1, most)) for most in (130, 12, 12))
    output = data.draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    arguments: dict[str, Any] = {
        "spatial_scale": data.draw(st.sampled_from([1.0, 0.5, 1 / 14])), "aligned": data.draw(st.booleans()),
        "sampling_ratio": data.draw(st.integers(0, 3)), "mode": data.draw(st.sampled_from(["avg", "exact"])),
    }  # fmt: skip
    maps = random(2, channels, height, width)
    rois = make_rois(data.draw(st.integers(0, 12)), batch=2, width=2.0 * width, height=2.0 * height).double()
    layout = data.draw(st.sampled_from(sorted(layouts(maps))))
    leaf = layouts(maps)[layout].requires_grad_()
    result = roi_align(leaf, rois, output, **arguments)
    passed = random(*result.shape, seed=1)
    (gradient,) = torch.autograd.grad(result, leaf, passed)
    other = random(2, channels, height, width, seed=2)
    expected = (passed * roi_align(other, rois, output, **arguments)).sum()
    assert float(abs((gradient * other).sum() - expected)) <= 1e-10 * max(1.0, float(passed.abs().sum()))


def test_equals_torchvision() -> None:
    maps, rois = random(2, 40, 25, 42), make_rois(60, batch=2, width=84, height=50).double()
    rois = rois[torch.arange(len(rois)) != 2]  # torchvision needs minutes for a box of 20,000 pixels
    for ratio, aligned in itertools.product((0, 2), (True, False)):
        ours, theirs = (maps.clone().requires_grad_() for _ in range(2))
        found = roi_align(ours, rois, (7, 5), spatial_scale=0.5, sampling_ratio=ratio, aligned=aligned)
        expected = torchvision.ops.roi_align(theirs, rois, (7, 5), 0.5, ratio, aligned)
        passed = random(*found.shape)
        found.backward(passed)
        expected.backward(passed)
        assert relative_error(ours.grad, theirs.grad) < 1e-12


def test_equals_torchvision_of_position_sensitive_and_single_precision() -> None:
    maps, rois = random(2, 40, 25, 42, dtype=torch.float32), make_rois(60, batch=2, width=84, height=50)[9:]
    ours, theirs = (maps.clone().requires_grad_() for _ in range(2))
    roi_align(ours, rois, 7, spatial_scale=0.5, sampling_ratio=2).square().sum().backward()
    torchvision.ops.roi_align(theirs, rois, 7, 0.5, 2, True).square().sum().backward()
    assert relative_error(ours.grad, theirs.grad) < 1e-5
    ours, theirs = (maps.double().requires_grad_() for _ in range(2))
    ps_roi_align(ours, rois.double(), 2, spatial_scale=0.5, sampling_ratio=2).square().sum().backward()
    torchvision.ops.ps_roi_align(theirs, rois.double(), 2, 0.5, 2).square().sum().backward()
    assert relative_error(ours.grad, theirs.grad) < 1e-12


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 8e-3), (torch.float16, 1e-3), (torch.float32, 1e-5)])
def test_every_element_type(dtype: torch.dtype, tolerance: float) -> None:
    maps, rois = random(2, 20, 11, 19, dtype=dtype), make_rois(20, batch=2, width=38, height=22)
    exact, found = maps.double().requires_grad_(), maps.clone().requires_grad_()
    passed = random(len(rois), 20, 7, 7).to(dtype)
    roi_align(exact, rois.double(), 7, spatial_scale=0.5).backward(passed.double())
    roi_align(found, rois, 7, spatial_scale=0.5).backward(passed)
    assert found.grad is not None
    assert found.grad.dtype == dtype
    assert relative_error(found.grad, exact.grad) < tolerance
    wide = maps.clone().requires_grad_()
    roi_align(wide, rois, 7, spatial_scale=0.5, dtype=torch.float64).backward(passed.double())
    assert relative_error(wide.grad, exact.grad) < tolerance


@pytest.mark.parametrize("mode", ["avg", "exact"])
def test_boxes_on_a_ramp_in_closed_form(mode: Any) -> None:
    """On a map that is x, bin q of Q is its middle, x1 + (q + 0.5) / Q * (x2 - x1), whatever y is."""
    ramp = torch.arange(40.0, dtype=torch.float64).expand(1, 1, 30, 40)
    boxes = torch.tensor(
        [[0, 4.25, 3, 30.5, 21.75], [0, 10.5, 8.25, 12.75, 8.5]], dtype=torch.float64, requires_grad=True
    )
    pooled = roi_align(ramp, boxes, (2, 5), mode=mode, sampling_ratio=0 if mode == "exact" else 3)
    for q in range(5):
        (gradient,) = torch.autograd.grad(pooled[:, 0, 1, q].sum(), boxes, retain_graph=True)
        share = (q + 0.5) / 5
        expected = torch.tensor([[0, 1 - share, 0, share, 0]] * 2, dtype=torch.float64)
        assert (gradient - expected).abs().max() < 1e-12


# The cases of mmcv's tests/test_ops/test_prroi_pool.py: map, box, and the gradients of the sum of 2 x 2 bins to both.
NINTH = (
    torch.tensor([1.0, 2, 2, 1], dtype=torch.float64)
    .outer(torch.tensor([1.0, 2, 2, 1], dtype=torch.float64))
    .div(9)
    .tolist()
)
PRECISE = [
    ([[[1, 2], [3, 4]]], [0, 0, 1, 1], [[[1, 1], [1, 1]]], [2, 4, 2, 4]),
    ([[[1, 2], [3, 4]], [[4, 3], [2, 1]]], [0, 0, 1, 1], [[[1, 1], [1, 1]]] * 2, [0, 0, 0, 0]),
    (
        [[[1, 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14], [11, 12, 15, 16]]], [0, 0, 3, 3],
        [NINTH], [10 / 3, 20 / 3, 10 / 3, 20 / 3],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("values", "box", "of_map", "of_box"), PRECISE, ids=["one", "opposite", "larger"])
def test_equals_the_literals_of_precise_roi_pooling(values: Any, box: Any, of_map: Any, of_box: Any) -> None:
    maps = torch.tensor([values], dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([box], dtype=torch.float64, requires_grad=True)
    roi_align(maps, [boxes], 2, mode="exact", aligned=False).sum().backward()
    assert maps.grad is not None
    assert boxes.grad is not None
    assert (maps.grad - torch.tensor([of_map], dtype=torch.float64)).abs().max() < 1e-12
    assert (boxes.grad - torch.tensor([of_box], dtype=torch.float64)).abs().max() < 1e-12


def test_boxes_given_as_lists_and_boxes_outside() -> None:
    boxes = [ROIS[[0, 3, 4], 1:].float().requires_grad_(), ROIS[[1], 1:].float().requires_grad_()]
    found = roi_align(features().detach().float(), boxes, 2, spatial_scale=0.5, mode="exact")
    gradients = torch.autograd.grad(found.sum(), boxes)
    assert [g.shape for g in gradients] == [(3, 4), (1, 4)]
    assert gradients[0][1].eq(0).all()
    assert gradients[0][0].ne(0).all()


PASSES: dict[str, Callable[[Tensor], Tensor]] = {
    "avg": lambda m: roi_align(m, make_rois(300, 2, 38, 22), 7, spatial_scale=0.5),
    "max": lambda m: roi_align(m, make_rois(30, 2, 38, 22)[9:], 7, spatial_scale=0.5, sampling_ratio=2, mode="max"),
    "mean": lambda m: roi_align(m, make_rois(300, 2, 38, 22), 7, spatial_scale=0.5, reduce="mean"),
    "rotated": lambda m: roi_align_rotated(m, TURNED, 7, spatial_scale=0.5),
}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.usefixtures("threads")
def test_the_same_bits_for_any_number_of_threads(name: str) -> None:
    def gradient() -> Tensor:
        maps = random(2, 200, 11, 19, dtype=torch.float32).requires_grad_()
        result = PASSES[name](maps)
        return torch.autograd.grad(result, maps, random(*result.shape, seed=3, dtype=torch.float32))[0]

    first = gradient()
    for count in (1, 2, 7):
        torch.set_num_threads(count)
        assert torch.equal(gradient(), first)


@pytest.mark.usefixtures("threads")
def test_the_same_bits_of_gradients_of_boxes() -> None:
    def gradient() -> Tensor:
        rois = make_rois(40, 2, 38, 22)[9:].requires_grad_()
        pooled = roi_align(random(2, 200, 11, 19, dtype=torch.float32), rois, 7, spatial_scale=0.5)
        return torch.autograd.grad(pooled.square().sum(), rois)[0]

    first = gradient()
    for count in (1, 2, 7):
        torch.set_num_threads(count)
        assert torch.equal(gradient(), first)


def test_the_forward_pass_does_not_change() -> None:
    maps, rois = random(2, 40, 11, 19, dtype=torch.float32), make_rois(30, batch=2, width=38, height=22)
    for mode, reduce in itertools.product(("avg", "exact", "max"), ("none", "mean", "max")):
        arguments: dict[str, Any] = {"spatial_scale": 0.5, "sampling_ratio": 2, "mode": mode, "reduce": reduce}
        plain = roi_align(maps, rois, 7, **arguments)
        derived = roi_align(maps.clone().requires_grad_(), rois, 7, **arguments)
        assert derived.requires_grad
        assert relative_error(derived.detach(), plain) < (1e-6 if reduce == "mean" else 1e-30)


def test_maps_may_change_before_the_backward_pass() -> None:
    """Only shapes are kept where values do not matter; elsewhere autograd notices the change."""
    for mode, rois in (("avg", ROIS), ("exact", ROIS)):
        maps = features()
        hidden = maps * 2
        pooled = roi_align(hidden, rois, 2, spatial_scale=0.5, mode=mode)
        expected = torch.autograd.grad(pooled.sum(), maps, retain_graph=True)[0]
        hidden.data.fill_(float("nan"))
        assert torch.equal(torch.autograd.grad(pooled.sum(), maps)[0], expected)
    for arguments in ({"mode": "max"}, {"rois": ROIS.clone().requires_grad_()}):
        hidden = features() * 2
        pooled = roi_align(hidden, output_size=2, **{"rois": ROIS, **arguments})
        hidden.mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            pooled.sum().backward()


def test_one_map_twice_and_no_rois() -> None:
    maps = features()
    twice = roi_align([maps, maps], ROIS, 2, levels=LEVELS, spatial_scale=0.5).sum()
    once = roi_align(maps, ROIS, 2, spatial_scale=0.5).sum()
    assert relative_error(torch.autograd.grad(twice, maps)[0], torch.autograd.grad(once, maps)[0]) < 1e-12
    assert torch.autograd.grad(roi_align(maps, ROIS[:0], 2).sum(), maps)[0].eq(0).all()
    assert torch.autograd.grad(roi_align_rotated(maps, TURNED[:0], 2).sum(), maps)[0].eq(0).all()
    assert torch.autograd.grad(roi_align(maps, ROIS[3:4], 2, mode="max").sum(), maps)[0].eq(0).all()


def test_the_lists_of_a_gpu_give_the_same_gradient() -> None:
    """On a GPU boxes take the way of all other regions: lists of bins by cell, pooled by the kernel for lists."""
    maps, rois = random(2, 30, 11, 19), make_rois(40, batch=2, width=38, height=22).double()
    for mode in ("avg", "exact"):
        leaf = maps.clone().requires_grad_()
        result = roi_align(leaf, rois, (3, 5), spatial_scale=0.5, mode=mode)
        passed = random(*result.shape)
        (expected,) = torch.autograd.grad(result, leaf, passed)
        request = Request([maps], rois, None, (3, 5), (0.5,), 0, True, mode, "none", torch.float64).prepared()
        cells = Cells(Request(**{**vars(request), "maps": channels_last(request.maps)}), fill_products(request))
        (found,) = transposed.map_gradients(cells, passed)
        assert relative_error(found, expected) < 1e-12


def test_the_gradient_of_torchvision_where_our_kernel_cannot_run() -> None:
    fine, coarse, rois = random(2, 3, 7, 9), random(2, 3, 4, 5), ROIS[[0, 1, 4, 5]]
    request = Request(
        [fine, coarse], rois, LEVELS[[0, 1, 4, 5]], (2, 3), (0.5, 0.25), 2, True, "avg", "none", torch.float64
    ).prepared()
    passed = random(4, 3, 2, 3)
    ours, theirs = new_totals(request), new_totals(request)
    cpu_gradient.accumulate(request, passed, ours)
    ops_torchvision.accumulate(request, passed, theirs)
    assert all(relative_error(f, e) < 1e-12 for f, e in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: roi_align(m, ROIS, 2, out=torch.empty(6, 3, 2, 2, dtype=torch.float64)), "out: expected none where"),
        (lambda m: roi_align_rotated(m, TURNED, 2, mode="max"), "mode: expected avg or exact where gradients"),
        (lambda m: roi_align_rotated(m, TURNED.clone().requires_grad_(), 2), "rois: expected no gradient"),
        (lambda m: ps_roi_align(m[:, :1], ROIS.clone().requires_grad_(), 1), "rois: expected no gradient"),
        (lambda m: roi_align_masked(m, ROIS.clone().requires_grad_(), [TRIANGLE] * 6, 1), "rois: expected no gradient"),
        (lambda m: deform_roi_align(m, ROIS.clone().requires_grad_(), torch.zeros(6, 2, 1, 1), 1), "rois: expected no gr"),
    ],
)  # fmt: skip
def test_what_has_no_gradient_says_so(call: Callable[[Tensor], Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call(features())
    with torch.no_grad():
        call(features())


def test_transforms_of_torch_func() -> None:
    maps, rois = random(2, 3, 7, 9), ROIS[SMOOTH]

    def loss(maps: Tensor, rois: Tensor) -> Tensor:
        return roi_align(maps, rois, (2, 3), spatial_scale=0.5).square().sum()

    leaves = maps.clone().requires_grad_(), rois.clone().requires_grad_()
    expected = torch.autograd.grad(loss(*leaves), leaves)
    found = torch.func.grad(loss, argnums=(0, 1))(maps, rois)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    with pytest.raises(RuntimeError, match="first derivatives only"):
        torch.func.grad(lambda m: torch.func.grad(loss)(m, rois).sum())(maps)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_checkpointing_recomputes_and_unpacks_once(mode: Any) -> None:
    maps = features()

    def pool(maps: Tensor) -> Tensor:
        return roi_align(maps * 1, ROIS, 2, spatial_scale=0.5, mode=mode).square().sum()

    expected = torch.autograd.grad(pool(maps), maps)[0]
    for reentrant in (False, True):
        found = checkpoint(pool, maps, use_reentrant=reentrant)
        assert torch.equal(torch.autograd.grad(found, maps)[0] if not reentrant else _backward(found, maps), expected)


def _backward(loss: Tensor, leaf: Tensor) -> Tensor:
    """Return the gradient of a leaf by `backward`, which reentrant checkpoints need."""
    leaf.grad = None
    loss.backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated"
)  # torch calls it on the first use of forward mode
def test_forward_mode_is_an_error_and_not_zero() -> None:
    maps, rois = features().detach(), ROIS[SMOOTH]
    with pytest.raises(ValueError, match="expected no tangent"):
        torch.func.jvp(lambda m: roi_align(m, rois, 2), (maps,), (maps,))
    with pytest.raises(ValueError, match="expected no tangent"):
        torch.func.jvp(lambda r: roi_align(maps, r, 2), (rois,), (rois,))


def test_a_box_of_too_many_samples_for_its_gradient_is_an_error_at_once() -> None:
    maps, huge = features(), torch.tensor([[0, 0, 0, 8, 8], [0, -5e5, -5e5, 5e5, 5e5]], dtype=torch.float64)
    with pytest.raises(ValueError, match="rois row 1: expected at most 256 MiB of samples for a gradient in mode max"):
        roi_align(maps, huge, 7, mode="max")
    for mode in ("avg", "exact"):
        (gradient,) = torch.autograd.grad(roi_align(maps, huge, 7, mode=mode).sum(), maps)
        assert torch.isfinite(gradient).all()


def test_no_channels() -> None:
    maps = torch.zeros(2, 0, 5, 5, requires_grad=True)
    for call in (
        lambda m: roi_align(m, ROIS, 2, mode="max"),
        lambda m: roi_align_rotated(m, TURNED, 2),
        lambda m: ps_roi_align(m, ROIS, 2),
        lambda m: deform_roi_align(m, ROIS, torch.zeros(6, 2, 2, 2), 2),
        lambda m: roi_align_masked(m, ROIS, [TRIANGLE] * 6, 2)[0],
    ):
        assert torch.autograd.grad(call(maps).sum(), maps)[0].shape == maps.shape


def test_lists_in_several_groups_of_rois() -> None:
    maps, rois = random(2, 4, 11, 19).requires_grad_(), make_rois(300, 2, 38, 22).abs()
    turned = torch.cat([rois, torch.arange(len(rois))[:, None] * 7.0], dim=1).double()
    result = roi_align_rotated(maps, turned, 3, spatial_scale=0.5)
    passed, other = random(*result.shape, seed=1), random(2, 4, 11, 19, seed=2)
    (gradient,) = torch.autograd.grad(result, maps, passed)
    expected = (passed * roi_align_rotated(other, turned, 3, spatial_scale=0.5)).sum()
    assert float(abs((gradient * other).sum() - expected)) <= 1e-10 * float(passed.abs().sum())
