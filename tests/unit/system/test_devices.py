"""Test how devices are found, and where their maps are pooled."""

from __future__ import annotations

import pytest
import torch

from roialign_cli.errors import ConfigError
from roialign_cli.system.devices import DEVICE_COUNTS, find_device, find_devices, pooling_device


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("mps", "0 MPS devices"),
        ("xpu:3", f"{torch.xpu.device_count()} XPU devices"),
        ("cuda:99", f"{torch.cuda.device_count()} CUDA devices"),
        ("cpu:1", "1 CPU devices"),
        ("meta", "other device types are not supported"),
        ("gpu", "found 'gpu'"),
    ],
)
def test_a_device_that_is_not_here(name: str, found: str) -> None:
    if name == "mps" and torch.backends.mps.is_available():
        pytest.skip("this machine has it")
    with pytest.raises(ConfigError, match=found) as caught:
        find_device(name)
    assert caught.value.reference == "device-unknown"


def test_a_cuda_device_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch cannot make a device current that has none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setitem(DEVICE_COUNTS, "cuda", lambda: 2)
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    assert find_device("auto") == find_device("cuda") == find_device("cuda:0") == first
    assert find_devices("cuda:1") == (second,)
    assert find_devices("cuda:all") == (first, second)


def test_maps_are_pooled_on_the_cpu_or_cuda() -> None:
    assert [pooling_device(torch.device(name)).type for name in ("cpu", "cuda:1", "mps", "xpu")] == [
        "cpu", "cuda", "cpu", "cpu",
    ]  # fmt: skip
