"""Devices by the names that users give them."""

from __future__ import annotations

import itertools

import torch

from roialign_cli.errors import ConfigError


def find_devices(names: str, processes: int = 0) -> tuple[torch.device, ...]:
    """A device for each process: of `auto`, `cpu`, `cuda:all` or `cuda:0,2`, in turn. 0: as many processes as devices.

    Raises ConfigError: a device is not here, or there are fewer processes than devices.
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
    """One device of a setting; ConfigError if it is not here."""
    expected = "expected auto, cpu, cuda, cuda:all or cuda:0,2"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError("device-unknown", f"device: {expected}, found {name!r}") from None
    if device.type not in ("cpu", "cuda") or (
        device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    ):
        found = (
            f"{torch.cuda.device_count()} CUDA devices are here" if device.type == "cuda" else "it is of another kind"
        )
        raise ConfigError("device-unknown", f"device: {expected}, found {name!r}: {found}")
    return device
