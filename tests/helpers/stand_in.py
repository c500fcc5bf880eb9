"""Stand-ins for a device on a machine without one: a queue that works while the host goes on, and tensors on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self, TypeVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from roialign_cli.system.device_queue import HostQueue, Submitted

T = TypeVar("T")
# Operators whose result the host needs, so that it waits for a device: values of a tensor, or their number as a shape.
WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "_unique2", "unique_dim",
    "unique_consecutive", "bincount", "repeat_interleave",
}  # fmt: skip


class StandInDevice(HostQueue):
    """Does work in order on a thread of its own, as a device does on a stream."""

    depth = 2

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="stand-in")

    def submit(self, work: Callable[[], T]) -> Submitted[T]:
        """Give work to the thread."""
        future = self._thread.submit(work)
        return Submitted(future.result, future.result)


class DeviceTensor(Tensor):
    """A tensor as if on a device: computes like one on the host, and fails where the host would wait for its values."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor) -> Self:
        """Wrap a tensor of the host."""
        made: Self = Tensor._make_wrapper_subclass(
            cls, host.shape, strides=host.stride(), storage_offset=host.storage_offset(), dtype=host.dtype,
            device=host.device,
        )  # fmt: skip
        made.host = host
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"DeviceTensor{tuple(self.shape)}"

    @classmethod
    def __torch_dispatch__(
        cls, function: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Compute an operator, unless the host would wait for it."""
        name = function.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else ()
        by_mask = any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
        if name in WAITING or by_mask:
            raise AssertionError(f"the host waits for a device in {function}")
        given = {id(one.host): one for one in pytree.tree_leaves((args, kwargs)) if isinstance(one, cls)}
        args, kwargs = pytree.tree_map_only(cls, lambda one: one.host, (args, dict(kwargs or {})))
        result = function(*args, **kwargs)
        return pytree.tree_map_only(Tensor, lambda one: given[id(one)] if id(one) in given else cls(one), result)
