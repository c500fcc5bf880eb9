"""Load the user's models: `module.path:function` returns one, `file.pt2` was saved by torch.export, `timm:NAME` is timm's,
and `hf:NAME` or `hf:FOLDER` that of transformers.

A model takes images [N, 3, H, W], normalised as (x - mean) / std, and returns a map [N, C, H', W'] or a dict or list of
maps. Its attribute `preprocessing`, a dict, may set mean, std, resize (SHORT[,MAX]) and multiple (height and width are
padded to multiples of it); the defaults are ImageNet's mean and std, the image's own size, and 1. Importing a module runs
its code.
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

from roialign_cli.backbones import hf, timm
from roialign_cli.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Backbone, Layer, Preprocessing, resolve_resize
from roialign_cli.backbones.optimize import Compiled
from roialign_cli.backbones.weights import load_matching, parse_random, read_weights_file, state_sha256
from roialign_cli.config import Settings, parse_resize
from roialign_cli.errors import BackboneError

LIBRARIES = (timm.PREFIX, hf.PREFIX)
PREPROCESSING_KEYS = ("mean", "std", "resize", "multiple")
FUNCTION_PATTERN = re.compile(r"[A-Za-z_./][\w./-]*:[A-Za-z_]\w*")  # with slashes for an error that names the dots
MEASURED_SIDES = (256, 512)  # pixels: sides of the square images at which strides are measured


def is_custom(name: str) -> bool:
    """Return whether a backbone's name refers to a function, an exported program, or a model of timm or transformers."""
    return name.startswith(LIBRARIES) or name.endswith(".pt2") or FUNCTION_PATTERN.fullmatch(name) is not None


def load(settings: Settings) -> Backbone:
    """Load the model with its own weights, or with those of --weights PATH, and measure its strides."""
    name = settings.backbone
    is_exported, is_timm, is_hf = name.endswith(".pt2"), name.startswith(timm.PREFIX), name.startswith(hf.PREFIX)
    weights, sha256, state = "its own", "", None
    seed = parse_random(settings.weights) if is_timm or is_hf else None
    if seed is not None:
        weights = f"random:{seed}"
    elif settings.weights != "DEFAULT":
        if is_exported:
            raise BackboneError(
                "weights-unknown", f"{name}: expected no --weights, as it has its own, found {settings.weights}"
            )
        found = read_weights_file(Path(settings.weights))
        weights, sha256, state = found.name, found.sha256, found.state
    if is_timm:
        model = timm.build_model(name, settings.layers, state or seed is None, seed or 0)
    else:
        if is_hf:
            model = hf.build_model(name, random=seed is not None or state is not None, seed=seed or 0)
        else:
            model = _load_exported(Path(name)) if is_exported else _call_function(name)
        if state is not None:
            load_matching(model, state, set(model.state_dict()), weights)
    own = _parse_preprocessing(name, getattr(model, "preprocessing", {}))
    maps = _measure_maps(name, model, own.multiple)
    if is_exported and not _takes_batches(model, own.multiple):
        model = _OneByOne(model)
    unknown = [layer for layer in settings.layers if layer not in maps]
    if unknown:
        raise BackboneError("layer-unknown", f"{name}: expected one of {', '.join(maps)}, found {unknown[0]!r}")
    names = settings.layers or tuple(maps)
    digest = sha256 or state_sha256(model)
    selected: nn.Module = _SelectedMaps(Compiled(model) if settings.compile else model, names)
    resize = resolve_resize(settings, own.resize)
    return Backbone(
        name=name,
        model=selected,
        layers=tuple(Layer(layer, maps[layer][0], (maps[layer][1],)) for layer in names),
        preprocessing=Preprocessing(own.mean, own.std, resize, own.antialias, own.multiple),
        weights=weights,
        weights_sha256=digest,
    )


def describe(name: str) -> tuple[dict[str, tuple[int, int]], list[str]]:
    """Return (channels, stride) of each layer of a model, and where its weights come from. Raises BackboneError."""
    backbone = _load_without_weights(name)
    layers = {layer.name: (layer.channels, layer.strides[0]) for layer in backbone.layers}
    inner = getattr(backbone.model, "model", None)
    if isinstance(inner, timm.TokenMaps):  # all blocks of a transformer have maps of one size
        layers = dict.fromkeys(inner.layer_names, next(iter(layers.values())))
    return layers, ["DEFAULT (its own)", "random"] if name.startswith(LIBRARIES) else ["its own"]


def count_parameters(name: str) -> int:
    """Return the number of parameters of a model as it is loaded."""
    return sum(parameter.numel() for parameter in _load_without_weights(name).model.parameters())


def _load_without_weights(name: str) -> Backbone:
    """Load a model; those of libraries with random weights, which need no download."""
    return load(Settings(backbone=name, weights="random" if name.startswith(LIBRARIES) else "DEFAULT"))


class _SelectedMaps(nn.Module):
    """A model that returns a list of the requested maps, in the order of their names."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = _maps_by_name(self.model(images))
        return [maps[name] for name in self.names]

    def train(self, mode: bool = True) -> _SelectedMaps:
        """Do nothing: exported programs cannot change their mode, and other models stay in eval mode."""
        del mode
        return self


class _OneByOne(nn.Module):
    """A model that takes one image, run on each image of a batch; programs exported with a batch of one are like that."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return the maps of images [N, 3, H, W] by name."""
        found = [_maps_by_name(self.model(image[None])) for image in images]
        return {name: torch.cat([maps[name] for maps in found]) for name in found[0]}


def _takes_batches(model: nn.Module, multiple: int) -> bool:
    """Return whether a model runs on two images at once."""
    side = -(-MEASURED_SIDES[0] // multiple) * multiple
    try:
        with torch.inference_mode():
            model(torch.zeros(2, 3, side, side))
    except Exception:  # exported programs raise errors of many types
        return False
    return True


def _maps_by_name(output: Any) -> dict[str, Any]:
    """Return the outputs of a model by name: by dict key, by list index, or as `features` if there is only one."""
    if isinstance(output, Mapping):
        return {str(name): features for name, features in output.items()}
    if isinstance(output, list | tuple):
        return {str(i): features for i, features in enumerate(output)}
    return {"features": output}


def _call_function(name: str) -> nn.Module:
    """Import `module.path:function`, also from the working directory, and return the model that it returns."""
    module_name, _, function_name = name.partition(":")
    if "/" in module_name:
        dotted = module_name.removesuffix(".py").strip("./").replace("/", ".")
        found = f"{name}: expected module.path:function, found the path of a file"
        raise BackboneError("backbone-own", found, f"write {dotted}:{function_name}")
    sys.path.insert(0, str(Path.cwd()))
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        model = function()
    except Exception as error:  # the user's code may raise anything
        message = f"{name}: expected a function that returns a model, found {type(error).__name__}: {error}"
        module = module_name.removesuffix(".py")
        hint = f"write {module}:{function_name}" if module != module_name else "--debug shows the traceback"
        raise BackboneError("backbone-own", message, hint) from error
    finally:
        sys.path.remove(str(Path.cwd()))
    if not isinstance(model, nn.Module):
        found = f"found {type(model).__name__}"
        raise BackboneError("backbone-own", f"{name}: expected a function that returns a torch.nn.Module, {found}")
    return model.eval()


def _load_exported(path: Path) -> nn.Module:
    if not path.is_file():
        raise BackboneError("backbone-own", f"{path}: expected a program saved by torch.export, found nothing there")
    try:
        model: nn.Module = torch.export.load(path).module()
    except Exception as error:  # torch raises errors of many types for files that it did not write
        reason = str(error).split("\n", maxsplit=1)[0]
        raise BackboneError(
            "backbone-own", f"{path}: expected a program saved by torch.export, found: {reason}"
        ) from None
    return model


def _parse_preprocessing(name: str, given: Any) -> Preprocessing:
    if not isinstance(given, Mapping) or set(given) - set(PREPROCESSING_KEYS):
        keys = ", ".join(PREPROCESSING_KEYS)
        raise BackboneError("backbone-own", f"{name}: preprocessing: expected a dict of {keys}, found {given!r}")
    values = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, **given}
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


def _measure_maps(name: str, model: nn.Module, multiple: int) -> dict[str, tuple[int, int]]:
    """Measure (channels, stride) of each map by running a copy of the model, which may be stateful, at two sizes."""
    model_copy = copy.deepcopy(model)
    small, large = (-(-side // multiple) * multiple for side in MEASURED_SIDES)
    try:
        with torch.inference_mode():
            outputs = [_maps_by_name(model_copy(torch.zeros(1, 3, side, side))) for side in (small, large)]
    except Exception as error:  # the user's code may raise anything
        reason = str(error).split("\n", maxsplit=1)[0]
        message = f"{name}: expected a model that takes square images of {small} and {large} pixels, found: {reason}"
        is_exported = name.endswith(".pt2")
        hint = "export it with dynamic height and width" if is_exported else "--debug shows the traceback"
        raise BackboneError("backbone-own", message, hint) from error
    found = {}
    for layer, first in outputs[0].items():
        second = outputs[1][layer]
        is_map = isinstance(first, Tensor) and first.dim() == 4 and first.shape[0] == 1 and first.is_floating_point()
        grown = second.shape[-1] - first.shape[-1] if is_map else 0
        if grown <= 0:
            shape = list(first.shape) if isinstance(first, Tensor) else type(first).__name__
            message = f"{name}: {layer}: expected a map [N, C, H, W] that grows with the image, found {shape}"
            raise BackboneError("layer-not-spatial", message)
        found[layer] = (int(first.shape[1]), round((large - small) / grown))
    return found
