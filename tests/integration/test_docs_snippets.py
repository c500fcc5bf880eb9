"""The documentation is true: its Python examples run, its tables are complete, and its links lead somewhere."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from roialign_cli.config import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
FENCE = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)
ERROR = re.compile(r"[A-Z]\w*Error")


@pytest.mark.parametrize("page", ["tutorial.md", "reference/python.md"])
def test_python_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One page is one session, in a folder with sample_data."""
    (tmp_path / "sample_data").symlink_to(ROOT / "sample_data")
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text()
    names: dict[str, Any] = {"__name__": "docs"}
    blocks = list(FENCE.finditer(text))
    assert blocks
    for block in blocks:
        lines_before = text[: block.start(1)].count("\n")
        exec(compile("\n" * lines_before + block[1], DOCS / page, "exec"), names)


def test_every_setting_is_documented_with_its_default() -> None:
    rows = {}
    for line in (DOCS / "reference" / "configuration.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if len(cells) == 4 and (name := re.fullmatch(r"\|? ?`(\w+)`", cells[0])):
            rows[name[1]] = cells[1]
    settings = {field.name: field.default for field in dataclasses.fields(Settings)}
    assert list(rows) == list(settings)
    for name, default in settings.items():
        if isinstance(default, tuple):
            shown = "x".join(map(str, default)) or rows[name]
        else:
            shown = f"`{str(default).lower() if isinstance(default, bool) else default}`"
            shown = {"``": rows[name], "`0.0`": "`0`", "`300.0`": "`300`"}.get(shown, shown)
        assert rows[name] == shown, name


def test_every_error_is_documented() -> None:
    documented = set(re.findall(r"`([a-z]+(?:-[a-z]+)*)`", (DOCS / "reference" / "exit-codes.md").read_text()))
    assert set(_error_references()) <= documented


def _error_references() -> Iterator[str]:
    """The references that the package raises: the first argument of an error, in words of lower case."""
    for path in (ROOT / "roialign_cli").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            first = node.args[0]
            is_text = isinstance(first, ast.Constant) and isinstance(first.value, str)
            if ERROR.fullmatch(name) and is_text and re.fullmatch(r"[a-z]+(-[a-z]+)*", first.value):
                yield first.value


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        found = (page.parent / name).resolve() if name else page
        assert found.is_relative_to(DOCS), f"{target} leads out of the documentation"
        assert found.is_file(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.M)
            slugs = {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}
            assert anchor in slugs, target
