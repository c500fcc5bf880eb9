"""The same features from less work: batch norm folded into convolutions, sums in place, nothing that no RoI reads.

All of it rewrites the model's graph (torch.fx); its weights stay the same tensors but where they are folded.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.ops.misc import FrozenBatchNorm2d

TILE = 16  # cells a side; smaller ones follow the RoIs more closely, larger ones read fewer borders twice
MAX_TILED_SHARE = 0.6  # of a map; above, one convolution over all of it is faster than over its tiles


def fold(model: nn.Module) -> fx.GraphModule:
    """The model with every batch norm that follows a convolution, and only it, folded into its weights.

    For a model in eval mode whose forward can be traced; the outputs agree to rounding. What is added to a convolution's
    output is added in place: new memory costs as much as the sum.
    """
    graph = copy.deepcopy(model.graph) if isinstance(model, fx.GraphModule) else fx.Tracer().trace(model)
    folded = fx.GraphModule(copy.deepcopy(model), graph).eval()
    modules = dict(folded.named_modules())
    calls = [node.target for node in graph.nodes if node.op == "call_module"]
    for node in list(graph.nodes):
        norm = _batch_norm(modules.get(str(node.target))) if node.op == "call_module" else None
        source = node.args[0] if norm is not None else None
        if norm is None or not _is_convolution(source, modules) or calls.count(source.target) > 1:
            continue
        fused = fuse_conv_bn_eval(modules[str(source.target)], norm)
        modules[str(source.target)] = fused  # another batch norm may follow
        folded.set_submodule(str(source.target), fused)
        node.replace_all_uses_with(source)
        graph.erase_node(node)
    for name in {str(node.target) for node in graph.nodes if node.op == "call_module"}:
        for module in folded.get_submodule(name).modules():  # what the tracer did not look into
            if isinstance(module, nn.Sequential):
                _fold_sequence(module)
    for node in graph.nodes:
        if node.target in (operator.add, operator.iadd) and _is_convolution(node.args[0], modules):
            node.target = operator.iadd
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded


def _fold_sequence(sequence: nn.Sequential) -> None:
    """The same for a container whose modules follow one another; in place, on copies of its convolutions."""
    for place in range(1, len(sequence)):
        norm, convolution = _batch_norm(sequence[place]), sequence[place - 1]
        if norm is not None and type(convolution) is nn.Conv2d:
            sequence[place - 1] = fuse_conv_bn_eval(convolution, norm)
            sequence[place] = nn.Identity()


def _is_convolution(node: Any, modules: Mapping[str, nn.Module]) -> TypeGuard[fx.Node]:
    """Whether a node is a plain convolution whose values only one other node uses; its shape may be asked for."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return False
    users = [user for user in node.users if user.target is not getattr]
    return len(users) == 1 and type(modules[str(node.target)]) is nn.Conv2d


def _batch_norm(module: nn.Module | None) -> nn.BatchNorm2d | None:
    """A module as batch norm, if it is one; torchvision's frozen kind has no class of its own in torch."""
    if isinstance(module, nn.BatchNorm2d):
        return module
    if not isinstance(module, FrozenBatchNorm2d):
        return None
    norm = nn.BatchNorm2d(len(module.weight), eps=module.eps).eval()
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).copy_(getattr(module, name))
    return norm


class Compiled(nn.Module):
    """A model behind torch.compile, once for images of all sizes; the plain model, with a warning, if that fails here."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._call = torch.compile(model, dynamic=True)

    def forward(self, images: Tensor) -> Any:
        """What the model gives."""
        from torch._dynamo.exc import TorchDynamoException  # a second to import

        try:
            return self._call(images)
        except TorchDynamoException as error:  # no C++ compiler, no Triton, or a defect of theirs
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"--compile: the model runs uncompiled, torch.compile failed: {reason}", stacklevel=2)
            self._call = self.model
            return self.model(images)


class OnDemand(nn.Module):
    """A traced model of named output maps that computes what RoIs read of them, and little more.

    A map that no RoI is on is left out with all that only it needs. Where a map is the output of a 3 x 3 convolution, as
    the levels of a feature pyramid are (a third of the work of a ResNet-50 with one), that convolution is done on the
    tiles of the map that RoIs touch; the rest of the map is zeros.
    """

    def __init__(self, model: fx.GraphModule, *, compiled: bool = False) -> None:
        super().__init__()
        self.model = model
        self.compiled = compiled
        self.names: list[str] = list(_outputs(model.graph))
        modules = dict(model.named_modules())
        self._tails = {
            name: str(node.target)
            for name, node in _outputs(model.graph).items()
            if _is_convolution(node, modules) and _keeps_size(modules[str(node.target)])
        }
        self._parts: dict[tuple[str, ...], nn.Module] = {}

    def forward(self, images: Tensor, reads: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """The maps [N, C, H, W]: all, or those in `reads`, which says of each the rectangles of cells that are read.

        reads[name] is [k, 5] int64 on the host: image, first row, first column, last row, last column.
        """
        if reads is None:
            maps: dict[str, Tensor] = self.model(images)
            return maps
        names = tuple(name for name in self.names if name in reads)
        # Compiled, it is one part for all: compiling another for each set of levels takes longer than the levels do.
        maps = self._part(tuple(self.names) if self.compiled else names)(images)
        maps = {name: maps[name] for name in names}
        for name in names:
            if name in self._tails:
                convolution = self.model.get_submodule(self._tails[name])
                assert isinstance(convolution, nn.Conv2d)
                maps[name] = _convolve_under(maps[name], convolution, reads[name])
        return maps

    def _part(self, names: tuple[str, ...]) -> nn.Module:
        """The graph that gives these maps, or what the convolution at their end takes."""
        if names not in self._parts:
            graph = copy.deepcopy(self.model.graph)
            maps = _outputs(graph)
            graph.output_node().args = (
                {name: maps[name].args[0] if name in self._tails else maps[name] for name in names},
            )
            part = fx.GraphModule(self.model, graph)
            # Sums in place count as side effects elsewhere; here what they add to is only theirs.
            part.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
            part.recompile()
            self._parts[names] = Compiled(part) if self.compiled else part
        return self._parts[names]


def _outputs(graph: fx.Graph) -> dict[str, fx.Node]:
    maps: Any = graph.output_node().args[0]
    return dict(maps)


def _keeps_size(module: nn.Module) -> bool:
    """Whether a module is a 3 x 3 convolution that gives a cell for a cell."""
    assert isinstance(module, nn.Conv2d)
    simple = module.stride == module.dilation == (1, 1) and module.padding_mode == "zeros"
    return simple and module.kernel_size == (3, 3) and module.padding == (1, 1)


def _convolve_under(features: Tensor, convolution: nn.Conv2d, reads: Tensor) -> Tensor:
    """The convolution's output where it is read, in whole tiles, and zeros elsewhere; channels-last."""
    n, _, height, width = features.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    touched = torch.zeros(n, rows, columns, dtype=torch.bool)
    for image, top, left, bottom, right in (reads // torch.tensor([1, TILE, TILE, TILE, TILE])).tolist():
        touched[image, top : bottom + 1, left : right + 1] = True
    if touched.float().mean() > MAX_TILED_SHARE:
        whole: Tensor = convolution(features)
        return whole
    touched = touched.to(features.device)
    border = functional.pad(features, (1, columns * TILE - width + 1, 1, rows * TILE - height + 1))
    tiles = border.unfold(2, TILE + 2, TILE).unfold(3, TILE + 2, TILE).permute(0, 2, 3, 4, 5, 1)[touched]
    pooled = functional.conv2d(
        tiles.permute(0, 3, 1, 2), convolution.weight, convolution.bias, groups=convolution.groups
    )
    result = pooled.new_zeros(n, rows, TILE, columns, TILE, pooled.shape[1])
    result.transpose(2, 3)[touched] = pooled.permute(0, 2, 3, 1)
    return result.view(n, rows * TILE, columns * TILE, -1)[:, :height, :width].permute(0, 3, 1, 2)
