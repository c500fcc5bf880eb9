"""Test settings from YAML and options: every form that people write, and the error about any other."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest

from roialign_cli.config import Settings, config_folder, load
from roialign_cli.errors import ConfigError, InputError
from roialign_cli.inputs.boxes import read_boxes


def test_defaults_then_file_then_options(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("backbone: resnet18\nlayers: [layer3, layer4]\nsampling-ratio: 2\noutput_size: 14\n")
    settings = load(str(path), {"sampling_ratio": 4, "mode": None, "output_size": "3x5"})
    assert settings == Settings(backbone="resnet18", layers=("layer3", "layer4"), sampling_ratio=4, output_size=(3, 5))


@pytest.mark.parametrize(
    ("given", "field", "expected"),
    [
        ({"output_size": "7"}, "output_size", (7, 7)),
        ({"output_size": 7}, "output_size", (7, 7)),
        ({"output_size": [2, 3]}, "output_size", (2, 3)),
        ({"output_size": (2, 3)}, "output_size", (2, 3)),
        ({"output_size": "7,"}, "output_sizes", ()),
        ({"output_size": "7,14x2"}, "output_size", (7, 7)),
        ({"output_size": "7,14x2"}, "output_sizes", ((7, 7), (14, 2))),
        ({"output_sizes": [7, "14x2"]}, "output_sizes", ((7, 7), (14, 2))),
        ({"context": "1,1.5, 2"}, "context", (1.0, 1.5, 2.0)),
        ({"context": 1.5}, "context", (1.5,)),
        ({"context": [1, 2]}, "context", (1.0, 2.0)),
        ({"context": "1"}, "context", ()),
        ({"layers": "a, b"}, "layers", ("a", "b")),
        ({"resize": [800, 1333]}, "resize", "800,1333"),
        ({"resize": 800}, "resize", "800"),
        ({"resize": "none"}, "resize", "none"),
    ],
)
def test_forms(given: dict[str, object], field: str, expected: object) -> None:
    assert getattr(load(None, given), field) == expected


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"mode": "median"}, "mode: expected one of avg, max, exact, found 'median'"),
        ({"output_size": "7y7"}, "output_size: expected a number or HEIGHTxWIDTH, found '7y7'"),
        ({"output_size": "7,7x7"}, "output_sizes: expected different sizes"),
        ({"output_size": "7,14", "head": "box"}, "output_size: expected one size for head box, found 7x7,14x14"),
        ({"context": "1,big"}, "context: expected numbers such as 1,1.5,2, found '1,big'"),
        ({"context": "1,1.0"}, "context: expected different scales"),
        ({"context": "0"}, "context: expected at least 0.01"),
        ({"context": "nan"}, "context"),
        ({"context": True}, "context"),
        ({"levels": "some"}, "levels: expected one of assign, all, soft, found 'some'"),
        ({"fuse": "sum"}, "fuse: expected levels all with it, found 'assign'"),
        ({"fuse": "concat", "levels": "all", "head": "box"}, "fuse: expected mean, sum or max with head box"),
        ({"output_size": 0}, "output_size: expected at least 1"),
        ({"sampling_ratio": -1}, "sampling_ratio: expected at least 0, found -1"),
        ({"sampling_ratio": 1.5}, "sampling_ratio"),
        ({"sampling_ratio": 10**9}, "sampling_ratio: expected at most 1024, found 1000000000"),
        ({"resize": "big"}, "resize: expected none or SHORT"),
        ({"resize": "0"}, "resize: expected none or SHORT"),
        ({"smapling_ratio": 2}, "did you mean sampling_ratio"),
        ({"aligned": "yes"}, "aligned"),
    ],
)
def test_errors(given: dict[str, object], found: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(None, given)
    assert found in str(error.value)


def test_one_output_size_overrides_several(tmp_path: Path) -> None:
    (tmp_path / "own.yaml").write_text("output_sizes: [7, 14]\n")
    assert load(str(tmp_path / "own.yaml"), {}).output_sizes == ((7, 7), (14, 14))
    assert load(str(tmp_path / "own.yaml"), {"output_size": "5"}) == Settings(output_size=(5, 5))


@pytest.mark.parametrize("content", ["[1, 2]", "a: b: c", "\x00", "backbone: [resnet18]"])
def test_bad_yaml(tmp_path: Path, content: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError):
        load(str(path), {})


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in pairwise("abcdefghij")
)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (f"{LAUGHS}names: *j", "line 2: expected plain values, found the alias *a: write it out"),
        ("names: &a [*a]", "line 1: expected plain values, found the alias *a"),
        ("x: &a {names: [b]}\n<<: *a", "line 2: expected plain values, found the alias *a"),
        ("names: " + "[" * 100_000 + "]" * 100_000, "line 1: expected at most 50 levels of nesting"),
        ("\n".join(" " * i + "names:" for i in range(500)), "expected at most 50 levels of nesting"),
        ("names: " + ":".join(["1"] * 200_000), "expected a value of at most 4096 characters, found 399999"),
        ("names: " + "9" * 4200, "expected a value of at most 4096 characters"),
        ("names: [" + "a, " * 400_000 + "]", "expected at most 1048576 bytes of YAML"),
        ("names: 2001-99-99", "expected YAML, found: month must be in 1..12"),
        ("names: !!bool x", "expected YAML, found"),
        ("names: !!timestamp x", "expected YAML, found"),
        ("names: !!python/object/apply:os.getpid []", "expected YAML, found: could not determine a constructor"),
        ("names: \udc80", "expected YAML, found"),
    ],
    ids=range(13),
)
def test_yaml_that_never_ends_or_is_no_plain_data(tmp_path: Path, content: str, expected: str) -> None:
    """Configurations and YOLO's data.yaml are read the same way."""
    path, started = tmp_path / "data.yaml", time.monotonic()
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    (tmp_path / "a.txt").write_text("0 .5 .5 .1 .1")
    for read, kind in ((lambda: load(str(path), {}), ConfigError), (lambda: read_boxes(tmp_path), InputError)):
        with pytest.raises(kind) as error:
            read()
        assert f"{path}: {expected}" in error.value.message or f"{path}: line" in error.value.message
        assert expected in error.value.message
    assert time.monotonic() - started < 5


def test_named_configs_are_valid_and_say_what_they_mean() -> None:
    names = sorted(path.stem for path in config_folder().glob("*.yaml"))
    assert {"quickstart", "resnet50", "fasterrcnn_resnet50_fpn"} <= set(names)
    for name in names:
        assert load(name, {}, others=frozenset({"vary"})).backbone
        assert "#" in (config_folder() / f"{name}.yaml").read_text()
    assert load("fasterrcnn_resnet50_fpn", {}).backbone == Settings().backbone
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        load("quickstar", {})
