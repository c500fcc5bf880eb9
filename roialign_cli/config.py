"""YAML and keywords -> one validated Settings. The only home of defaults.

The help of the command line reads its defaults here, so importing this must stay cheap.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from roialign_cli.errors import ConfigError
from roialign_cli.system.safe_read import YamlError, read_yaml

BoxesFormat = Literal[
    "auto", "native", "jsonl", "coco", "coco-results", "voc", "yolo", "labelme", "csv", "parquet", "npz"
]


MAX_PIXELS = 178_956_970  # Pillow's limit
# The averages of so many samples are 1e-6 of the maximum from mode exact for a RoI of 50 cells (measured), the rounding of
# float32; the time of a RoI has grown by then from 0.03 ms to 0.13, and of mode max to seconds.
MAX_SAMPLING_RATIO = 1024


@dataclass(frozen=True)
class Settings:
    """How features are made. The fields up to `dtype` decide what the file holds; the others only how it gets there."""

    backbone: str = "fasterrcnn_resnet50_fpn"
    weights: str = "DEFAULT"
    layers: tuple[str, ...] = ()  # empty: the backbone's own choice
    output_size: tuple[int, int] = (7, 7)
    sampling_ratio: int = 0
    aligned: bool = True
    mode: Literal["avg", "max", "exact"] = "avg"
    reduce: Literal["none", "mean", "max"] = "none"
    head: Literal["none", "box", "c5"] = "none"  # a vector per box: by a detector's box head, by a ResNet's last stage
    resize: str = "backbone"  # backbone (its own choice), none, or SHORT[,MAX]
    clip: bool = False
    labels: tuple[str, ...] = ()  # of the boxes that are wanted; empty: all
    min_score: float = 0.0
    min_size: float = 0.0  # pixels of the shorter side
    max_boxes: int = 0  # per image; 0: all
    crowd: bool = True  # whether boxes that COCO calls a crowd are wanted
    grid: str = ""  # ROWSxCOLUMNS boxes of every image, instead of a box file
    canonical_level: int = 4  # k0 of Eq. 1 of arXiv:1612.03144: the level of a box of canonical_size
    canonical_size: int = 224
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    dtype: Literal["float32", "float16"] = "float32"
    compile: bool = False  # the backbone, by torch.compile
    device: str = "auto"
    kernel: Literal["auto", "cpu", "cuda", "torchvision"] = "auto"
    batch_size: int = 0  # 0: by image size
    workers: int = 0  # 0: by number of cores
    processes: int = 0  # 0: one per device
    boxes_format: BoxesFormat = "auto"
    columns: str = ""  # of a table, where their names do not say what they are
    classes: str = ""  # file of YOLO's class names
    images_json: str = ""  # COCO file that names the images of COCO results
    voc_origin: Literal[0, 1] = 1  # what the first pixel of a VOC file is called
    max_pixels: int = MAX_PIXELS  # of an image: more are taken for an attack; 0: no limit
    image_timeout: float = 300.0  # seconds to decode an image; 0: no limit
    on_error: Literal["skip", "stop"] = "skip"
    on_nonfinite: Literal["error", "keep"] = (
        "error"  # an image with NaN or infinite features fails, or is kept and noted
    )

    def identity(self) -> dict[str, Any]:
        """The settings that decide what the file holds; a resumed run must agree in all of them."""
        names = [field.name for field in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in names[: names.index("dtype") + 1]}


HEADS: Mapping[str, Mapping[str, object]] = {  # what they take; what is given overrules
    "box": {"sampling_ratio": 2, "aligned": False},  # as torchvision's were trained
    "c5": {"output_size": (14, 14)},  # detectron2's POOLER_RESOLUTION of its C4 models
}
SETTING_NAMES = [field.name for field in dataclasses.fields(Settings)]


def load(config: str | None, given: Mapping[str, object], *, others: frozenset[str] = frozenset()) -> Settings:
    """Settings from defaults, then a named or own YAML file, then what was given (None: not given).

    `others` are keys of the file that are no settings, and somebody else's to read. Raises ConfigError naming the file or
    option, the key, what was expected and what was found.
    """
    merged: dict[str, object] = {}
    if config is not None:
        values = {key: value for key, value in read(config).items() if key not in others}
        merged.update(_check_keys(values, str(find_config(config))))
    merged.update({name: value for name, value in _check_keys(given, "settings").items() if value is not None})
    merged = {**HEADS.get(str(merged.get("head")), {}), **merged}
    return _validate({name: _normalise(name, value) for name, value in merged.items()})


def read(config: str) -> Mapping[str, object]:
    """What a named or own YAML file says, unchecked."""
    return _read_yaml(find_config(config))


def config_folder() -> Path:
    """Where the named configs are: in the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def find_config(config: str) -> Path:
    """The file of a named config, or the path itself."""
    path = Path(config)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            found = "no regular file" if path.exists() else "nothing there"
            raise ConfigError("config-missing", f"{config}: expected a YAML file, found {found}")
        return path
    named = config_folder() / f"{config}.yaml"
    if not named.is_file():
        known = sorted(p.stem for p in config_folder().glob("*.yaml"))
        expected = f"expected a file or one of {', '.join(known)}"
        raise ConfigError("config-missing", f"config: {expected}, found {config!r}", suggest(config, known))
    return named


def suggest(name: str, known: list[str]) -> str:
    """A hint naming what was probably meant, or nothing."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else ""


def parse_resize(resize: str) -> tuple[int, int | None] | None:
    """`none` -> None, `SHORT[,MAX]` -> (SHORT, MAX or None)."""
    if resize == "none":
        return None
    short, _, longest = resize.partition(",")
    return int(short), int(longest) if longest else None


def _read_yaml(path: Path) -> Mapping[str, object]:
    try:
        content = read_yaml(path)
    except YamlError as error:
        raise ConfigError("config-yaml", f"{path}: {error}") from None
    except OSError as error:
        raise ConfigError("config-yaml", f"{path}: expected YAML, found: {error.strerror}") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError("config-yaml", f"{path}: expected key: value lines, found {type(content).__name__}")
    return content


def _check_keys(values: Mapping[str, object], where: str) -> dict[str, object]:
    keys = {str(key).replace("-", "_"): value for key, value in values.items()}
    for key in keys:
        if key not in SETTING_NAMES:
            hint = suggest(key, SETTING_NAMES) or f"known settings: {', '.join(SETTING_NAMES)}"
            if key == "vary":
                hint = "`vary` is for roialign ablate"
            raise ConfigError("config-key", f"{where}: {key}: no such setting", hint)
    return keys


def _normalise(name: str, value: object) -> object:
    """The forms people write (`7x7`, `a,b`, `800,1333`) as the one form Settings holds."""
    if name in ("layers", "labels") and isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if name == "labels" and isinstance(value, list):
        return [str(label) for label in value]  # YAML reads 3 as a number
    if name == "output_size" and isinstance(value, int) and not isinstance(value, bool):
        return [value, value]
    if name == "output_size" and isinstance(value, str):
        sides = value.lower().split("x")
        if len(sides) in (1, 2) and all(side.strip().isdecimal() for side in sides):
            return [int(sides[0]), int(sides[-1])]
        raise ConfigError("config-value", f"output_size: expected a number or HEIGHTxWIDTH, found {value!r}")
    if name == "resize" and value is not None and not isinstance(value, str | bool):
        return ",".join(str(side) for side in (value if isinstance(value, list | tuple) else [value]))
    return list(value) if isinstance(value, tuple) else value


def _validate(values: dict[str, object]) -> Settings:
    import msgspec

    for name, kind in get_type_hints(Settings).items():
        if get_origin(kind) is Literal and values.get(name, get_args(kind)[0]) not in get_args(kind):
            choices = ", ".join(get_args(kind))
            hint = suggest(str(values[name]), list(get_args(kind)))
            raise ConfigError("config-value", f"{name}: expected one of {choices}, found {values[name]!r}", hint)
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at `$.")
        name = place.rstrip("`").split("[")[0]
        found = f", found {values[name]!r}" if name in values else ""
        raise ConfigError("config-value", f"{name or 'settings'}: {reason}{found}") from None
    least = dict.fromkeys(
        (
            "sampling_ratio",
            "batch_size",
            "workers",
            "processes",
            "canonical_level",
            "min_score",
            "min_size",
            "max_boxes",
            "max_pixels",
            "image_timeout",
        ),
        0,
    )
    least["canonical_size"] = 1
    for name, low in least.items():
        if getattr(settings, name) < low:
            raise ConfigError("config-value", f"{name}: expected at least {low}, found {getattr(settings, name)}")
    if settings.sampling_ratio > MAX_SAMPLING_RATIO:
        found = f"expected at most {MAX_SAMPLING_RATIO}, found {settings.sampling_ratio}"
        raise ConfigError("config-value", f"sampling_ratio: {found}", "mode exact is the limit of ever more samples")
    if min(settings.output_size) < 1:
        raise ConfigError("config-value", f"output_size: expected at least 1, found {settings.output_size}")
    if settings.head != "none" and settings.reduce != "none":
        found = f"expected none beside head {settings.head}, found {settings.reduce!r}"
        raise ConfigError("config-value", f"reduce: {found}")
    sides = settings.resize.split(",")
    if settings.resize not in ("backbone", "none") and not (
        len(sides) <= 2 and all(side.isdecimal() and int(side) > 0 for side in sides)
    ):
        raise ConfigError("config-value", f"resize: expected none or SHORT[,MAX], found {settings.resize!r}")
    return settings
