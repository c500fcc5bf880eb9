"""Make hostile attributes: missing ones, other types, invalid JSON, JSON of another kind, and unknown names."""

from __future__ import annotations

from collections.abc import Callable

import h5py
import numpy as np

from helpers.hostile.draft import FOUND, OPEN, REFUSED, SOUND, Case, Draft
from helpers.hostile.tables import together

DEEP = "[" * 100_000
DEEP_AND_SOUND = "[" * 100_000 + "]" * 100_000
MANY_DIGITS = "[" + "9" * 5000 + "]"


def attribute(name: str, value: object) -> Callable[[Draft], None]:
    """Set an attribute, or remove it if the value is None."""
    return lambda draft: draft.attributes.update({name: value})


def each(
    name: str, values: dict[str, object], verdict: str = REFUSED, base: str = "plain", where: str | None = None
) -> list[Case]:
    """Return a case for each value of an attribute; a refusal names the attribute unless `where` says otherwise."""
    if where is None:
        where = {"format_version": "version"}.get(name, name) if verdict == REFUSED else ""
    return [Case(f"{name}: {what}", attribute(name, value), verdict, base, where) for what, value in values.items()]


def raw(content: bytes) -> Callable[[h5py.File, str], None]:
    """Add an attribute that claims to be UTF-8."""

    def create(file: h5py.File, name: str) -> None:
        text = h5py.string_dtype("utf-8", len(content))
        kind = h5py.h5t.py_create(text, logical=True)
        made = h5py.h5a.create(file.id, name.encode("utf-8", "surrogateescape"), kind, h5py.h5s.create(h5py.h5s.SCALAR))
        made.write(np.array(content, text))

    return create


def reference(file: h5py.File, name: str) -> None:
    """Add an attribute that is a reference to a group."""
    file.require_group("images")
    file.attrs.create(name, file["images"].ref, dtype=h5py.ref_dtype)


def dangling(file: h5py.File, name: str) -> None:
    """Add an attribute that is a reference to something deleted."""
    target = file.create_group("gone")
    file.attrs.create(name, target.ref, dtype=h5py.ref_dtype)
    del file["gone"]


NO_TEXT = {
    "a number": 5, "a list of texts": ["a", "b"], "numbers": np.arange(3), "nothing": h5py.Empty("f4"),
    "a reference": reference, "empty": "",
}  # fmt: skip
NO_JSON = {"no JSON": "{nonsense", "too deep": DEEP, "deep": DEEP_AND_SOUND, "half a character": raw(b'{"\xff": 1}')}

FORMAT = [
    *each("format", {"missing": None, "another": "roialign-features-compressed", **NO_TEXT}),
    *each("format_version", {
        "missing": None, "array": np.array([1]), "two": np.array([1, 1]), "text": "1", "float": 1.0, "2": 2, "3": 3, "0": 0,
        "-1": -1, "huge": 2**63, "bool": True, "nothing": h5py.Empty("i8"), "a reference": reference,
    }),
    *each("format_version", {"int32": np.int32(1), "uint8": np.uint8(1), "big-endian": np.array(1, ">i8")}, OPEN),
]  # fmt: skip

LAYERS = [
    *each("layers", {
        "missing": None, **NO_TEXT, **NO_JSON, "no layer": "[]", "a text": '"gabor"', "an object": '{"gabor": 1}',
        "null": "null", "a number in JSON": "5", "numbers in JSON": "[1]", "null in a list": "[null]",
        "lists": '[["gabor"]]', "too many digits": MANY_DIGITS, "twice": '["gabor", "gabor"]',
    }),
    *each("layers", {"twice": '["one", "one"]'}, base="two layers"),
    # Of these a layer is missing, which the refusal may call by the name of its dataset.
    *[case for base, values in (
        ("plain", {
            "too many": '["gabor", "nope"]', "an empty name": '["gabor", ""]', "another dataset": '["../images", "../boxes"]',
            "half a surrogate": '["gabor", "\\ud800"]', "NUL": '["gabor", "\\u0000"]',
            "thousands": str([f"x{i}" for i in range(9999)]).replace("'", '"'),
        }),
        ("two layers", {
            "one of two": '["one"]', "three": '["one", "two", "three"]', "up": '["one", "../boxes"]',
            "a dot": '["one", "two", "./two"]',
        }),
    ) for case in each("layers", values, base=base, where="")],
    *each("layers", {"another name": '["other"]'}, OPEN),
    *each("layers", {"of another order": '["two", "one"]'}, SOUND, "two layers"),
    *each("strides", {
        "missing": None, **NO_TEXT, **NO_JSON, "a list": "[4]", "a number in JSON": "4", "null": "null",
        "of another layer": '{"other": [4]}',
    }, FOUND),
    *each("strides", {"a number for a list": '{"gabor": 4}', "negative": '{"gabor": [-4]}', "none": '{"gabor": []}',
                      "texts": '{"gabor": ["4"]}', "NaN": '{"gabor": [NaN]}'}, OPEN),
]  # fmt: skip

PROVENANCE = [
    *each("config", {
        "missing": None, **NO_TEXT, **NO_JSON, "a list": "[]", "a number in JSON": "5", "null": "null",
        "too many digits": MANY_DIGITS,
    }, FOUND),
    *each("config", {"no settings": "{}", "values of other kinds": '{"dtype": ["x"], "layers": {}, "resize": null}'}, OPEN),
    *[case for name in ("weights_sha256", "boxes_sha256") for case in each(name, {
        "missing": None, "a number": 5, "numbers": np.arange(3), "a reference": reference,
    }, FOUND)],
    *[case for name in ("preprocessing", "versions", "backbone", "weights", "created", "created_by") for case in each(
        name, {"missing": None, "numbers": np.arange(3), "no JSON": "{nonsense"}, OPEN)],
    *each("created_by", {"no UTF-8": raw(b"\xff\xfe"), "a reference": reference, "too deep": DEEP}, OPEN),
    *each("created_by", {"markup": "[/bold][red]", "control characters": "\x1b[2J\r\n"}, SOUND),
    *each("attributes_crc32", {"wrong": 1, "negative": -1, "text": "1", "numbers": np.arange(2), "NaN": np.nan,
                               "a reference": reference, "nothing": h5py.Empty("i8")}, FOUND),
    *each("attributes_crc32", {"missing": None}, OPEN),
]  # fmt: skip

SHARDS = [
    *[case for name in ("shard", "shards") for case in each(name, {
        "missing": None, "text": "1", "negative": -1, "zero": 0, "float": 1.5, "numbers": np.array([1, 2]),
        "NaN": np.nan, "nothing": h5py.Empty("i8"), "a reference": reference, "no number": "x",
    }, FOUND, "shards")],
    *each("shard", {"beyond the shards": 3, "huge": 2**62}, FOUND, "shards"),
    *each("shard", {"that of the other": 2}, OPEN, "shards"),
    *each("shards", {"huge": 2**62, "one more": 3, "a million": 10**6}, OPEN, "shards"),
    *[case for name in ("plan_images", "plan_boxes") for case in each(name, {
        "missing": None, "text": "6", "numbers": np.array([1, 2]), "negative": -1, "NaN": np.nan, "fewer than here": 1,
    }, FOUND, "shards")],
    *each("plan_images", {"huge": 2**62, "one more": 7}, OPEN, "shards"),
    *each("plan_boxes", {"huge": 2**62, "one more": 11}, OPEN, "shards"),
    *each("plan_sha256", {"missing": None, "numbers": np.arange(3), "a number": 5}, FOUND, "shards"),
    *each("plan_sha256", {"another": "0" * 64}, OPEN, "shards"),
    Case("shard of a file that is none", together(attribute("shard", 1), attribute("shards", 1)), FOUND),
]  # fmt: skip

UNKNOWN = each("unknown", {
    "60 KB": "x" * 60_000, "60 KB of bytes": raw(b"x" * 60_000), "10,000 texts": ["x" * 50] * 10_000, "2 MB": "x" * 2_000_000,
    "a reference": reference, "a reference to nothing": dangling, "an array": np.arange(12).reshape(3, 4),
    "a pair": np.array((1, 2.0), [("a", "i4"), ("b", "f8")]), "complex": 1 + 2j, "NaN": np.nan, "infinite": np.inf,
    "nothing": h5py.Empty("f4"), "bool": True, "bytes": np.bytes_(b"\xff\0x"), "half precision": np.float16(1),
    "a million numbers": np.arange(7000.0),
}, SOUND)  # fmt: skip
STRANGE_NAMES = [
    Case(f"an attribute whose name is {what}", attribute(name, value), OPEN)
    for what, name, value in (
        ("no UTF-8", "\udcff", raw(b"x")), ("markup", "[/bold]", 1), ("two lines", "a=1\nb", 1), ("long", "x" * 5000, 1),
    )
]  # fmt: skip

CASES = [*FORMAT, *LAYERS, *PROVENANCE, *SHARDS, *UNKNOWN, *STRANGE_NAMES]
