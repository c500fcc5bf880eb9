"""Make hostile tables: offsets, statuses, sizes, messages, checksums, boxes and what is known of them."""

from __future__ import annotations

from collections.abc import Callable

import h5py
import numpy as np

from helpers.hostile.draft import FOUND, OPEN, REFUSED, SOUND, Case, Draft, Values, of

HUGE = 2**63 - 1


def change(name: str, edit: Callable[[Values], Values]) -> Callable[[Draft], None]:
    """Replace a dataset by the result of a function of it."""

    def replace(draft: Draft) -> None:
        draft.datasets[name] = edit(draft.array(name).copy())

    return replace


def put(name: str, index: object, value: object) -> Callable[[Draft], None]:
    """Write one value into a dataset."""

    def edit(values: Values) -> Values:
        values[index] = value
        return values

    return change(name, edit)


def drop(name: str) -> Callable[[Draft], object]:
    """Remove a dataset."""
    return lambda draft: draft.datasets.pop(name)


def make(name: str, **options: object) -> Callable[[Draft], None]:
    """Replace a dataset by one without content, see `store`."""

    def replace(draft: Draft) -> None:
        draft.datasets[name] = of(**options)

    return replace


def together(*changes: Callable[[Draft], object]) -> Callable[[Draft], object]:
    """Do one change after another."""
    return lambda draft: [each(draft) for each in changes]


def of_table(
    name: str, edits: dict[str, Callable[[Values], Values]], verdict: str = REFUSED, base: str = "plain"
) -> list[Case]:
    """Return a case for each change of a dataset."""
    return [Case(f"{name}: {what}", change(name, edit), verdict, base, name) for what, edit in edits.items()]


def as_type(kind: str) -> Callable[[Values], Values]:
    """Convert to another type."""
    return lambda values: values.astype(kind)


def longer(values: Values) -> Values:
    """Add a line like the last."""
    return np.concatenate([values, values[-1:]])


def empty_rows(draft: Draft, images: int) -> None:
    """Keep that many images, and no boxes."""
    for name, values in draft.datasets.items():
        assert isinstance(values, np.ndarray)
        draft.datasets[name] = values[:images] if name.startswith("images/") else values[:0]
    draft.datasets["images/offset"] = np.zeros(images + 1, np.int64)


def settle(status: int) -> Callable[[Draft], None]:
    """Give the first image another status, with meaningless boxes and features."""

    def edit(draft: Draft) -> None:
        draft.array("images/status")[0] = status
        draft.array("images/size")[0] = 0
        draft.array("images/error")[0] = b"no such image" if status == 2 else b""

    return edit


WRONG_LENGTH = {"short": lambda v: v[:-1], "long": longer, "empty": lambda v: v[:0]}

OFFSETS = of_table("images/offset", {
    **WRONG_LENGTH,
    "not ascending": lambda v: v[[0, 2, 1, 4, 3, 5, 6]] + np.array([0, 1, 0, 0, -1, 0, 0]),
    "negative": lambda v: np.where(np.arange(len(v)) == 2, -3, v),
    "huge": lambda v: np.where(np.arange(len(v)) == 2, 2**62, v),
    "huge at the end": lambda v: np.where(np.arange(len(v)) == 6, 2**62, v),
    "ascending only where differences overflow": lambda v: np.array([0, HUGE, -HUGE - 1, -1, 5, 8, v[-1]]),
    "ends before N": lambda v: np.minimum(v, v[-1] - 1),
    "ends beyond N": lambda v: np.where(v == v[-1], v[-1] + 1, v),
    "starts at 1": lambda v: np.maximum(v, 1),
    "starts below 0": lambda v: np.where(np.arange(len(v)) == 0, -2, v),
    "float": as_type("f8"),
    "int32": as_type("i4"),
    "uint64 beyond int64": lambda v: np.where(np.arange(len(v)) == 3, 2**64 - 1, v.astype("u8")),
    "big-endian": as_type(">i8"),
    "two-dimensional": lambda v: v[:, None],
    "a row": lambda v: v[None],
    "a scalar": lambda v: v[0],
    "text": as_type("S8"),
    "complex": as_type("c16"),
})  # fmt: skip

STATUSES = [
    *of_table("images/status", {
        **WRONG_LENGTH,
        "int64": as_type("i8"), "float": as_type("f4"), "bool": as_type("?"), "int8": as_type("i1"),
        "text": as_type("S1"), "two-dimensional": lambda v: v[:, None], "two columns": lambda v: np.stack([v, v], 1),
    }),
    Case("images/status: 3", put("images/status", 1, 3), FOUND),
    Case("images/status: 255 of all", put("images/status", slice(None), 255), FOUND),
    Case("images/status: pending, with the rest unset", settle(0), SOUND),
    Case("images/status: failed, with the rest unset", settle(2), SOUND),
]  # fmt: skip

SIZES = [
    *of_table("images/size", {
        **WRONG_LENGTH,
        "three columns": lambda v: np.hstack([v, v[:, :1]]), "one column": lambda v: v[:, :1],
        "flat": lambda v: v.reshape(-1), "float": as_type("f8"), "int32": as_type("i4"), "uint64": as_type("u8"),
        "big-endian": as_type(">i8"),
    }),
    Case("images/size: negative", put("images/size", (0, 1), -5), FOUND),
    Case("images/size: zero of an image that is done", put("images/size", 0, 0), FOUND),
    Case("images/size: huge", put("images/size", 0, HUGE), OPEN),
]  # fmt: skip

MESSAGES = [
    *of_table("images/error", {
        **WRONG_LENGTH, "integers": lambda v: np.zeros(len(v), "i8"), "two-dimensional": lambda v: v[:, None],
    }),
    Case("images/error: of variable length", make("images/error", shape=(6,), kind=h5py.string_dtype()), REFUSED),
    Case("images/error: shorter strings", change("images/error", as_type("S100")), OPEN),
    Case("images/error: a note that is no UTF-8", put("images/error", 0, b"\xff\xfe"), OPEN),
    Case("images/error: a note of control characters", put("images/error", 0, b"\x1b[2J\x00x\r\n[/bold]"), OPEN),
    Case("images/error: a reason that is no UTF-8", together(settle(2), put("images/error", 0, b"\xff\xfe")), OPEN),
]  # fmt: skip

CHECKSUMS = [
    *of_table("images/crc32", {
        **WRONG_LENGTH, "int64": as_type("i8"), "float": as_type("f8"), "int32": as_type("i4"),
        "two-dimensional": lambda v: v[:, None], "text": as_type("S10"),
    }),
    *of_table("images/table_crc32", {
        **WRONG_LENGTH, "float": as_type("f8"), "int64": as_type("i8"), "two-dimensional": lambda v: v[:, None],
    }),
    Case("images/crc32: missing", drop("images/crc32"), REFUSED, where="images/crc32"),
    Case("images/table_crc32: missing", drop("images/table_crc32"), OPEN),
]  # fmt: skip

BOXES = [
    *of_table("boxes", {
        **WRONG_LENGTH,
        "three columns": lambda v: v[:, :3].copy(), "five columns": lambda v: np.hstack([v, v[:, :1]]),
        "no columns": lambda v: v[:, :0], "flat": lambda v: v.reshape(-1), "three-dimensional": lambda v: v[:, :, None],
        "float64": as_type("f8"), "float16": as_type("f2"), "int64": as_type("i8"), "big-endian": as_type(">f4"),
        "text": as_type("S8"),
    }),
    Case("boxes: NaN", put("boxes", (1, 2), np.nan), FOUND),
    Case("boxes: infinite", put("boxes", (1, 2), np.inf), FOUND),
    Case("boxes: reversed", change("boxes", lambda v: v[:, [2, 1, 0, 3]].copy()), FOUND),
    Case("boxes: upside down", put("boxes", (0, 3), -9), FOUND),
    Case("boxes: NaN of an image that failed", together(settle(2), put("boxes", (0, 0), np.nan)), OPEN),
    Case("boxes: far outside", put("boxes", 1, [-1e30, -1e30, 1e30, 1e30]), SOUND),
]  # fmt: skip

COLUMNS = [
    *of_table("labels", {
        **WRONG_LENGTH, "float": lambda v: np.zeros(len(v), "f4"), "int32": lambda v: np.zeros(len(v), "i4"),
        "bool": lambda v: np.zeros(len(v), "?"), "two-dimensional": lambda v: v[:, None],
    }),
    Case("labels: of variable length", make("labels", shape=(10,), kind=h5py.string_dtype()), REFUSED),
    Case("labels: no UTF-8", put("labels", 0, b"\xff\xfe"), OPEN),
    Case("labels: empty texts", put("labels", slice(None), b""), SOUND),
    Case("labels: integers", change("labels", lambda v: np.arange(len(v))), SOUND),
    *of_table("scores", {
        **WRONG_LENGTH, "float64": as_type("f8"), "integers": as_type("i8"), "text": as_type("S8"),
        "two-dimensional": lambda v: v[:, None],
    }),
    Case("scores: NaN", put("scores", 0, np.nan), FOUND),
    Case("scores: infinite", put("scores", 0, np.inf), FOUND),
    *of_table("ids", {**WRONG_LENGTH, "float": as_type("f8"), "uint8": as_type("u1"), "complex": as_type("c16")}),
    *of_table("levels", {
        **WRONG_LENGTH, "int8": as_type("i1"), "int64": as_type("i8"), "float": as_type("f4"),
        "two-dimensional": lambda v: v[:, None],
    }, base="pyramid"),
    Case("levels: beyond the strides", put("levels", 3, 2), FOUND, "pyramid"),
    Case("levels: missing", drop("levels"), REFUSED, "pyramid", "levels"),
    Case("levels: of a file without a pyramid", lambda draft: draft.datasets.update(levels=np.zeros(10, "u1")), OPEN),
    *[case for name, base in (("rotated", "rotated"), ("points", "points"), ("coverage", "masks"), ("area", "masks"))
      for case in of_table(name, {
          **WRONG_LENGTH, "float64": as_type("f8"), "integers": as_type("i4"), "an axis more": lambda v: v[..., None],
      }, base=base)],
    *[Case(f"{name}: {value}", put(name, 2, value), FOUND, base, name) for name, base, values in (
        ("rotated", "rotated", (np.nan, np.inf)), ("points", "points", (np.nan, np.inf)),
        ("coverage", "masks", (np.nan, np.inf, -0.1, 1.1)), ("area", "masks", (np.nan, np.inf, -1)),
    ) for value in values],
    Case("rotated: a negative width", put("rotated", (2, 2), -1), FOUND, "rotated", "rotated"),
    Case("rotated: a negative height", put("rotated", (2, 3), -1), FOUND, "rotated", "rotated"),
    Case("rotated: a negative centre and angle", put("rotated", (2, [0, 1, 4]), -400), SOUND, "rotated"),
    Case("points: negative", put("points", 2, -1), SOUND, "points"),
    Case("coverage: all and nothing", put("coverage", slice(2, 4), [[[0, 0], [0, 0]], [[1, 1], [1, 1]]]), SOUND, "masks"),
    Case("points: another number than in features", change("points", lambda v: v[:, :2]), REFUSED, "points", "points"),
    Case("points: x and y alone", change("points", lambda v: v[..., :2]), REFUSED, "points", "points"),
    Case("points: missing", drop("points"), REFUSED, "points", "features"),
    Case("points: of a file with bins", lambda draft: draft.datasets.update(points=np.ones((10, 32, 3), "f4")), REFUSED,
         "masks", "features"),
    *of_table("coverage", {
        "other bins": lambda v: np.repeat(v, 2, axis=1), "one bin": lambda v: v[:, 0, 0],
        "one bin with axes": lambda v: v[:, :1, :1],
        "no bins": lambda v: v[:, :0],
    }, base="masks"),
    Case("coverage: missing", drop("coverage"), SOUND, "masks"),
    *[Case(f"coverage: of reduced features, {what}", together(
        change("features", lambda v: v.mean((2, 3))), change("coverage", edit)), verdict, "masks", "coverage")
      for what, verdict, edit in (
          ("other bins", SOUND, lambda v: np.repeat(v, 2, axis=1)), ("one bin", SOUND, lambda v: v[:, 0, 0]),
          ("one bin with axes", REFUSED, lambda v: v[:, :1, :1]), ("no bins", REFUSED, lambda v: v[:, :0]),
          ("one axis", REFUSED, lambda v: v[:, 0]),
      )],
    Case("regions in version 1", lambda draft: draft.attributes.update(format_version=1), REFUSED, "masks", "version"),
]  # fmt: skip

MISSING = [
    Case(f"{name}: missing", drop(name), REFUSED, where=name)
    for name in ("features", "boxes", "images/name", "images/offset", "images/size", "images/status", "images/error")
]
WITHOUT = [
    Case("no boxes at all", lambda draft: empty_rows(draft, 6), SOUND),
    Case("no images at all", lambda draft: empty_rows(draft, 0), SOUND),
    Case("labels, scores, ids: missing", together(drop("labels"), drop("scores"), drop("ids")), SOUND),
]

CASES = [*OFFSETS, *STATUSES, *SIZES, *MESSAGES, *CHECKSUMS, *BOXES, *COLUMNS, *MISSING, *WITHOUT]
