"""Test that modules import only from the lower floors that docs/explanation/architecture.md draws, and in no circle."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from helpers.sample_data import ROOT

PACKAGE = "roialign_cli"

DRAWN = 44  # columns of the drawing of the floors, before the description of each

# Imports between parts on one floor.
NEIGHBOURS = {("ablation", "figures"): "the report draws its plots in the style of all figures"}

Imports = dict[str, set[str]]


def module_name(path: Path, root: Path) -> str:
    """Return the dotted name under which a file is imported."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def for_type_checkers(node: ast.AST) -> bool:
    """Return whether a statement is `if TYPE_CHECKING:`."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def run_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Yield all nodes below one, functions included, without what only type checkers read."""
    for child in ast.iter_child_nodes(node):
        if for_type_checkers(child):
            for other in child.orelse:
                yield other
                yield from run_nodes(other)
        else:
            yield child
            yield from run_nodes(child)


def imports_of(source: str, modules: set[str]) -> set[str]:
    """Return the modules that a source imports, at its top or inside its functions."""
    found = set()
    for node in run_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names & modules
            if names - modules:  # other names are attributes of the module itself
                found.add(node.module)
    return found & modules


def read_imports(root: Path, package: str) -> Imports:
    """Return what each module of a package imports of it."""
    sources = {module_name(path, root): path.read_text() for path in (root / package).rglob("*.py")}
    return {name: imports_of(source, set(sources)) - {name} for name, source in sources.items()}


def part_of(module: str) -> str:
    """Return the part of the package, a folder or a single module, to which a module belongs."""
    return module.split(".")[1] if "." in module else "__init__"


def find_circle(imports: Mapping[str, set[str]]) -> list[str]:
    """Return modules that import each other in a circle, or an empty list."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def read_floors(page: str) -> dict[str, int]:
    """Return the floor of each part of the package as a page draws them, from 0 at the bottom; the entries are on top."""
    drawing = page.partition("## Floors")[2].partition("```text\n")[2].partition("```")[0]
    lines = [re.findall(r"\w+", line[:DRAWN]) for line in reversed(drawing.splitlines())]
    floors = [*filter(None, lines), ["__init__", "__main__"]]
    return {part: number for number, parts in enumerate(floors) for part in parts}


FLOOR = read_floors((ROOT / "docs" / "explanation" / "architecture.md").read_text())


@pytest.fixture(scope="module")
def imports() -> Imports:
    """Return the imports of the package."""
    return read_imports(ROOT, PACKAGE)


def test_every_part_has_a_floor(imports: Imports) -> None:
    assert {part_of(module) for module in imports} == set(FLOOR)


def test_no_modules_import_each_other_in_a_circle(imports: Imports) -> None:
    assert find_circle(imports) == []


def test_no_module_imports_from_a_higher_floor(imports: Imports) -> None:
    pairs = [(module, target) for module, targets in imports.items() for target in targets]
    assert sorted(f"{a} -> {b}" for a, b in pairs if FLOOR[part_of(b)] > FLOOR[part_of(a)]) == []


def test_parts_on_one_floor_import_only_the_listed_neighbours(imports: Imports) -> None:
    pairs = {(part_of(module), part_of(target)) for module, targets in imports.items() for target in targets}
    assert {(a, b) for a, b in pairs if a != b and FLOOR[a] == FLOOR[b]} == set(NEIGHBOURS)


def test_the_reader_sees_imports_wherever_they_run(tmp_path: Path) -> None:
    """Without this test a reader that finds nothing would pass all others."""
    (tmp_path / "p" / "low").mkdir(parents=True)
    (tmp_path / "p" / "__init__.py").write_text("")
    (tmp_path / "p" / "low" / "__init__.py").write_text("from p.low.a import A\n")
    (tmp_path / "p" / "low" / "a.py").write_text("import os, p.high\nA = 1\n")
    (tmp_path / "p" / "high.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from p import never\n"
        "else:\n    import p.other\n"
        "class C:\n    def f(self):\n        if self:\n            from p.low import A, b\n"
    )
    (tmp_path / "p" / "other.py").write_text("")
    (tmp_path / "p" / "never.py").write_text("")
    (tmp_path / "p" / "low" / "b.py").write_text("from p import never\n")
    found = read_imports(tmp_path, "p")
    assert found == {
        "p": set(),
        "p.low": {"p.low.a"},
        "p.low.a": {"p.high"},
        "p.low.b": {"p.never"},
        "p.high": {"p.other", "p.low", "p.low.b"},
        "p.other": set(),
        "p.never": set(),
    }
    assert set(find_circle(found)) == {"p.low", "p.low.a", "p.high"}
    assert find_circle({**found, "p.low.a": set()}) == []
