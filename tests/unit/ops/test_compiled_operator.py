"""Test the operator inside torch.compile and torch.export: one node, the same values."""

from __future__ import annotations

import pytest
import torch
from helpers.tensors import make_rois
from torch.export.experimental import _export_forward_backward

from roialign_cli import deform_roi_align, ps_roi_align, roi_align, roi_align_masked, roi_align_rotated
from roialign_cli.ops.masks import parse_masks

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch's own tracing
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
MAPS = [torch.randn(2, 6, 11, 19), torch.randn(2, 6, 6, 10)]
ROIS = make_rois(9, batch=2, width=38, height=22)
LEVELS = torch.arange(len(ROIS)) % 2


class Head(torch.nn.Module):
    """Pool from a pyramid, with arithmetic around it."""

    def forward(
        self, first: torch.Tensor, second: torch.Tensor, rois: torch.Tensor, levels: torch.Tensor
    ) -> torch.Tensor:
        pooled = roi_align(
            [first * 2, second], rois, (3, 5), spatial_scale=[0.5, 0.25], levels=levels, sampling_ratio=2
        )
        return pooled.relu().mean(dim=(2, 3))


def nodes(graph: torch.fx.GraphModule) -> list[str]:
    return [str(node.target) for node in graph.graph.nodes if "roialign" in str(node.target)]


def test_the_registration_is_sound() -> None:
    arguments = (MAPS, ROIS, LEVELS, [3, 5], [0.5, 0.25], 2, True, "avg", "none", None, "auto", True)
    torch.library.opcheck(torch.ops.roialign.roi_align.default, arguments)
    torch.library.opcheck(
        torch.ops.roialign.roi_align.default, (MAPS[:1], ROIS, None, *arguments[3:4], [0.5], *arguments[5:])
    )


def test_compile_sees_one_node() -> None:
    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        seen.extend(nodes(graph))
        return graph.forward

    head = Head()
    compiled = torch.compile(head, backend=backend, fullgraph=True)
    with torch.inference_mode():
        assert torch.equal(compiled(*MAPS, ROIS, LEVELS), head(*MAPS, ROIS, LEVELS))
    assert seen == ["roialign.roi_align"] or seen == ["roialign.roi_align.default"]


def test_export_sees_one_node_and_any_number_of_rois() -> None:
    head = Head()
    count = torch.export.Dim("count", min=1, max=1 << 20)
    program = torch.export.export(
        head, (*MAPS, ROIS, LEVELS), dynamic_shapes=({}, {}, {0: count}, {0: count}), strict=False
    )
    assert nodes(program.graph_module) == ["roialign.roi_align.default"]
    fewer = (*MAPS, ROIS[:5], LEVELS[:5])
    assert torch.equal(program.module()(*fewer), head(*fewer))


def test_compiled_with_out_and_with_lazily_negated_views() -> None:
    def pool(maps: torch.Tensor, rois: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        return roi_align(maps, rois, 2, out=out)

    compiled, expected = torch.compile(pool, backend="aot_eager", fullgraph=True), roi_align(MAPS[0], ROIS, 2)
    with torch.inference_mode():
        for out in (torch.empty_like(expected), torch._neg_view(torch.empty_like(expected))):
            assert torch.equal(compiled(torch._neg_view(-MAPS[0]), torch._neg_view(-ROIS), out), expected)
            assert torch.equal(out, expected)


def test_the_registrations_of_the_other_regions_are_sound() -> None:
    maps, rois = [m.double() for m in MAPS], ROIS.double()
    turned = torch.cat([rois.abs(), torch.full((len(rois), 1), 30.0, dtype=torch.float64)], dim=1)
    fields = ([3, 2], [0.5, 0.25], 2, True, "avg", "none", None)
    pieces = parse_masks([[[1, 1, 30, 3, 20, 20]]] * len(rois), len(rois))
    offsets = torch.ones(len(rois), 2, 3, 2)
    nodes = torch.ops.roialign
    torch.library.opcheck(nodes.roi_align_rotated.default, (maps, turned, LEVELS, *fields, False, "auto"))
    torch.library.opcheck(nodes.deform_roi_align.default, (maps, rois, LEVELS, *fields, offsets, None, 0.1, "auto"))
    torch.library.opcheck(nodes.ps_roi_align.default, (maps, rois, LEVELS, *fields, "auto"))
    masked = (maps, rois, LEVELS, *fields, pieces.first, pieces.sides, "mask", "auto")
    torch.library.opcheck(nodes.roi_align_masked.default, masked)


def test_compiled_regions_give_the_same_values() -> None:
    pieces = parse_masks([[[1, 1, 30, 3, 20, 20]]] * len(ROIS), len(ROIS))

    def pool(maps: torch.Tensor, rois: torch.Tensor) -> tuple[torch.Tensor, ...]:
        turned = torch.cat([rois.abs(), rois[:, :1] + 30], dim=1)
        moved = deform_roi_align(maps, rois, rois.new_ones(rois.shape[0], 2, 3, 2), (3, 2))
        return (
            roi_align_rotated(maps, turned, (3, 2)),
            moved,
            ps_roi_align(maps, rois, (3, 2)),
            *roi_align_masked(maps, rois, pieces, (3, 2)),
        )

    seen: list[str] = []

    def backend(graph: torch.fx.GraphModule, _: object) -> object:
        seen.extend(nodes(graph))
        return graph.forward

    compiled = torch.compile(pool, backend=backend, fullgraph=True)
    with torch.inference_mode():
        for found, expected in zip(compiled(MAPS[0], ROIS), pool(MAPS[0], ROIS), strict=True):
            assert torch.equal(found, expected)
    assert len(seen) == 4


GRADIENT_CALLS = {
    "boxes": lambda m, rois: roi_align(
        [m, m[:, :, ::2, ::2]], rois, (3, 5), spatial_scale=[0.5, 0.25], levels=LEVELS[9:], reduce="mean"
    ),
    "max": lambda m, rois: roi_align(m, rois, 2, spatial_scale=0.5, sampling_ratio=2, mode="max"),
    "position-sensitive": lambda m, rois: ps_roi_align(m, rois.detach(), (2, 1), spatial_scale=0.5),
    "moved": lambda m, rois: deform_roi_align(
        m, rois.detach(), rois[:, 1:3].reshape(-1, 2, 1, 1), 1, spatial_scale=0.5
    ),
}


@pytest.mark.parametrize("name", GRADIENT_CALLS)
def test_a_compiled_training_step_has_the_same_gradients(name: str) -> None:
    def step(maps: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
        return GRADIENT_CALLS[name](maps.sin(), rois).square().sum()

    leaves = MAPS[0].clone().requires_grad_(), ROIS[9:].clone().requires_grad_()
    expected = torch.autograd.grad(step(*leaves), leaves, allow_unused=True)
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    found = torch.autograd.grad(compiled(*leaves), leaves, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, rtol=1e-5, atol=1e-6)


def test_an_exported_training_step_has_a_node_for_the_gradient() -> None:
    class Loss(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution = torch.nn.Conv2d(6, 4, 3, padding=1)

        def forward(self, maps: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
            return roi_align(self.convolution(maps), rois, 2, spatial_scale=0.5).square().sum()

    exported = torch.export.export(Loss(), (MAPS[0], ROIS))
    joint = _export_forward_backward(exported)
    assert [name.removesuffix(".default") for name in nodes(joint.graph_module)] == [
        "roialign.roi_align", "roialign.roi_align_backward",
    ]  # fmt: skip
