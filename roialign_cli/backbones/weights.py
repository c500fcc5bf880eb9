"""Find weights, by a name of torchvision, in a file or at random, and load them as checked state dicts with a SHA-256."""

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
    """Weights of a model, and where they come from."""

    name: str
    state: Mapping[str, Tensor] | None  # state dict; None: random initialisation
    sha256: str  # of the file; empty for random weights
    seed: int = 0  # of random weights
    origin: Any = None  # torchvision's entry, if the weights are known to be one


def find_weights(spec: str, entries: Any) -> Weights:
    """Return the weights that --weights names: DEFAULT or another entry of torchvision's enum, a path, or random[:SEED].

    `entries` is the model's weights enum. Raises BackboneError if the weights are unknown, unreachable or unreadable.
    """
    seed = parse_random(spec)
    if seed is not None:
        return Weights(f"random:{seed}", None, "", seed=seed)
    names = [*entries.__members__]
    if spec in names:
        return _load_entry(entries[spec])
    path = Path(spec)
    if path.suffix or path.exists():
        return read_weights_file(path, entries)
    options = f"expected {', '.join(names)}, random[:SEED] or the path of a .pth, .pt or .safetensors file"
    raise BackboneError("weights-unknown", f"weights: {options}, found {spec!r}", suggest(spec, names))


def parse_random(spec: str) -> int | None:
    """Return the seed of random[:SEED], or None for other weights. Raises BackboneError if the seed is no whole number."""
    kind, _, seed = spec.partition(":")
    if kind != "random":
        return None
    if seed and not (seed.isdecimal() and int(seed) < 2**63):
        expected = "expected random:SEED with a whole number below 2^63"
        raise BackboneError("weights-unknown", f"weights: {expected}, found {spec!r}")
    return int(seed or 0)


def state_sha256(model: nn.Module) -> str:
    """Return the SHA-256 of the names and bytes in a model's state dict, for weights that do not come from a file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def load_matching(model: nn.Module, state: Mapping[str, Tensor], known_keys: set[str], where: str) -> None:
    """Load a state dict into a model that was cut at its layers; `known_keys` are the keys of the whole model.

    Raises BackboneError if a tensor is missing, unknown to the whole model, or of another shape. The counters of batch
    norm may be missing, as in torchvision's detection weights, because only training uses them.
    """
    wanted = model.state_dict()
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    unknown = [key for key in state if key not in known_keys]
    if missing:
        found = f"{len(state)} tensors, {len(unknown)} of them unknown to the model"
        first = (
            f"expected {len(wanted)} tensors, {len(missing)} are missing, the first is {missing[0]!r}; found {found}"
        )
        hint = f"the first unknown one is {unknown[0]!r}; is it another model?" if unknown else "is it another model?"
        raise BackboneError("weights-mismatch", f"{where}: {first}", hint)
    if unknown:
        raise BackboneError(
            "weights-mismatch",
            f"{where}: expected only tensors of the model, found {len(unknown)} others, the first is {unknown[0]!r}",
        )
    for key, tensor in wanted.items():
        if key in state and state[key].shape != tensor.shape:
            shapes = f"expected shape {list(tensor.shape)}, found {list(state[key].shape)}"
            raise BackboneError("weights-mismatch", f"{where}: {key}: {shapes}", "is it another variant of the model?")
    model.load_state_dict({key: state[key] for key in wanted if key in state}, strict=False)


def load_part(part: nn.Module, prefix: str, state: Mapping[str, Tensor], where: str) -> None:
    """Load the tensors of a state dict whose keys have a prefix into a part of the model; ignore the others."""
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    load_matching(part, own, set(part.state_dict()), where)


def _load_entry(entry: Any) -> Weights:
    """Load weights of torchvision from its cache, or download them into it."""
    try:
        state = entry.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        reason = getattr(error, "reason", None) or error
        raise BackboneError(
            "weights-unreachable",
            f"{entry}: not in the cache, and the download failed: {reason}",
            "use -c quickstart, which needs no weights, or --weights PATH with a file downloaded elsewhere",
        ) from None
    return Weights(str(entry), state, hashlib.sha256(cached_file(entry).read_bytes()).hexdigest(), origin=entry)


def cached_file(entry: Any) -> Path:
    """Return the path at which torchvision caches the file of an entry."""
    return Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(entry.url).path).name


def read_weights_file(path: Path, entries: Any = ()) -> Weights:
    """Read a state dict of tensors from a .pth, .pt or .safetensors file; no other Python objects are unpickled.

    `entries` are the entries of torchvision that the file may be a copy of. Raises BackboneError.
    """
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
    except Exception as error:  # torch and safetensors raise errors of many types for files of other formats
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
    return Weights(path.name, plain, digest, origin=_find_origin(digest, entries))


def _find_origin(digest: str, entries: Any) -> Any:
    """Return the entry that a file is a copy of, if any: torchvision's file names end in the first digits of their hash."""
    known = [entry for entry in entries if digest.startswith(Path(urlparse(entry.url).path).stem.split("-")[-1])]
    return known[0] if known else None
