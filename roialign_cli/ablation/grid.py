"""What is varied: `--vary sampling-ratio=0,1,2` and the like become a grid of variants."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roialign_cli import config
from roialign_cli.config import Settings
from roialign_cli.errors import ConfigError

OPERATORS = ("roi_align", "roi_pool")
AXES = ("op", "output_size", "sampling_ratio", "aligned", "mode")
DEFAULT = {"sampling_ratio": (0, 1, 2, 4, 8)}
TRUTH = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Variant:
    """One point of the grid. Of what an operator does not look at, the settings hold one and the same value."""

    op: str
    settings: Settings

    @property
    def size(self) -> str:
        """The output size as people write it."""
        return "{}x{}".format(*self.settings.output_size)

    @property
    def sampling(self) -> str:
        """How bins are sampled, in a word."""
        if self.op == "roi_pool":
            return "rounded"
        if self.settings.mode == "exact":
            return "exact"
        return f"ratio {self.settings.sampling_ratio}" if self.settings.sampling_ratio else "adaptive"

    @property
    def name(self) -> str:
        """All of it, fit for a file name: roi_align-7x7-ratio_2-aligned-avg."""
        parts = [self.op, self.size]
        if self.op == "roi_align":
            parts += [self.sampling.replace(" ", "_"), "aligned" if self.settings.aligned else "unaligned"]
            parts += [] if self.settings.mode == "exact" else [self.settings.mode]
        return "-".join(parts)


def parse_vary(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """`sampling-ratio=0,1,2` to {"sampling_ratio": ("0", "1", "2")}; values are checked with the grid."""
    found: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values.strip(" ,"):
            raise ConfigError("vary", f"vary: expected NAME=VALUE,VALUE,..., found {text!r}", "sampling-ratio=0,1,2,4")
        found[name.strip()] = tuple(value.strip() for value in values.split(",") if value.strip())
    return found


def make_grid(settings: Settings, vary: Mapping[str, Any]) -> tuple[Variant, ...]:
    """All combinations of the values, in order; those that would compute the same are one.

    Raises ConfigError: something else is varied, or a value is none of its setting.
    """
    axes: dict[str, Sequence[Any]] = {}
    for key, values in (vary or DEFAULT).items():
        name = str(key).replace("-", "_")
        if name not in AXES:
            hint = config.suggest(name, list(AXES))
            raise ConfigError("vary", f"vary: expected one of {', '.join(AXES)}, found {key!r}", hint)
        axes[name] = tuple(values) if isinstance(values, list | tuple) else (values,)
        if not axes[name]:
            raise ConfigError("vary", f"vary: {key}: expected values, found none")
    fixed = {name: value for name, value in dataclasses.asdict(settings).items() if name not in axes}
    names = list(axes)
    points = (dict(zip(names, values, strict=True)) for values in itertools.product(*axes.values()))
    return tuple(dict.fromkeys(_variant(fixed, point) for point in points))


def _variant(fixed: dict[str, Any], point: dict[str, Any]) -> Variant:
    op = str(point.get("op", OPERATORS[0]))
    if op not in OPERATORS:
        hint = config.suggest(op, list(OPERATORS))
        raise ConfigError("vary", f"vary: op: expected one of {', '.join(OPERATORS)}, found {op!r}", hint)
    chosen = {name: _read(name, value) for name, value in point.items() if name != "op"}
    settings = config.load(None, {**fixed, **chosen, "reduce": "none", "head": "none"})
    if op == "roi_pool":
        settings = dataclasses.replace(settings, sampling_ratio=0, aligned=False, mode="max")
    elif settings.mode == "exact":
        settings = dataclasses.replace(settings, sampling_ratio=0)
    return Variant(op, settings)


def _read(name: str, value: Any) -> Any:
    """Numbers and truth values from the words of a command line."""
    if not isinstance(value, str):
        return value
    if name == "sampling_ratio" and value.lstrip("-").isdecimal():
        return int(value)
    if name == "aligned":
        return TRUTH.get(value.lower(), value)
    return value
