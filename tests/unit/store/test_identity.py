"""Test what identifies a table of boxes and a plan, and what does not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from roialign_cli.arrays import PackedNames
from roialign_cli.store.identity import plan_sha256, table_sha256
from roialign_cli.types import BoxTable, Plan


def a_plan() -> Plan:
    table = BoxTable(
        names=PackedNames.from_strings(["a.jpg", "b.jpg"]),
        offset=np.array([0, 1, 3]),
        boxes=np.arange(12, dtype=np.float32).reshape(3, 4),
        labels=np.array(["x", "y", "z"]),
        scores=np.array([0.1, 0.2, 0.3], np.float32),
        ids=np.array([1, 2, 3]),
    )
    return Plan(table, np.array([[10, 20], [30, 40]]), {}, 0, 0, 0)


@pytest.mark.parametrize("change", ["names", "where names end", "offset", "boxes", "labels", "scores", "ids"])
def test_what_identifies_a_table(change: str) -> None:
    table = a_plan().table
    other = {
        "names": replace(table, names=PackedNames.from_strings(["a.jpg", "c.jpg"])),
        "where names end": replace(table, names=PackedNames.from_strings(["a.jp", "gb.jpg"])),
        "offset": replace(table, offset=np.array([0, 2, 3])),
        "boxes": replace(table, boxes=table.boxes + np.float32(0.5)),
        "labels": replace(table, labels=np.array(["x", "y", "w"])),
        "scores": replace(table, scores=None),
        "ids": replace(table, ids=np.array([1, 2, 4])),
    }[change]
    assert table_sha256(table) == table_sha256(replace(table))
    assert table_sha256(other) != table_sha256(table)
    if change in ("names", "where names end", "offset", "boxes"):
        plan = a_plan()
        assert plan_sha256(replace(plan, table=other)) != plan_sha256(plan)


def test_what_identifies_a_plan_and_what_does_not() -> None:
    plan = a_plan()
    assert plan_sha256(replace(plan, sizes=plan.sizes + 1)) != plan_sha256(plan)  # shards are cut by it
    relative_boxes = plan.table.boxes.astype(np.float64) / 100
    relative = replace(plan.table, relative_boxes=relative_boxes)
    assert table_sha256(replace(relative, boxes=relative.boxes * 2)) == table_sha256(relative)
    assert table_sha256(replace(relative, relative_boxes=relative_boxes * 2)) != table_sha256(relative)
