"""Find torch devices by the names that users give."""

from __future__ import annotations

import itertools
import platform
from collections.abc import Callable

import torch

from roialign_cli.errors import ConfigError

DEVICE_COUNTS: dict[str, Callable[[], int]] = {
    "cpu": lambda: 1,
    "cuda": torch.cuda.device_count,
    "mps": lambda: int(torch.backends.mps.is_available()),
    "xpu": torch.xpu.device_count,
}


def find_devices(names: str, processes: int = 0) -> tuple[torch.device, ...]:
    """Return one device for each process, cycling through the devices that `auto`, `cpu`, `cuda:all` or `cuda:0,2` name.

    With `processes` 0 there is one process per device. Raises ConfigError if this machine lacks a device, a device is
    named twice, or there are fewer processes than devices.
    """
    kind, _, numbers = names.partition(":")
    if kind == "cuda" and numbers == "all":
        listed = [f"cuda:{i}" for i in range(torch.cuda.device_count())] or ["cuda"]
    else:
        listed = [f"{kind}:{number}" if number else kind for number in numbers.split(",")]
    devices = tuple(find_device(name) for name in listed)
    if len(set(devices)) < len(devices):
        raise ConfigError("device-unknown", f"device: expected each device once, found {names!r}")
    if 0 < processes < len(devices):
        message = f"processes: expected at least one for each of {len(devices)} devices, found {processes}"
        raise ConfigError("config-value", message)
    return tuple(itertools.islice(itertools.cycle(devices), processes or len(devices)))


def find_device(name: str) -> torch.device:
    """Return the device of one name, with a number if it is a CUDA device: without one, the first is meant.

    Raises ConfigError if the name is unknown or this machine lacks the device.
    """
    expected = "expected auto, cpu, cuda, cuda:all, cuda:0,2, mps or xpu"
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError("device-unknown", f"device: {expected}, found {name!r}") from None
    if device.type not in DEVICE_COUNTS:
        reason = "other device types are not supported"
        raise ConfigError("device-unknown", f"device: {expected}, found {name!r}: {reason}")
    count = DEVICE_COUNTS[device.type]()
    if (device.index or 0) >= count:
        reason = f"this machine has {count} {device.type.upper()} devices"
        raise ConfigError("device-unknown", f"device: {expected}, found {name!r}: {reason}")
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def pooling_device(device: torch.device) -> torch.device:
    """Return where the maps of a device are pooled: RoI Align has kernels for the CPU and CUDA, and others send their maps."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def processor_name(device: torch.device) -> str:
    """Return what computes on a device: the model of a GPU, or the architecture and vector instructions of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
    return name if device.type == "cpu" else f"{device.type} beside {name}"


def memory_bytes(device: torch.device) -> int:
    """Return the memory of a CUDA device."""
    return int(torch.cuda.get_device_properties(device).total_memory)
