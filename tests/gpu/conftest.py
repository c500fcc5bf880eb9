"""The device of these tests: without one they are skipped, or fail if ROIALIGN_REQUIRE_GPU=1 says that there is one."""

from __future__ import annotations

import os

import pytest
import torch


@pytest.fixture(autouse=True)
def device() -> torch.device:
    if torch.cuda.is_available():
        return torch.device("cuda", 0)
    if os.environ.get("ROIALIGN_REQUIRE_GPU") == "1":
        pytest.fail("ROIALIGN_REQUIRE_GPU=1: expected a CUDA device, found none")
    pytest.skip("no CUDA device")
