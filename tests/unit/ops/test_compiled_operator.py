"""Test the operator inside torch.compile and torch.export: one node, the same values."""

from __future__ import annotations

import pytest
import torch
from helpers.tensors import make_rois

from roialign_cli import roi_align

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
