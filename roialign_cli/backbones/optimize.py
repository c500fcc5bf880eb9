"""Compute the same features with less work: fold batch norms, add in place, and skip what no RoI reads.

This rewrites the model's graph with torch.fx; weights stay the same tensors unless a batch norm is folded into them.
"""

from __future__ import annotations

import copy
import operator
import sys
import warnings
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

TILE_SIDE = 16  # cells; smaller tiles follow the RoIs more closely, larger ones read fewer border cells twice
MAX_TILED_SHARE = 0.6  # share of a map in tiles that are read; above it, convolving the whole map is faster


def fold(model: nn.Module) -> fx.GraphModule:
    """Return a copy of a model with each batch norm folded into the convolution that it follows.

    A batch norm is folded only if nothing else uses the convolution or its output. The model must be in eval mode and
    traceable; the outputs agree to rounding. Tensors are added to the output of a convolution in place, because memory
    for a new tensor costs as much time as the addition.
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
        modules[str(source.target)] = fused  # so that another batch norm that follows is folded into it, too
        folded.set_submodule(str(source.target), fused)
        node.replace_all_uses_with(source)
        graph.erase_node(node)
    for name in {str(node.target) for node in graph.nodes if node.op == "call_module"}:
        for module in folded.get_submodule(name).modules():  # leaf modules, which the tracer did not enter
            if isinstance(module, nn.Sequential):
                _fold_sequence(module)
    for node in graph.nodes:
        if node.target in (operator.add, operator.iadd) and _is_convolution(node.args[0], modules):
            node.target = operator.iadd
    folded.delete_all_unused_submodules()
    folded.recompile()
    return folded


def _fold_sequence(sequence: nn.Sequential) -> None:
    """Fold the batch norms of a Sequential in place, on copies of its convolutions."""
    for place in range(1, len(sequence)):
        norm, convolution = _batch_norm(sequence[place]), sequence[place - 1]
        if norm is not None and type(convolution) is nn.Conv2d:
            sequence[place - 1] = fuse_conv_bn_eval(convolution, norm)
            sequence[place] = nn.Identity()


def _is_convolution(node: Any, modules: Mapping[str, nn.Module]) -> TypeGuard[fx.Node]:
    """Return whether a node is a plain convolution whose values only one node uses, apart from reading its shape."""
    if not isinstance(node, fx.Node) or node.op != "call_module":
        return False
    users = [user for user in node.users if user.target is not getattr]
    return len(users) == 1 and type(modules[str(node.target)]) is nn.Conv2d


def _batch_norm(module: nn.Module | None) -> nn.BatchNorm2d | None:
    """Return a module as nn.BatchNorm2d, also for torchvision's FrozenBatchNorm2d, or None if it is not a batch norm."""
    if isinstance(module, nn.BatchNorm2d):
        return module
    # Importing torchvision takes two seconds; a model that has its class has imported it.
    torchvision_ops = sys.modules.get("torchvision.ops.misc")
    if torchvision_ops is None or not isinstance(module, torchvision_ops.FrozenBatchNorm2d):
        return None
    norm = nn.BatchNorm2d(len(module.weight), eps=module.eps).eval()
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(norm, name).copy_(getattr(module, name))
    return norm


class Compiled(nn.Module):
    """A model compiled by torch.compile once for images of all sizes; if that fails, it warns and runs uncompiled."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self._call = torch.compile(model, dynamic=True)

    def forward(self, images: Tensor) -> Any:
        """Return the output of the model."""
        from torch._dynamo.exc import TorchDynamoException  # takes a second to import

        try:
            return self._call(images)
        except TorchDynamoException as error:  # the C++ compiler or Triton is missing or failed
            reason = str(error).strip().splitlines()[0]
            warnings.warn(f"--compile: the model runs uncompiled, torch.compile failed: {reason}", stacklevel=2)
            self._call = self.model
            return self.model(images)


class OnDemand(nn.Module):
    """A traced model with named output maps that computes little more of them than RoIs read.

    A map that no RoI reads is skipped, with every operation that only it needs. Where a map is the output of a 3 x 3
    convolution, as are the levels of a feature pyramid (a third of the work of a ResNet-50 with a pyramid), the CPU
    convolves only the tiles of the map that RoIs touch; the rest of the map is zero.
    """

    def __init__(self, model: fx.GraphModule, *, compiled: bool = False) -> None:
        super().__init__()
        self.model = model
        self.compiled = compiled
        self.names: list[str] = list(_outputs(model.graph))
        modules = dict(model.named_modules())
        self._final_convolutions = {
            name: str(node.target)
            for name, node in _outputs(model.graph).items()
            if _is_convolution(node, modules) and _keeps_size(modules[str(node.target)])
        }
        self._subgraphs: dict[tuple[str, ...], nn.Module] = {}

    def forward(self, images: Tensor, reads: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Return the maps [N, C, H, W] by name: all of them, or those in `reads`, valid where they are read.

        reads[name] holds the rectangles of cells that are read, [k, 5] int64 on the CPU: image, first row, first column,
        last row, last column.
        """
        if reads is None:
            maps: dict[str, Tensor] = self.model(images)
            return maps
        names = tuple(name for name in self.names if name in reads)
        # A compiled model uses one graph for all sets of levels: compiling one per set takes longer than it saves.
        maps = self._subgraph(tuple(self.names) if self.compiled else names)(images)
        maps = {name: maps[name] for name in names}
        for name in names:
            if name in self._final_convolutions:
                convolution = self.model.get_submodule(self._final_convolutions[name])
                assert isinstance(convolution, nn.Conv2d)
                # A GPU convolves the whole map while the host would still list the tiles.
                tiled = images.device.type == "cpu"
                maps[name] = _convolve_tiles(maps[name], convolution, reads[name]) if tiled else convolution(maps[name])
        return maps

    def _subgraph(self, names: tuple[str, ...]) -> nn.Module:
        """Return the part of the graph that computes these maps, up to the input of their final convolution, if any."""
        if names not in self._subgraphs:
            graph = copy.deepcopy(self.model.graph)
            maps = _outputs(graph)
            graph.output_node().args = (
                {name: maps[name].args[0] if name in self._final_convolutions else maps[name] for name in names},
            )
            subgraph = fx.GraphModule(self.model, graph)
            # torch.fx keeps in-place additions as side effects; here nothing else uses the tensor that they change.
            subgraph.graph.eliminate_dead_code(is_impure_node=lambda node: node.op in ("placeholder", "output"))
            subgraph.recompile()
            self._subgraphs[names] = Compiled(subgraph) if self.compiled else subgraph
        return self._subgraphs[names]


def _outputs(graph: fx.Graph) -> dict[str, fx.Node]:
    maps: Any = graph.output_node().args[0]
    return dict(maps)


def _keeps_size(module: nn.Module) -> bool:
    """Return whether a convolution is 3 x 3 and its output has as many cells as its input."""
    assert isinstance(module, nn.Conv2d)
    is_plain = module.stride == module.dilation == (1, 1) and module.padding_mode == "zeros"
    return is_plain and module.kernel_size == (3, 3) and module.padding == (1, 1)


def _convolve_tiles(features: Tensor, convolution: nn.Conv2d, reads: Tensor) -> Tensor:
    """Return the output of a convolution in the tiles that `reads` touches, and zeros elsewhere; channels-last."""
    n, _, height, width = features.shape
    rows, columns = -(-height // TILE_SIDE), -(-width // TILE_SIDE)
    touched = torch.zeros(n, rows, columns, dtype=torch.bool)
    in_tiles = reads // torch.tensor([1, TILE_SIDE, TILE_SIDE, TILE_SIDE, TILE_SIDE])
    for n_image, top, left, bottom, right in in_tiles.tolist():
        touched[n_image, top : bottom + 1, left : right + 1] = True
    if touched.float().mean() > MAX_TILED_SHARE:
        whole: Tensor = convolution(features)
        return whole
    image, row, column = touched.nonzero().unbind(1)
    padded = functional.pad(features, (1, columns * TILE_SIDE - width + 1, 1, rows * TILE_SIDE - height + 1))
    tiles = padded.unfold(2, TILE_SIDE + 2, TILE_SIDE).unfold(3, TILE_SIDE + 2, TILE_SIDE)
    tiles = tiles.permute(0, 2, 3, 4, 5, 1)[image, row, column]
    convolved = functional.conv2d(
        tiles.permute(0, 3, 1, 2), convolution.weight, convolution.bias, groups=convolution.groups
    )
    result = convolved.new_zeros(n, rows, TILE_SIDE, columns, TILE_SIDE, convolved.shape[1])
    result.transpose(2, 3)[image, row, column] = convolved.permute(0, 2, 3, 1)
    return result.view(n, rows * TILE_SIDE, columns * TILE_SIDE, -1)[:, :height, :width].permute(0, 3, 1, 2)
