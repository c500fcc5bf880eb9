"""Turn what is varied, such as `--vary sampling-ratio=0,1,2`, into a grid of variants."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from roialign_cli import config
from roialign_cli.config import Region, Settings
from roialign_cli.errors import ConfigError

OPERATORS = ("roi_align", "roi_pool")
AXES = ("op", "region", "output_size", "sampling_ratio", "aligned", "centers", "mode")
REGIONS = ("box", "rotated", "mask")  # points have no integral to compare with
DEFAULT = {"sampling_ratio": (0, 1, 2, 4, 8)}
TRUTH_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


@dataclass(frozen=True)
class Variant:
    """Hold one point of the grid. Settings that its operator ignores have the same value in all variants."""

    op: str
    settings: Settings

    @property
    def size(self) -> str:
        """The output size as HEIGHTxWIDTH."""
        return config.format_size(self.settings.output_size)

    @property
    def sampling(self) -> str:
        """How bins are sampled: rounded, exact, adaptive, or the ratio."""
        if self.op == "roi_pool":
            return "rounded"
        if self.settings.mode == "exact":
            return "exact"
        return f"ratio {self.settings.sampling_ratio}" if self.settings.sampling_ratio else "adaptive"

    @property
    def alignment(self) -> str:
        """Where the cells of the map are taken to look: unaligned, aligned, or measured."""
        return alignment(aligned=self.settings.aligned, centers=self.settings.centers)

    @property
    def name(self) -> str:
        """The variant as a file name: roi_align-7x7-ratio_2-aligned-avg, or roi_align-mask-7x7-exact-aligned."""
        parts = [self.op] if self.settings.region == "box" else [self.op, self.settings.region]
        parts.append(self.size)
        if self.op == "roi_align":
            parts += [self.sampling.replace(" ", "_"), self.alignment]
            parts += [] if self.settings.mode == "exact" else [self.settings.mode]
        return "-".join(parts)


def alignment(*, aligned: bool, centers: str) -> str:
    """Return where the cells of maps are taken to look, in a word."""
    return ("measured" if centers == "measured" else "aligned") if aligned else "unaligned"


def parse_vary(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """Parse `sampling-ratio=0,1,2` into {"sampling-ratio": ("0", "1", "2")}; `make_grid` checks names and values."""
    found: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, equals, values = text.partition("=")
        if not equals or not values.strip(" ,"):
            raise ConfigError("vary", f"vary: expected NAME=VALUE,VALUE,..., found {text!r}", "sampling-ratio=0,1,2,4")
        found[name.strip()] = tuple(value.strip() for value in values.split(",") if value.strip())
    return found


def make_grid(settings: Settings, vary: Mapping[str, Any]) -> tuple[Variant, ...]:
    """Return all combinations of the values, in order; variants that compute the same are merged.

    Raises ConfigError if something else is varied, or a value is not valid for its setting.
    """
    config.require_one_size(settings, "ablate, which varies it by --vary output-size=7,14")
    config.require_plain_boxes(settings, "ablate")
    config.require_known_boxes(settings, "ablate")
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
    variants = tuple(dict.fromkeys(_variant(fixed, point) for point in points))
    region_to_read(variants)
    return variants


def region_to_read(variants: Sequence[Variant]) -> Region:
    """Return the kind of region that the box file is read for: boxes come with every other kind.

    Raises ConfigError for points, or for two kinds that are not boxes.
    """
    kinds = {variant.settings.region for variant in variants} - {"box"}
    if len(kinds) > 1 or not kinds <= set(REGIONS):
        expected = f"expected {', '.join(REGIONS)}, or box and one of the others"
        found = ", ".join(dict.fromkeys(variant.settings.region for variant in variants))
        raise ConfigError("vary", f"vary: region: {expected}, found {found}")
    return next(iter(kinds), "box")


def _variant(fixed: dict[str, Any], point: dict[str, Any]) -> Variant:
    """Return the variant of a point of the grid and the settings that all points share."""
    op = str(point.get("op", OPERATORS[0]))
    if op not in OPERATORS:
        hint = config.suggest(op, list(OPERATORS))
        raise ConfigError("vary", f"vary: op: expected one of {', '.join(OPERATORS)}, found {op!r}", hint)
    chosen = {name: _read(name, value) for name, value in point.items() if name != "op"}
    values = {**fixed, **chosen, "reduce": "none", "head": "none"}
    if op == "roi_pool" or values["aligned"] is False:
        values["centers"] = "assumed"  # measured ones need `aligned`
    if op == "roi_pool":
        values |= {"region": "box", "region_missing": "error"}
    settings = config.load(None, values)
    if op == "roi_pool":
        settings = dataclasses.replace(settings, sampling_ratio=0, aligned=False, mode="max")
    elif settings.mode == "exact":
        settings = dataclasses.replace(settings, sampling_ratio=0)
    return Variant(op, settings)


def _read(name: str, value: Any) -> Any:
    """Convert words of a command line to numbers and truth values."""
    if not isinstance(value, str):
        return value
    if name == "sampling_ratio" and value.lstrip("-").isdecimal():
        return int(value)
    if name == "aligned":
        return TRUTH_WORDS.get(value.lower(), value)
    return value
