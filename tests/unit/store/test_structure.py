"""Test that structurally hostile files are refused when opened, or found by `check` at the latest."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from helpers.hostile import CASES, FOUND, OPEN, REFUSED, SOUND, Case, Goods, make_goods
from helpers.hostile.surroundings import Surroundings

from roialign_cli import FeatureFile
from roialign_cli.errors import OutputError
from roialign_cli.store.check import check

# A FIFO that is waited for, or a list that is read for ever, ends the test, not the session.
pytestmark = [
    pytest.mark.timeout(10, func_only=True),
    pytest.mark.skipif(
        not sys.platform.startswith("linux"), reason="FIFOs, sockets and names of bytes are not everywhere"
    ),
]


@pytest.fixture(scope="module")
def goods(tmp_path_factory: pytest.TempPathFactory) -> Goods:
    return make_goods(tmp_path_factory.mktemp("goods"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name} ({case.base})"[:80])
def test_a_hostile_file(case: Case, goods: Goods, tmp_path: Path) -> None:
    path, _ = Surroundings(tmp_path).begin(goods, case)
    refused, problems = look(path)
    if refused:
        assert case.verdict != SOUND, refused
        assert case.where in refused.replace(str(tmp_path), "")
    else:
        assert case.verdict != REFUSED, "expected OutputError, found a file that opens"
        assert case.verdict == OPEN or bool(problems) == (case.verdict == FOUND), problems


def look(path: Path) -> tuple[str, list[str]]:
    """Open a file and check it; return the message of a refusal, or the problems found."""
    try:
        with FeatureFile(path) as file:
            return "", check(file).problems
    except OutputError as error:
        return error.message, []


def test_every_case_has_a_name_of_its_own() -> None:
    names = {(case.name, case.base) for case in CASES}
    assert len(names) == len(CASES) >= 90
    assert {case.verdict for case in CASES} == {REFUSED, FOUND, SOUND, OPEN}
