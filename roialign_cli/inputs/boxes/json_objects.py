"""Check that each key of a JSON object occurs once: parsers keep the last of two, and would silently drop the boxes of
the first.
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
KEY_PATTERN = re.compile(SPACE + rb"[{,]" + SPACE + rb'("(?:[^"\\]++|\\.)*+")' + SPACE + rb":" + SPACE)
END_PATTERN = re.compile(SPACE + rb"\}" + SPACE)


def check_keys(where: str | Path, content: bytes, values: Mapping[str, msgspec.Raw]) -> None:
    """Check that every key of an object occurs once, given its undecoded values. Raises InputError naming one that repeats.

    Without a repeated key, the text is a sequence of keys and values in the order of the mapping. Comparing the two takes
    a fraction of the time of decoding.
    """
    position = 0
    for key, value in values.items():
        found = KEY_PATTERN.match(content, position)
        if found is None or not content.startswith(value, found.end()):
            raise duplicate_key_error(where, key)
        position = found.end() + len(memoryview(value))
    if END_PATTERN.fullmatch(content, position) is None and values:
        found = KEY_PATTERN.match(content, position)
        raise duplicate_key_error(where, msgspec.json.decode(found[1]) if found else "")


def quoted_field_names(kind: type[msgspec.Struct]) -> tuple[bytes, ...]:
    """Return the field names of a structure in quotes, as they are written in JSON."""
    return tuple(f'"{name}"'.encode() for name in kind.__struct_encode_fields__)


def check_field_names(where: str | Path, content: bytes, names: tuple[bytes, ...]) -> None:
    """Check that none of these quoted names is a repeated key of an object; faster than `check_keys` if none repeats.

    Raises InputError naming a repeated key.
    """
    suspicious = b"\\" in content
    for name in names:
        suspicious = suspicious or content.count(name) > 1
    if suspicious:
        check_keys(where, content, msgspec.json.decode(content, type=dict[str, msgspec.Raw]))


def duplicate_key_error(where: str | Path, key: str) -> InputError:
    """Return the error of a key that occurs more than once in an object."""
    return format_error(f'{where}: "{key}"', "expected each key once, found it twice")


def decode_top_level(path: Path, content: bytes) -> dict[str, Any]:
    """Return the values of the outermost JSON object by key, not yet decoded; `path` is for errors. Raises InputError."""
    try:
        values = msgspec.json.decode(content, type=dict[str, msgspec.Raw])
    except msgspec.ValidationError:
        raise format_error(path, "expected a JSON object: image names with boxes, or COCO instances") from None
    except msgspec.DecodeError as error:
        return _decode_with_nan(path, content, str(error))
    check_keys(path, content, values)
    return values


def _decode_with_nan(path: Path, content: bytes, reason: str) -> dict[str, Any]:
    """Decode JSON with NaN and Infinity, which Python writes although JSON forbids them, so that an error names the box.

    They become strings that start with a NUL character. `reason` is the error of the strict decoder.
    """

    def check_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise duplicate_key_error(path, next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i])))
        return found

    try:
        parsed = json.loads(content, parse_constant=lambda name: f"\0{name}", object_pairs_hook=check_pairs)
    except (ValueError, RecursionError):
        hint = "name the format with --boxes-format; the docs describe the box formats"
        raise format_error(path, f"expected JSON, found: {reason}", hint) from None
    if not isinstance(parsed, dict):
        raise format_error(path, "expected a JSON object: image names with boxes, or COCO instances")
    return {name: msgspec.Raw(json.dumps(value, ensure_ascii=False).encode()) for name, value in parsed.items()}
