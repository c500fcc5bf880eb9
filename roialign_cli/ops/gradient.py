"""Register the gradients of operators with torch's autograd: each is a node, too, so that training steps can be compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from roialign_cli.ops.node import Node, split_arguments
from roialign_cli.ops.request import SCHEMA, Request

# backward(passed, request, rest, wanted): the gradients of the maps, of rois and of the tensors in `rest`, in this order, from
# `passed`, that of the first result; `wanted` says of which: of all maps or none, of rois, and of each tensor in `rest`. Those
# that are not wanted are empty.
Backward = Callable[[Tensor, Request, tuple[Any, ...], Sequence[bool]], list[Tensor]]


def register_gradient(name: str, extra: str, node: Node, backward: Backward) -> None:
    """Register `roialign::name_backward`, and let autograd call it for the operator `roialign::name`."""

    def compute(passed: Tensor, *arguments: Any) -> list[Tensor]:
        request, rest = split_arguments(arguments[:-1])
        found = backward(passed, request.prepared(), rest, arguments[-1])
        tensors, needed = _tensors(request, rest), _per_tensor(request, arguments[-1])
        return [
            one.to(t.dtype) if need else t.new_empty(0) for one, t, need in zip(found, tensors, needed, strict=True)
        ]

    def fake(_passed: Tensor, *arguments: Any) -> list[Tensor]:
        request, rest = split_arguments(arguments[:-1])
        like = _tensors(request, rest)
        return [
            _new_gradient(t, i < len(request.maps)) if wanted else t.new_empty(0)
            for i, (t, wanted) in enumerate(zip(like, _per_tensor(request, arguments[-1]), strict=True))
        ]

    schema = f"(Tensor passed, {SCHEMA}, {extra}, bool[] wanted) -> Tensor[]"
    registered = torch.library.custom_op(f"roialign::{name}_backward", compute, mutates_args=(), schema=schema)
    registered.register_fake(fake)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        maps, *others = inputs
        ctx.levels = len(maps)
        ctx.others = [None if isinstance(other, Tensor) else (other,) for other in others]
        ctx.save_for_backward(*maps, *(other for other in others if isinstance(other, Tensor)))
        if not isinstance(output, Tensor):
            ctx.mark_non_differentiable(*output[1:])

    def derive(ctx: Any, passed: Tensor, *_: Any) -> tuple[Any, ...]:
        maps, tensors = list(ctx.saved_tensors[: ctx.levels]), iter(ctx.saved_tensors[ctx.levels :])
        others = [next(tensors) if other is None else other[0] for other in ctx.others]
        needs = [any(ctx.needs_input_grad[0]), *ctx.needs_input_grad[1:]]
        is_tensor = [True, *(other is None for other in ctx.others)]
        fields = SCHEMA.count(",") + 1
        # Levels are whole numbers, so the tensors that can have gradients are the maps, rois and those behind the request.
        wanted = [need for i, need in enumerate(needs) if is_tensor[i] and (i < 2 or i >= fields)]
        found = iter(registered(passed, maps, *others, wanted))
        gradients: list[Any] = [[next(found) for _ in maps]]
        gradients += [next(found) if is_tensor[i] and (i < 2 or i >= fields) else None for i in range(1, len(needs))]
        kept = [one if need else None for one, need in zip(gradients, needs, strict=True)]
        return (kept[0] if needs[0] else [None] * ctx.levels, *kept[1:])

    node.registered.register_autograd(derive, setup_context=keep)


def _new_gradient(tensor: Tensor, is_map: bool) -> Tensor:
    """Return memory for a gradient, without values; those of maps are channels-last."""
    return torch.empty_like(tensor, memory_format=torch.channels_last if is_map else torch.contiguous_format)


def _tensors(request: Request, rest: tuple[Any, ...]) -> list[Tensor]:
    """Return the tensors of a call that gradients are returned for, wanted or not."""
    return [*request.maps, request.rois, *(e for e in rest if isinstance(e, Tensor))]


def _per_tensor(request: Request, wanted: Sequence[bool]) -> list[bool]:
    return [wanted[0]] * len(request.maps) + list(wanted[1:])
