"""Register the gradients of operators with torch's autograd: each is a node, too, so that training steps can be compiled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from roialign_cli.ops.node import Node, split_arguments
from roialign_cli.ops.request import FIELDS, SCHEMA, Request

# backward(passed, request, rest, wanted): the gradients of the maps, of rois and of the tensors in `rest`, in this order, from
# `passed`, that of the first result; `wanted` says which are used: all maps or none, rois, and each tensor in `rest`.
Backward = Callable[[Tensor, Request, tuple[Any, ...], Sequence[bool]], list[Tensor]]

# The arguments of a node are the maps and then others; those that are tensors are kept apart, and None takes their place.
Others = list[tuple[Any] | None]


def register_gradient(
    name: str, extra: str, node: Node, backward: Backward, reads_maps: Callable[[Request], bool] = lambda _: True
) -> None:
    """Register `roialign::name_backward`, and let autograd call it for the operator `roialign::name`.

    reads_maps: whether the gradients of a call depend on the values of its maps. Otherwise only shapes are kept, so that maps
    can be changed or freed before the backward pass.
    """

    def compute(passed: Tensor, *arguments: Any) -> list[Tensor]:
        request, rest = split_arguments(arguments[:-1])
        found = backward(passed, request.prepared(), rest, arguments[-1])
        tensors, wanted = _tensors(request, rest), _per_tensor(request, arguments[-1])
        return [
            one.to(t.dtype) if want else t.new_empty(0) for one, t, want in zip(found, tensors, wanted, strict=True)
        ]

    def fake(_passed: Tensor, *arguments: Any) -> list[Tensor]:
        request, rest = split_arguments(arguments[:-1])
        tensors, wanted = _tensors(request, rest), _per_tensor(request, arguments[-1])
        levels = len(request.maps)
        return [
            _new_gradient(t, is_map=i < levels) if want else t.new_empty(0)
            for i, (t, want) in enumerate(zip(tensors, wanted, strict=True))
        ]

    schema = f"(Tensor passed, {SCHEMA}, {extra}, bool[] wanted) -> Tensor[]"
    registered = torch.library.custom_op(f"roialign::{name}_backward", compute, mutates_args=(), schema=schema)
    registered.register_fake(fake)

    def keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        maps, *others = inputs
        if not reads_maps(split_arguments(inputs)[0]):
            maps = [features.new_empty(1, 1, 1, 1).expand(features.shape) for features in maps]
        _keep(ctx, len(maps), *_apart(maps, others), output)

    def derive(ctx: Any, passed: Tensor, *_: Any) -> tuple[Any, ...]:
        of_maps, *of_others = ctx.needs_input_grad
        maps, others = _derive(ctx, registered, passed, any(of_maps), of_others)
        return (maps, *others)

    node.registered.register_autograd(derive, setup_context=keep)

    class Once(torch.autograd.Function):
        """Compute the backward pass inside transforms of torch.func; it has no derivative of its own."""

        @staticmethod
        def forward(levels: int, others: Others, wanted: Sequence[bool], passed: Tensor, *tensors: Tensor) -> Any:
            maps = list(tensors[:levels])
            return tuple(registered(passed, maps, *_together(others, tensors[levels:]), wanted))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            pass

        @staticmethod
        def backward(_ctx: Any, *_: Any) -> Any:
            raise RuntimeError(f"{name} has first derivatives only")

    def once(passed: Tensor, maps: Sequence[Tensor], *others: Any) -> Any:
        *others_of_call, wanted = others
        template, tensors = _apart(maps, others_of_call)
        return Once.apply(len(maps), template, wanted, passed, *tensors)

    class Transformed(torch.autograd.Function):
        """Compute the operator inside transforms of torch.func such as grad, which registered operators do not support."""

        @staticmethod
        def forward(levels: int, others: Others, *tensors: Tensor) -> Any:
            return node.registered(list(tensors[:levels]), *_together(others, tensors[levels:]))

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            levels, others, *tensors = inputs
            _keep(ctx, levels, others, tensors, output)

        @staticmethod
        def backward(ctx: Any, passed: Tensor, *_: Any) -> Any:
            needs = ctx.needs_input_grad[2:]
            of_tensors = iter(needs[ctx.levels :])
            of_others = [next(of_tensors) if other is None else False for other in ctx.others]
            maps, others = _derive(ctx, once, passed, any(needs[: ctx.levels]), of_others)
            return (None, None, *maps, *(one for one, other in zip(others, ctx.others, strict=True) if other is None))

    def transformed(maps: Sequence[Tensor], *others: Any) -> Any:
        template, tensors = _apart(maps, others)
        return Transformed.apply(len(maps), template, *tensors)

    node.transformed = transformed


def _keep(ctx: Any, levels: int, others: Others, tensors: Sequence[Tensor], output: Any) -> None:
    """Keep what the backward pass needs."""
    ctx.levels, ctx.others = levels, others
    ctx.save_for_backward(*tensors)
    if not isinstance(output, Tensor):
        ctx.mark_non_differentiable(*output[1:])


def _apart(maps: Sequence[Tensor], others: Sequence[Any]) -> tuple[Others, list[Tensor]]:
    """Return the arguments behind the maps, without those that are tensors, and all tensors."""
    tensors = [*maps, *(other for other in others if isinstance(other, Tensor))]
    return [None if isinstance(other, Tensor) else (other,) for other in others], tensors


def _together(others: Others, tensors: Sequence[Tensor]) -> list[Any]:
    """Return the arguments behind the maps, with the tensors in their places."""
    following = iter(tensors)
    return [next(following) if other is None else other[0] for other in others]


def _derive(
    ctx: Any, registered: Any, passed: Tensor, of_maps: bool, of_others: Sequence[bool]
) -> tuple[list[Tensor | None], list[Tensor | None]]:
    """Return the gradients of the maps and of the other arguments; None where there is none, or none is needed."""
    saved = ctx.saved_tensors  # once: each access unpacks them, which checkpointing allows once
    maps, tensors = list(saved[: ctx.levels]), saved[ctx.levels :]
    # Levels are whole numbers: what can have gradients is the first of the others, rois, and those behind the request.
    can = [other is None and (i == 0 or i + 1 >= len(FIELDS)) for i, other in enumerate(ctx.others)]
    wanted = [of_maps, *(need for need, possible in zip(of_others, can, strict=True) if possible)]
    found = registered(passed, maps, *_together(ctx.others, tensors), wanted)
    following = iter(found[ctx.levels :])
    others = [next(following) if possible else None for possible in can]
    return (
        list(found[: ctx.levels]) if of_maps else [None] * ctx.levels,
        [one if need else None for one, need in zip(others, of_others, strict=True)],
    )


def _new_gradient(tensor: Tensor, *, is_map: bool) -> Tensor:
    """Return memory for a gradient, without values; those of maps are channels-last."""
    return torch.empty_like(tensor, memory_format=torch.channels_last if is_map else torch.contiguous_format)


def _tensors(request: Request, rest: tuple[Any, ...]) -> list[Tensor]:
    """Return the tensors of a call that gradients are returned for, wanted or not."""
    return [*request.maps, request.rois, *(e for e in rest if isinstance(e, Tensor))]


def _per_tensor(request: Request, wanted: Sequence[bool]) -> list[bool]:
    return [wanted[0]] * len(request.maps) + list(wanted[1:])
