"""Test that the command line limits spinning before torch is loaded, and leaves the user's choice alone."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from roialign_cli.system.openmp import SPINS, limit_spinning

PRINT_VERSION = """
import os, sys
from roialign_cli.__main__ import main
sys.argv = ["roialign", "--version"]
try:
    main()
finally:
    print(os.environ["GOMP_SPINCOUNT"], "torch" in sys.modules, file=sys.stderr)
"""


def test_the_command_line_limits_it_before_torch_is_loaded() -> None:
    chosen = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    command = [sys.executable, "-c", PRINT_VERSION]
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert found.stderr.split() == [SPINS, "False"]


@pytest.mark.parametrize("chosen", [{"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "5"}])
def test_the_choice_of_the_user_stays(chosen: dict[str, str]) -> None:
    environment = dict(chosen)
    limit_spinning(environment)
    assert environment == chosen
