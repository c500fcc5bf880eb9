"""Models from elsewhere: `module.path:function`, which returns one, `file.pt2`, which torch.export has made, `timm:NAME`.

It takes images [N, 3, H, W], in [0, 1] less `mean` over `std`, and returns a map [N, C, H', W'] or a dict of named ones. An
attribute `preprocessing` of the module, a dict, may say mean, std, resize (SHORT[,MAX]) and multiple (of pixels a side that
images are padded to); otherwise it is ImageNet's mean and std, the image's own size, and 1. Naming a module runs its code.
"""

from __future__ import annotations

import copy
import importlib
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roialign_cli.backbones import timm
from roialign_cli.backbones.base import Backbone, Layer, Preprocessing, chosen_resize
from roialign_cli.backbones.optimize import Compiled
from roialign_cli.backbones.weights import load_matching, read_weights_file, state_sha256
from roialign_cli.config import Settings, parse_resize
from roialign_cli.errors import BackboneError

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
KEYS = ("mean", "std", "resize", "multiple")
FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
SIZES = (256, 512)  # pixels a side at which strides are measured


def is_custom(name: str) -> bool:
    """Whether a backbone's name is that of a function, of an exported program, or of timm's."""
    return name.startswith(timm.PREFIX) or name.endswith(".pt2") or FUNCTION.fullmatch(name) is not None


def load(settings: Settings) -> Backbone:
    """The model with its weights, or with those of --weights PATH; strides measured."""
    name = settings.backbone
    exported, of_timm = name.endswith(".pt2"), name.startswith(timm.PREFIX)
    weights, sha256, state = "its own", "", None
    if settings.weights == "random" and of_timm:
        weights = "random:0"
    elif settings.weights != "DEFAULT":
        if exported:
            raise BackboneError(
                "weights-unknown", f"{name}: expected no --weights, it has its own, found {settings.weights}"
            )
        found = read_weights_file(Path(settings.weights))
        weights, sha256, state = found.name, found.sha256, found.state
    if of_timm:
        model = timm.make(name, settings.layers, state or settings.weights == "DEFAULT")
    else:
        model = _exported(Path(name)) if exported else _made(name)
        if state is not None:
            load_matching(model, state, set(model.state_dict()), weights)
    about = _preprocessing(name, getattr(model, "preprocessing", {}))
    maps = _measure(name, model, about.multiple)
    unknown = [layer for layer in settings.layers if layer not in maps]
    if unknown:
        raise BackboneError("layer-unknown", f"{name}: expected one of {', '.join(maps)}, found {unknown[0]!r}")
    names = settings.layers or tuple(maps)
    digest = sha256 or state_sha256(model)
    tapped: nn.Module = _Tapped(Compiled(model) if settings.compile else model, names)
    resize = chosen_resize(settings, about.resize)
    return Backbone(
        name=name,
        model=tapped,
        layers=tuple(Layer(layer, maps[layer][0], (maps[layer][1],)) for layer in names),
        preprocessing=Preprocessing(about.mean, about.std, resize, about.antialias, about.multiple),
        weights=weights,
        weights_sha256=digest,
    )


class _Tapped(nn.Module):
    """The maps of the layers that were asked for, in their order."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = _named(self.model(images))
        return [maps[name] for name in self.names]

    def train(self, mode: bool = True) -> _Tapped:
        """Stays as it is: exported programs know no modes, and others are in eval mode."""
        del mode
        return self


def _named(output: Any) -> dict[str, Any]:
    if isinstance(output, Mapping):
        return {str(name): features for name, features in output.items()}
    if isinstance(output, list | tuple):
        return {str(i): features for i, features in enumerate(output)}
    return {"features": output}


def _made(name: str) -> nn.Module:
    """What the function returns; modules are looked for in the working directory, too."""
    module_name, _, function_name = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        model = function()
    except Exception as error:  # it is the user's code: anything may be raised
        message = f"{name}: expected a function that returns a model, found {type(error).__name__}: {error}"
        raise BackboneError("backbone-own", message, "--debug shows where") from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(model, nn.Module):
        found = f"found {type(model).__name__}"
        raise BackboneError("backbone-own", f"{name}: expected a function that returns a torch.nn.Module, {found}")
    return model.eval()


def _exported(path: Path) -> nn.Module:
    if not path.is_file():
        raise BackboneError("backbone-own", f"{path}: expected a program saved by torch.export, found nothing there")
    try:
        model: nn.Module = torch.export.load(path).module()
    except Exception as error:  # torch raises many kinds on files that are none of its own
        reason = str(error).split("\n", maxsplit=1)[0]
        raise BackboneError(
            "backbone-own", f"{path}: expected a program saved by torch.export, found: {reason}"
        ) from None
    return model


def _preprocessing(name: str, given: Any) -> Preprocessing:
    if not isinstance(given, Mapping) or set(given) - set(KEYS):
        raise BackboneError(
            "backbone-own", f"{name}: preprocessing: expected a dict of {', '.join(KEYS)}, found {given!r}"
        )
    values = {**IMAGENET, **given}
    try:
        mean, std = (tuple(float(v) for v in values[key]) for key in ("mean", "std"))
        resize = parse_resize(str(values["resize"])) if "resize" in values else None
        multiple = int(values.get("multiple", 1))
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0 or multiple < 1:
            raise ValueError  # noqa: TRY301
    except (TypeError, ValueError):
        expected = "expected three numbers for mean and std, SHORT[,MAX] for resize, a number for multiple"
        raise BackboneError("backbone-own", f"{name}: preprocessing: {expected}, found {given!r}") from None
    return Preprocessing((mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), resize, multiple=multiple)


def _measure(name: str, model: nn.Module, multiple: int) -> dict[str, tuple[int, int]]:
    """(channels, stride) of each map, from running it at two sizes; on a copy, for a model may keep what it sees."""
    shadow = copy.deepcopy(model)
    small, large = (-(-size // multiple) * multiple for size in SIZES)
    try:
        with torch.inference_mode():
            outputs = [_named(shadow(torch.zeros(1, 3, size, size))) for size in (small, large)]
    except Exception as error:  # the user's code again
        reason = str(error).split("\n", maxsplit=1)[0]
        message = f"{name}: expected a model that takes images of {small} and {large} pixels a side, found: {reason}"
        raise BackboneError("backbone-own", message, "export with dynamic height and width") from error
    found = {}
    for layer, first in outputs[0].items():
        second = outputs[1][layer]
        good = isinstance(first, Tensor) and first.dim() == 4 and first.shape[0] == 1 and first.is_floating_point()
        grown = second.shape[-1] - first.shape[-1] if good else 0
        if grown <= 0:
            shape = list(first.shape) if isinstance(first, Tensor) else type(first).__name__
            message = f"{name}: {layer}: expected a map [N, C, H, W] that grows with the image, found {shape}"
            raise BackboneError("layer-not-spatial", message)
        found[layer] = (int(first.shape[1]), round((large - small) / grown))
    return found
