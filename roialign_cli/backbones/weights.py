"""Weights: torchvision's by name, a file of yours, or random; always as a checked state dict with its SHA-256."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from roialign_cli.config import suggest
from roialign_cli.errors import BackboneError
from roialign_cli.system.safe_read import require_regular_file


@dataclass(frozen=True)
class Weights:
    """A state dict, or None for random initialisation; `origin` is the torchvision entry it is known to be."""

    name: str
    state: Mapping[str, Tensor] | None
    sha256: str
    seed: int = 0
    origin: Any = None


def find_weights(spec: str, entries: Any) -> Weights:
    """What --weights names: DEFAULT, an entry of the model's torchvision enum, a path, or random[:SEED]."""
    kind, _, seed = spec.partition(":")
    if kind == "random":
        if seed and not seed.isdecimal():
            raise BackboneError("weights-unknown", f"weights: expected random:SEED with a whole number, found {spec!r}")
        return Weights(f"random:{int(seed or 0)}", None, "", seed=int(seed or 0))
    names = [*entries.__members__]
    if spec in names:
        return _named(entries[spec])
    path = Path(spec)
    if path.suffix or path.exists():
        return read_weights_file(path, entries)
    options = f"expected {', '.join(names)}, random[:SEED] or the path of a .pth, .pt or .safetensors file"
    raise BackboneError("weights-unknown", f"weights: {options}, found {spec!r}", suggest(spec, names))


def state_sha256(model: nn.Module) -> str:
    """SHA-256 over the names and bytes of a model's state, for weights that come from no file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_matching(model: nn.Module, state: Mapping[str, Tensor], everything: set[str], where: str) -> None:
    """Load what `model` needs from `state`; keys of `everything`, the unpruned model, may be left over.

    The counters of batch norm, which only training uses, may be missing: torchvision's detection weights have none.
    """
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    strange = [key for key in state if key not in everything]
    if missing:
        found = f"{len(state)} tensors, {len(strange)} of them of no use here"
        first = (
            f"expected {len(wanted)} tensors, {len(missing)} are missing, the first is {missing[0]!r}; found {found}"
        )
        hint = f"the first without use is {strange[0]!r}; is it another model?" if strange else "is it another model?"
        raise BackboneError("weights-mismatch", f"{where}: {first}", hint)
    if strange:
        raise BackboneError(
            "weights-mismatch",
            f"{where}: {len(strange)} tensors have no place in the model, the first is {strange[0]!r}",
        )
    for key, tensor in wanted.items():
        if key in state and state[key].shape != tensor.shape:
            shapes = f"expected shape {list(tensor.shape)}, found {list(state[key].shape)}"
            raise BackboneError("weights-mismatch", f"{where}: {key}: {shapes}", "is it another variant of the model?")
    model.load_state_dict({key: state[key] for key in wanted if key in state}, strict=False)


def load_part(part: nn.Module, begin: str, state: Mapping[str, Tensor], where: str) -> None:
    """The same for a part of a model whose keys begin so; the rest of the state is of no concern."""
    own = {key.removeprefix(begin): value for key, value in state.items() if key.startswith(begin)}
    load_matching(part, own, set(part.state_dict()), where)


def _named(entry: Any) -> Weights:
    """torchvision's own download and cache."""
    try:
        state = entry.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or error
        raise BackboneError(
            "weights-unreachable",
            f"{entry}: neither in the cache nor to be downloaded: {reason}",
            "use -c quickstart, which needs no weights, or --weights PATH with a file fetched elsewhere",
        ) from None
    return Weights(str(entry), state, hashlib.sha256(cached_file(entry).read_bytes()).hexdigest(), origin=entry)


def cached_file(entry: Any) -> Path:
    """Where torchvision keeps the file of one of its entries."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(entry.url).path).name


def read_weights_file(path: Path, entries: Any = ()) -> Weights:
    """A state dict of tensors; nothing else is unpickled. `entries` are torchvision's that it may be a copy of."""
    try:
        content = require_regular_file(path).read_bytes()
    except OSError as error:
        raise BackboneError("weights-missing", f"{path}: expected a weights file, found: {error.strerror}") from None
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load

            state: Any = load(content)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        message = f"{path}: expected a state dict of tensors, found other Python objects, which are not loaded"
        raise BackboneError("weights-unsafe", message, "save it with torch.save(model.state_dict(), path)") from None
    except Exception as error:  # torch and safetensors raise many kinds on files that are none of theirs
        reason = str(error).split("\n", maxsplit=1)[0]
        raise BackboneError("weights-unreadable", f"{path}: expected a state dict, found: {reason}") from None
    for wrapper in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise BackboneError(
            "weights-unreadable", f"{path}: expected a mapping of names to tensors, found something else"
        )
    plain = {str(key).removeprefix("module."): value for key, value in state.items()}
    digest = hashlib.sha256(content).hexdigest()
    return Weights(path.name, plain, digest, origin=_origin(digest, entries))


def _origin(digest: str, entries: Any) -> Any:
    """The torchvision entry a file is a copy of, if any: their names end in the first digits of their hash."""
    known = [entry for entry in entries if digest.startswith(Path(urlparse(entry.url).path).stem.split("-")[-1])]
    return known[0] if known else None
