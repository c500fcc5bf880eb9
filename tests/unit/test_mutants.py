"""Test that the faults of `make mutants` still fit the code."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_mutant_finds_its_text_once() -> None:
    mutants = tomllib.loads((ROOT / "tests" / "mutants" / "mutants.toml").read_text())["mutant"]
    assert len(mutants) > 100
    stale = [one["what"] for one in mutants if (ROOT / one["file"]).read_text().count(one["old"]) != 1]
    assert not stale
