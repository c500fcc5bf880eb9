"""Test that the documentation is true: examples run, options exist, tables are complete, links lead somewhere."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Run
from typer.main import get_command

from roialign_cli import extract
from roialign_cli.cli import app
from roialign_cli.config import Settings, load

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "roialign_cli"
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
ERROR = re.compile(r"[A-Z]\w*Error")
WORD = re.compile(r"[a-z]+(-[a-z]+)*")


def fences(text: str, language: str) -> Iterator[re.Match[str]]:
    """Yield the code blocks of a language; group 1 is the code."""
    return re.finditer(rf"^```{language}\n(.*?)^```$", text, re.M | re.S)


def execute(page: str) -> None:
    """Run the Python blocks of a page one after another, as one session."""
    text = (DOCS / page).read_text()
    names: dict[str, Any] = {"__name__": "docs"}
    blocks = list(fences(text, "python"))
    assert blocks
    for block in blocks:
        lines_before = text[: block.start(1)].count("\n")
        exec(compile("\n" * lines_before + block[1], DOCS / page, "exec"), names)


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Work in an empty folder with sample_data."""
    (tmp_path / "sample_data").symlink_to(ROOT / "sample_data")
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("samples")
@pytest.mark.parametrize(
    "page", ["tutorial.md", "reference/python.md", pytest.param("how-to/train.md", marks=pytest.mark.slow)]
)
def test_python_examples_run(page: str) -> None:
    execute(page)


@pytest.mark.usefixtures("samples")
def test_a_feature_file_is_read_without_the_package() -> None:
    extract("sample_data/images", "sample_data/boxes.json", "features.h5", config="quickstart")
    execute("reference/format.md")


def test_the_tutorial_shows_what_explain_prints(roialign: Run) -> None:
    text = (DOCS / "tutorial.md").read_text()
    assert [line for line in roialign("explain").stdout.splitlines() if line.rstrip() not in text] == []


@pytest.mark.parametrize("page", ["reference/configuration.md", "how-to/ablations.md"])
def test_yaml_examples_are_valid(page: str, tmp_path: Path) -> None:
    examples = [block[1] for block in fences((DOCS / page).read_text(), "yaml")]
    assert examples
    for example in examples:
        (tmp_path / "example.yaml").write_text(example)
        load(str(tmp_path / "example.yaml"), {}, others=frozenset({"vary"}))


def test_commands_have_the_options_that_are_shown() -> None:
    commands = get_command(app).commands
    shown = [line for page in PAGES for block in fences(page.read_text(), "bash") for line in block[1].splitlines()]
    lines = [line for line in shown if line.startswith("roialign ")]
    assert lines
    for line in lines:
        _, name, *words = line.partition("  #")[0].split()
        command = commands[name]
        if getattr(command, "commands", None):
            command = command.commands[words[0]]
        known = {flag for option in command.params for flag in [*option.opts, *option.secondary_opts]}
        assert {word for word in words if word.startswith("-")} <= known | {"--help"}, line


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
    """Yield the references that the package raises: the first argument of an error, in lower-case words."""
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call) or not node.args:
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            first = node.args[0]
            is_text = isinstance(first, ast.Constant) and isinstance(first.value, str)
            if ERROR.fullmatch(name) and is_text and WORD.fullmatch(first.value):
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
        if anchor and found.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.M)
            slugs = {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}
            assert anchor in slugs, target


def test_paths_of_the_architecture_exist() -> None:
    text = (DOCS / "explanation" / "architecture.md").read_text() + (DOCS / "explanation" / "kernels.md").read_text()
    paths = set(re.findall(r"`([\w/]+\.(?:py|cu|h))`", text))
    assert paths
    missing = {path for path in paths if not any((folder / path).exists() for folder in (PACKAGE, ROOT))}
    # A name without a folder, such as kernel.py, is that of a file mentioned before.
    assert {path for path in missing if "/" in path} == set()
