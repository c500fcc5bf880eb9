"""Keys of JSON objects, each of which must stand there once: of two alike parsers keep the last, and the boxes of the
first would be gone without a word.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from roialign_cli.errors import InputError
from roialign_cli.inputs.boxes.common import format_error

SPACE = rb"[ \t\r\n]*+"
KEY = re.compile(SPACE + rb"[{,]" + SPACE + rb'("(?:[^"\\]++|\\.)*+")' + SPACE + rb":" + SPACE)
END = re.compile(SPACE + rb"\}" + SPACE)


def check_keys(where: str | Path, content: bytes, values: Mapping[str, msgspec.Raw]) -> None:
    """Check that every key of an object stands in it once, given its values as decoded; InputError naming one that does not.

    Without such a key the text is one key and its value after the other, in the order of the values. Comparing it with
    them takes a fraction of the time of decoding.
    """
    at = 0
    for key, value in values.items():
        found = KEY.match(content, at)
        if found is None or not content.startswith(value, found.end()):
            raise duplicate_key_error(where, key)
        at = found.end() + len(memoryview(value))
    if END.fullmatch(content, at) is None and values:
        found = KEY.match(content, at)
        raise duplicate_key_error(where, msgspec.json.decode(found[1]) if found else "")


def quoted_field_names(kind: type[msgspec.Struct]) -> tuple[bytes, ...]:
    """Return the names of a structure as they stand in JSON."""
    return tuple(f'"{name}"'.encode() for name in kind.__struct_encode_fields__)


def check_field_names(where: str | Path, content: bytes, names: tuple[bytes, ...]) -> None:
    """Check an object that is read by these names, quoted; faster than `check_keys` where none stands in it twice."""
    suspicious = b"\\" in content
    for name in names:
        suspicious = suspicious or content.count(name) > 1
    if suspicious:
        check_keys(where, content, msgspec.json.decode(content, type=dict[str, msgspec.Raw]))


def duplicate_key_error(where: str | Path, key: str) -> InputError:
    """The error of a key that stands in an object more than once."""
    return format_error(f'{where}: "{key}"', "expected each key once, found it twice")


def decode_top_level(path: Path) -> dict[str, Any]:
    """The values of the outermost JSON object, not yet decoded."""
    content = path.read_bytes()
    try:
        values = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise format_error(path, "expected a JSON object: image names with boxes, or COCO instances") from None
    except msgspec.DecodeError as error:
        return _with_nan(path, content, str(error))
    check_keys(path, content, values)
    return values


def _with_nan(path: Path, content: bytes, reason: str) -> dict[str, Any]:
    """Python writes NaN and Infinity into JSON, which JSON forbids: let them in, so that the bad box can be named."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise duplicate_key_error(path, next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i])))
        return found

    try:
        parsed = json.loads(content, parse_constant=lambda name: f"\0{name}", object_pairs_hook=once)
    except (ValueError, RecursionError):
        hint = "--boxes-format says which format it is; see the box formats in the docs"
        raise format_error(path, f"expected JSON, found: {reason}", hint) from None
    if not isinstance(parsed, dict):
        raise format_error(path, "expected a JSON object: image names with boxes, or COCO instances")
    return {name: msgspec.Raw(json.dumps(value, ensure_ascii=False).encode()) for name, value in parsed.items()}
