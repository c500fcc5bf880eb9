"""Register operators with torch.library: torch.compile and torch.export see one node each, autograd its gradient."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from roialign_cli.errors import OperatorInputError
from roialign_cli.ops import checks
from roialign_cli.ops.request import SCHEMA, Request, finish, sum_type

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Node:
    """An operator: `run(request, *extra, out)` computes it, `registered(*request.arguments(), *extra)` is its node.

    transformed: the same as the node, inside transforms of torch.func; ops/gradient.py sets it.
    """

    run: Callable[..., Any]
    registered: Any  # what torch.library.custom_op returns
    transformed: Callable[..., Any] | None = None


def register(name: str, extra: str, run: Callable[..., Any], fake: Callable[..., Any], returns: str = "Tensor") -> Node:
    """Register the operator `roialign::name`, whose arguments are the fields of a request and then `extra`.

    fake: makes results of the right shape from a request whose tensors have no values.
    """

    named = _name_errors(name, run)

    def compute(*arguments: Any) -> Any:
        request, rest = split_arguments(arguments)
        return named(request.prepared(), *rest, None)

    schema = f"({SCHEMA}, {extra}) -> {returns}"
    registered = torch.library.custom_op(f"roialign::{name}", compute, mutates_args=(), schema=schema)
    registered.register_fake(lambda *arguments: fake(*split_arguments(arguments)))
    return Node(run, registered)


def split_arguments(arguments: tuple[Any, ...]) -> tuple[Request, tuple[Any, ...]]:
    """Return the request of a node's arguments, and the others; no type of the result means that of the maps."""
    fields, rest = list(arguments[: SCHEMA.count(",") + 1]), arguments[SCHEMA.count(",") + 1 :]
    fields[-1] = fields[-1] or fields[0][0].dtype
    return Request(*fields), rest


def empty_result(request: Request, _rest: tuple[Any, ...] = ()) -> Tensor:
    """Return memory of the shape and type of a request's result, without values."""
    return request.maps[0].new_empty(request.shape, dtype=request.dtype)


def call(node: Node, request: Request, *extra: Any, out: Tensor | None) -> Any:
    """Compute an operator, through its node only where something traces; the first result is written into `out`, if given."""
    if out is not None:
        checks.check_out(out, request)
    if not torch.compiler.is_compiling() and _has_tangent(*request.maps, request.rois, *extra):
        raise checks.input_error(
            "features", "expected no tangent, found one of forward-mode derivatives", "use torch.func.vjp"
        )
    if needs_gradient(request, *extra):
        if out is not None:
            hint = "call under torch.no_grad()"
            raise checks.input_error("out", "expected none where gradients are needed, found one", hint)
        return _compute_for_autograd(node, request, *extra)
    # Plain tensors skip torch's dispatcher, which takes longer than a small call does.
    stand_in = checks.has_stand_in(request) or any(isinstance(e, Tensor) and checks.is_stand_in(e) for e in extra)
    plain = out is not None or (all(type(m) is Tensor for m in request.maps) and not stand_in)
    if plain and not torch.compiler.is_compiling() and not torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return node.run(request.prepared(), *extra, out)
    result = node.registered(*request.arguments(), *extra)
    if out is None:
        return result
    first = result if isinstance(result, Tensor) else result[0]
    checks.check_out_shape(out, first.shape, first.dtype, request.maps[0].device)
    out.copy_(first)
    return out if isinstance(result, Tensor) else (out, *result[1:])


def _compute_for_autograd(node: Node, request: Request, *extra: Any) -> Any:
    """Compute an operator for autograd, which derives the reduction itself."""
    if request.reduce != "none":
        bins = _compute_for_autograd(node, replace(request, reduce="none", dtype=sum_type(request)), *extra)
        return finish(bins, request, None).to(request.dtype)
    tensors = (t for t in (*request.maps, request.rois, *extra) if isinstance(t, Tensor))
    inside = any(map(checks.is_transformed, tensors))
    function = node.transformed if inside and node.transformed is not None else node.registered
    return function(*request.arguments(), *extra)


def _has_tangent(*values: Any) -> bool:
    """Return whether a tensor carries a tangent of forward-mode differentiation, which operators would lose."""
    return any(isinstance(t, Tensor) and forward_ad.unpack_dual(t).tangent is not None for t in values)  # type: ignore[no-untyped-call]


def needs_gradient(request: Request, *extra: Any) -> bool:
    """Return whether autograd will ask for gradients of a call."""
    tensors = (*request.maps, request.rois, *(e for e in extra if isinstance(e, Tensor)))
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors)


def check_gradient_mode(request: Request) -> None:
    """Check that the maximum over samples is not asked for gradients, for operators that have none in this mode."""
    if request.mode == "max" and needs_gradient(request):
        raise checks.input_error("mode", "expected avg or exact where gradients are needed, found max")


def names_errors(operator: Callable[P, R]) -> Callable[P, R]:
    """Let errors of arguments, which are those of `roi_align`, name the operator that was called."""
    return _name_errors(operator.__name__, operator)


def _name_errors(name: str, operator: Callable[P, R]) -> Callable[P, R]:
    @functools.wraps(operator)
    def named(*arguments: P.args, **keywords: P.kwargs) -> R:
        try:
            return operator(*arguments, **keywords)
        except OperatorInputError as error:
            message = error.message.removeprefix("roi_align: ").removeprefix(f"{name}: ")
            raise OperatorInputError(error.reference, f"{name}: {message}", error.hint) from None

    return named
