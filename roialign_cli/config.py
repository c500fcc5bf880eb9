"""Turn YAML files and keywords into one validated Settings. This module is the only home of defaults.

The help of the command line reads its defaults here, so importing this module must stay cheap.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from roialign_cli.errors import ConfigError
from roialign_cli.system.safe_read import YamlError, read_yaml

BoxesFormat = Literal[
    "auto", "native", "jsonl", "coco", "coco-results", "voc", "yolo", "detections", "dota", "text", "labelme",
    "label-studio", "label-map", "cvat", "csv", "parquet", "npz", "butd",
]  # fmt: skip
BoxUnits = Literal[
    "", "xyxy", "xywh", "cxcywh", "yxyx", "xyxy-relative", "xywh-relative", "cxcywh-relative", "yxyx-relative"
]
Mode = Literal["avg", "max", "exact"]
Reduce = Literal["none", "mean", "max"]
Head = Literal["none", "box", "c5"]
Centers = Literal["assumed", "measured"]
Region = Literal["box", "rotated", "mask", "points"]
LevelChoice = Literal["assign", "all", "soft"]
Fuse = Literal["mean", "sum", "max", "concat"]
Decoder = Literal["auto", "pillow", "torchcodec"]
Precision = Literal["float32", "tf32", "bfloat16", "float16"]
Dtype = Literal["float32", "float16"]
Kernel = Literal["auto", "cpu", "cuda", "torchvision"]
Resize = tuple[int, int | None] | None  # (short side, longest side or None) in pixels; None: the image's own size

WHOLE_IMAGE = "1x1"  # the grid that --whole-image means
MAX_PIXELS = 178_956_970  # above this, Pillow raises DecompressionBombError by default
DETECTION_RESIZE = (800, 1333)  # pixels: short side and maximum of the long side in torchvision's detection models
# With this many samples per bin and axis, the average over a RoI of 50 cells differs from mode exact by 1e-6 of the
# maximum (measured), which is the rounding of float32. One RoI then takes 0.13 ms instead of 0.03, and seconds in mode max.
MAX_SAMPLING_RATIO = 1024

MAX_DETECTED = 10_000  # boxes of an image, for which a run makes room

NonNegativeInt = Annotated[int, msgspec.Meta(ge=0)]
PositiveInt = Annotated[int, msgspec.Meta(ge=1)]
MAX_RESIZE = 1_000_000  # pixels
Bins = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Threads = Annotated[int, msgspec.Meta(ge=0, le=4096)]
NonNegativeFloat = Annotated[float, msgspec.Meta(ge=0)]
Share = Annotated[float, msgspec.Meta(ge=0, le=1)]
ContextScale = Annotated[float, msgspec.Meta(ge=0.01, le=100)]
SamplingRatio = Annotated[int, msgspec.Meta(ge=0, le=MAX_SAMPLING_RATIO)]

TYPE_WORDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "array": "a list"}
BOUND_WORDS = {">=": "at least", "<=": "at most"}


@dataclass(frozen=True)
class Settings:
    """The settings of a run. The fields up to `dtype` decide what the file holds; the others only how it is made."""

    backbone: str = "fasterrcnn_resnet50_fpn"
    weights: str = "DEFAULT"
    layers: tuple[str, ...] = ()  # empty: the backbone's own choice
    output_size: tuple[Bins, Bins] = (7, 7)  # bins: (height, width)
    output_sizes: tuple[tuple[Bins, Bins], ...] = ()  # several sizes, a layer each; empty: output_size
    region: Region = "box"  # what is pooled of each annotation
    region_missing: Literal["error", "box"] = "error"  # annotations that lack it: refused, or pooled by their box
    deform: str = ""  # file of a trained head that moves the bins of each box
    sampling_ratio: SamplingRatio = 0  # samples per bin and axis; 0: adaptive
    aligned: bool = True
    centers: Centers = "assumed"  # of the cells of a map: as `aligned` says, or where the backbone's cells look
    mode: Mode = "avg"
    reduce: Reduce = "none"
    context: tuple[ContextScale, ...] = ()  # boxes scaled about their centre, several a layer each; empty: as they are
    levels: LevelChoice = "assign"  # of a pyramid: that of the box's size, all, or the two next to its size, blended
    fuse: Fuse = "mean"  # how features of all levels become one
    head: Head = "none"  # one vector per box, from a detector's box head or a ResNet's last stage (c5)
    resize: str = "backbone"  # backbone (its own choice), none, or SHORT[,MAX] pixels
    clip: bool = False  # clip boxes to their image
    labels: tuple[str, ...] = ()  # keep only boxes with these labels; empty: all
    min_score: NonNegativeFloat = 0.0
    min_size: NonNegativeFloat = 0.0  # pixels of the shorter side
    max_boxes: NonNegativeInt = 0  # per image; 0: all
    crowd: bool = True  # keep boxes that COCO marks as iscrowd
    grid: str = ""  # ROWSxCOLUMNS boxes on every image, instead of a box file
    detect: bool = False  # boxes that the backbone's own detector finds, instead of a box file
    proposals: bool = False  # its proposals, before its box head
    nms: Share = 0.5  # intersection over union above which the detector drops the box with the lower score
    class_agnostic: bool = False  # between boxes of different classes, too
    canonical_level: NonNegativeInt = 4  # k0 in Eq. 1 of arXiv:1612.03144: the level of a box of canonical_size
    canonical_size: PositiveInt = 224  # pixels
    decoder: Decoder = "pillow"  # of images; auto: torchcodec if it is installed
    precision: Precision = "float32"  # of the computation
    dtype: Dtype = "float32"  # of the stored features
    compile: bool = False  # run the backbone through torch.compile
    device: str = "auto"
    kernel: Kernel = "auto"
    batch_size: NonNegativeInt = 0  # 0: chosen by image size
    workers: Threads = 0  # 0: the number of cores
    processes: Threads = 0  # 0: one per device
    boxes_format: BoxesFormat = "auto"
    box_units: BoxUnits = ""  # the four numbers of a box; empty: those of the format
    columns: str = ""  # WHAT=NAME,... for tables whose column names are not recognised, or all roles in their order
    allow_outside: bool = False  # accept files of which most boxes lie outside their images
    classes: str = ""  # file with the class names of YOLO labels
    images_json: str = ""  # COCO file with the image names for COCO results
    voc_origin: Literal[0, 1] = 1  # coordinate of the first pixel in VOC files
    max_pixels: NonNegativeInt = MAX_PIXELS  # per image; larger ones are refused as possible attacks; 0: no limit
    image_timeout: NonNegativeFloat = 300.0  # seconds to decode an image; 0: no limit
    on_error: Literal["skip", "stop"] = "skip"
    on_nonfinite: Literal["error", "keep"] = "error"  # images with NaN or infinite features fail, or are kept and noted

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide what the file holds; a resumed run must have the same values."""
        names = [field.name for field in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in names[: names.index("dtype") + 1]}


HEADS: Mapping[str, Mapping[str, object]] = {  # default settings of each head; the user's settings override them
    "box": {"sampling_ratio": 2, "aligned": False},  # the values that torchvision's box heads were trained with
    "c5": {"output_size": (14, 14)},  # POOLER_RESOLUTION of detectron2's C4 models
}
# Likewise, of a detector, for its boxes and its proposals: those of torchvision's Faster R-CNN.
DETECTION: Mapping[bool, Mapping[str, object]] = {
    False: {"min_score": 0.05, "max_boxes": 100},
    True: {"max_boxes": 1000, "nms": 0.7},
}
REGIONS: Mapping[str, Mapping[str, object]] = {"mask": {"mode": "exact"}}  # likewise, of each kind of region
REGION_LIMITS: Mapping[str, Mapping[str, tuple[object, ...]]] = {  # the values that settings may have with a kind of region
    "rotated": {"kernel": ("auto", "cpu", "cuda")},
    "mask": {"mode": ("exact", "avg"), "context": ((),), "output_sizes": ((),), "kernel": ("auto", "cpu", "cuda")},
    "points": {  # a box has no points, and points no bins
        "region_missing": ("error",), "reduce": ("none",), "head": ("none",), "context": ((),), "output_sizes": ((),),
        "kernel": ("auto", "cpu", "cuda"),
    },
}  # fmt: skip
DEFORM_LIMITS: Mapping[str, tuple[object, ...]] = {  # likewise, with a head that moves bins
    "region": ("box",), "mode": ("avg", "exact"), "levels": ("assign",), "output_sizes": ((),),
    "kernel": ("auto", "cpu", "cuda"),
}  # fmt: skip
DETECT_LIMITS: Mapping[str, tuple[object, ...]] = {  # likewise, with a detector
    "region": ("box",), "deform": ("",), "grid": ("",), "head": ("none", "box"), "clip": (False,), "labels": ((),),
    "min_size": (0.0,),
}  # fmt: skip
INPUT_KEYS = frozenset({"images", "boxes", "output"})  # of a configuration, which `extract` reads beside the settings
SETTING_NAMES = [field.name for field in dataclasses.fields(Settings)]


def load(config: str | None, given: Mapping[str, object], *, others: frozenset[str] = frozenset()) -> Settings:
    """Return the settings: the defaults, overridden by a YAML file, overridden by the values in `given` that are not None.

    `config` is the name of a packaged config or the path of a YAML file. Its keys in `others` and INPUT_KEYS are not settings
    and are ignored. Raises ConfigError naming the file or option, the key, what was expected and what was found.
    """
    merged: dict[str, object] = {}
    if config is not None:
        values = {key: value for key, value in read(config).items() if key not in others | INPUT_KEYS}
        merged.update(_split_sizes(_check_keys(values, str(find_config(config)))))
    values = {name: value for name, value in _check_keys(given, "settings").items() if value is not None}
    merged.update(_split_sizes(values))
    detection = DETECTION[bool(merged.get("proposals"))] if merged.get("detect") else {}
    merged = {
        **HEADS.get(str(merged.get("head")), {}),
        **REGIONS.get(str(merged.get("region")), {}),
        **detection,
        **merged,
    }
    return _validate({name: _normalise(name, value) for name, value in merged.items()})


def require_one_size(settings: Settings, what: str) -> None:
    """Raise ConfigError if the settings have several output sizes, where `what` takes one."""
    if settings.output_sizes:
        found = ",".join(format_size(size) for size in settings.output_sizes)
        raise ConfigError("config-value", f"output_size: expected one size for {what}, found {found}")


def require_known_boxes(settings: Settings, what: str) -> None:
    """Raise ConfigError if boxes are still to be found, where `what` takes known ones."""
    if settings.detect:
        raise ConfigError(
            "config-value", f"detect: expected a box file for {what}, found detect", "--detect is for extract"
        )


def require_plain_boxes(settings: Settings, what: str) -> None:
    """Raise ConfigError unless boxes are pooled as they are, from the level of their size, where `what` takes only that."""
    if settings.context:
        found = ",".join(format_scale(scale) for scale in settings.context)
        raise ConfigError("config-value", f"context: expected none for {what}, found {found}")
    if settings.levels != "assign":
        raise ConfigError("config-value", f"levels: expected assign for {what}, found {settings.levels!r}")


def format_scale(scale: float) -> str:
    """Return a scale of boxes as text."""
    return f"{scale:g}"


def format_size(size: tuple[int, int]) -> str:
    """Return an output size as HEIGHTxWIDTH."""
    return "{}x{}".format(*size)


def read(config: str) -> Mapping[str, object]:
    """Return the unchecked content of a YAML file, given its path or the name of a packaged config."""
    return _read_yaml(find_config(config))


def config_folder() -> Path:
    """Return the folder of the packaged configs: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def config_names() -> list[str]:
    """Return the names of the packaged configs."""
    return sorted(path.stem for path in config_folder().glob("*.yaml"))


def find_config(config: str) -> Path:
    """Return the file of a packaged config, or the path itself. Raises ConfigError if there is no file."""
    path = Path(config)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if not path.is_file():
            found = "something else" if path.exists() else "nothing there"
            raise ConfigError("config-missing", f"{config}: expected a YAML file, found {found}")
        return path
    packaged = config_folder() / f"{config}.yaml"
    if not packaged.is_file():
        known = config_names()
        expected = f"expected a file or one of {', '.join(known)}"
        raise ConfigError("config-missing", f"config: {expected}, found {config!r}", suggest(config, known))
    return packaged


def suggest(name: str, known: list[str]) -> str:
    """Return a hint with the known names closest to `name`, or an empty string if none is close."""
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else ""


def parse_resize(resize: str) -> Resize:
    """Parse `none` to None and `SHORT[,MAX]` to (SHORT, MAX or None), in pixels."""
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


def _split_sizes(values: Mapping[str, object]) -> dict[str, object]:
    """Return the settings with one output size as `output_size`, and several as `output_sizes`, too, the first being both.

    `output_size: 7,14` and `output_sizes: [7, 14]` mean the same. Values that override one override both.
    """
    one, several = values.get("output_size"), values.get("output_sizes")
    if isinstance(one, str) and "," in one:
        several = [part for part in one.split(",") if part.strip()]
    if isinstance(several, list | tuple) and several:
        sizes = [_normalise("output_size", size) for size in several]
        if any(sizes.count(size) > 1 for size in sizes):
            raise ConfigError("config-value", f"output_sizes: expected different sizes, found {several!r}")
        return {**values, "output_size": sizes[0], "output_sizes": sizes if len(sizes) > 1 else []}
    return {**values, "output_sizes": []} if one is not None else dict(values)


def _normalise(name: str, value: object) -> object:
    """Convert the spellings that people write (`7x7`, `a,b`, `800,1333`) to the types of Settings."""
    if name in ("layers", "labels") and isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    if name == "labels" and isinstance(value, list):
        return [str(label) for label in value]  # YAML reads a label such as 3 as a number
    if name == "output_size" and isinstance(value, int) and not isinstance(value, bool):
        return [value, value]
    if name == "output_size" and isinstance(value, str):
        sides = value.lower().split("x")
        if len(sides) in (1, 2) and all(side.strip().isdecimal() for side in sides):
            return [int(sides[0]), int(sides[-1])]
        raise ConfigError("config-value", f"output_size: expected a number or HEIGHTxWIDTH, found {value!r}")
    if name == "resize" and value is not None and not isinstance(value, str | bool):
        return ",".join(str(side) for side in (value if isinstance(value, list | tuple) else [value]))
    if name == "context":
        value = _parse_context(value)
    return list(value) if isinstance(value, tuple) else value


def _parse_context(value: object) -> object:
    """Return the scales of boxes as a list; a scale of 1 by itself changes nothing, and gives none."""
    parts: Any = value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
    try:
        scales = [math.nan if isinstance(part, bool) else float(part) for part in parts if part != ""]
    except (TypeError, ValueError):
        scales = [math.nan]
    if not all(map(math.isfinite, scales)):
        raise ConfigError("config-value", f"context: expected numbers such as 1,1.5,2, found {value!r}")
    if len(set(map(format_scale, scales))) < len(scales):
        raise ConfigError("config-value", f"context: expected different scales, found {value!r}")
    return [] if scales == [1] else scales


def _validate(values: dict[str, object]) -> Settings:
    for name, kind in get_type_hints(Settings).items():
        if get_origin(kind) is Literal and values.get(name, get_args(kind)[0]) not in get_args(kind):
            choices = [str(choice) for choice in get_args(kind)]
            expected = f"expected one of {', '.join(choices)}"
            hint = suggest(str(values[name]), choices)
            raise ConfigError("config-value", f"{name}: {expected}, found {values[name]!r}", hint)
    try:
        settings = msgspec.convert(values, Settings)
    except msgspec.ValidationError as error:
        raise _value_error(str(error), values) from None
    if settings.decoder != "pillow":
        installed = find_spec("torchcodec") is not None
        if settings.decoder == "torchcodec" and not installed:
            message = "decoder: expected the package torchcodec, found none"
            raise ConfigError("config-value", message, "pip install 'roialign[codec]'")
        settings = dataclasses.replace(settings, decoder="torchcodec" if installed else "pillow")
    _check_region(settings)
    _check_detection(settings)
    if settings.head != "none":
        require_one_size(settings, f"head {settings.head}")
    if settings.head != "none" and settings.reduce != "none":
        found = f"expected none with head {settings.head}, found {settings.reduce!r}"
        raise ConfigError("config-value", f"reduce: {found}")
    if settings.centers == "measured" and not settings.aligned:
        raise ConfigError("config-value", "centers: expected aligned with measured, found no-aligned", "--aligned")
    if settings.fuse != Settings.fuse and settings.levels != "all":
        raise ConfigError(
            "config-value", f"fuse: expected levels all with it, found {settings.levels!r}", "--levels all"
        )
    if settings.fuse == "concat" and settings.head != "none":
        raise ConfigError("config-value", f"fuse: expected mean, sum or max with head {settings.head}, found 'concat'")
    sides = settings.resize.split(",")
    if settings.resize not in ("backbone", "none") and not (
        len(sides) <= 2 and all(side.isdecimal() and 0 < int(side) <= MAX_RESIZE for side in sides)
    ):
        raise ConfigError(
            "config-value", f"resize: expected none or SHORT[,MAX], at most {MAX_RESIZE}, found {settings.resize!r}"
        )
    return settings


def _check_region(settings: Settings) -> None:
    """Raise ConfigError if a setting makes no sense with the kind of region that is pooled, or with bins that are moved."""
    limits = [(REGION_LIMITS.get(settings.region, {}), f"region {settings.region}")]
    limits += [(DEFORM_LIMITS, "deform")] if settings.deform else []
    limits += [(DETECT_LIMITS, "detect")] if settings.detect else []
    for allowed_by_name, what in limits:
        for name, allowed in allowed_by_name.items():
            value = getattr(settings, name)
            if value not in allowed:
                choices = [str(choice) for choice in allowed if choice != ()] or ["none"]
                expected = " or ".join(part for part in (", ".join(choices[:-1]), choices[-1]) if part)
                raise ConfigError("config-value", f"{name}: expected {expected} with {what}, found {_shown(value)}")


def _check_detection(settings: Settings) -> None:
    """Raise ConfigError if settings of a detector are given without one, or contradict each other."""
    if not settings.detect:
        for name in ("proposals", "nms", "class_agnostic"):
            if getattr(settings, name) != getattr(Settings, name):
                raise ConfigError("config-value", f"{name}: expected detect with it, found none", "--detect")
        return
    if not 1 <= settings.max_boxes <= MAX_DETECTED:
        found = f"expected 1 to {MAX_DETECTED:,} with detect, found {settings.max_boxes:,}"
        raise ConfigError("config-value", f"max_boxes: {found}")
    if settings.proposals and settings.head != "none":
        raise ConfigError("config-value", f"head: expected none with proposals, found {settings.head!r}")
    if settings.proposals and settings.class_agnostic:
        raise ConfigError("config-value", "class_agnostic: expected no proposals with it, which have no classes")


def _shown(value: object) -> str:
    """Return the value of a setting as it is written."""
    if not isinstance(value, tuple):
        return repr(value)
    return ",".join(format_size(part) if isinstance(part, tuple) else str(part) for part in value)


def _value_error(message: str, values: Mapping[str, object]) -> ConfigError:
    """Return the error for a message of msgspec such as "Expected `int` >= 0 - at `$.workers`"."""
    reason, _, place = message.partition(" - at `$.")
    name = place.rstrip("`").split("[")[0]
    match = re.match(r"Expected `(\w+)`(?: ([<>]=) ([^,\s]+)|( of length \d+))?", reason)
    if match is None:
        expected = reason
    elif match[2]:
        expected = f"expected {BOUND_WORDS[match[2]]} {float(match[3]):g}"
    else:
        expected = f"expected {TYPE_WORDS.get(match[1], match[1])}{match[4] or ''}"
    found = f", found {values[name]!r}" if name in values else ""
    above = name == "sampling_ratio" and "<=" in reason
    hint = "mode exact is the limit of ever larger sampling ratios" if above else ""
    return ConfigError("config-value", f"{name or 'settings'}: {expected}{found}", hint)
