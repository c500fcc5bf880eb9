"""Test how a plan is cut into shards, and which shard a run computes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from roialign_cli.errors import ConfigError
from roialign_cli.extraction.shards import BOX_PIXELS, IMAGE_PIXELS, Shard, estimate_work, parse_shard, shard_boundaries
from roialign_cli.regions.resize import resized

SLURM = {"SLURM_ARRAY_TASK_ID": "7", "SLURM_ARRAY_TASK_MIN": "5", "SLURM_ARRAY_TASK_COUNT": "16"}


@pytest.mark.parametrize(
    ("text", "environment", "expected"),
    [
        ("3/16", {}, Shard(3, 16)),
        ("1/1", {}, Shard(1, 1)),
        ("auto", SLURM, Shard(3, 16)),
        ("auto", {**SLURM, "SLURM_ARRAY_TASK_STEP": "2"}, Shard(2, 16)),
        ("auto/8", SLURM, Shard(3, 8)),
        ("auto/16", {"JOB_COMPLETION_INDEX": "0"}, Shard(1, 16)),
        ("auto/16", {"JOB_COMPLETION_INDEX": "15"}, Shard(16, 16)),
    ],
)
def test_which_part(text: str, environment: dict[str, str], expected: Shard) -> None:
    assert parse_shard(text, environment) == expected


@pytest.mark.parametrize(
    ("text", "environment", "found"),
    [
        ("0/4", {}, "expected I from 1 to N, found 0/4"),
        ("5/4", {}, "found 5/4"),
        ("x", {}, "expected I/N, auto"),
        ("1/2/3", {}, "expected I/N"),
        ("²/4", {}, "expected I/N"),
        ("auto", {}, "neither SLURM_ARRAY_TASK_ID nor N"),
        ("auto/4", {}, "expected a number in JOB_COMPLETION_INDEX, found nothing"),
        ("auto/4", {"JOB_COMPLETION_INDEX": "4"}, "found 5/4"),
        ("auto/x", {}, "found 'auto/x'"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "1"}, "SLURM_ARRAY_TASK_MIN"),
    ],
)
def test_what_is_no_part(text: str, environment: dict[str, str], found: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_shard(text, environment)
    assert found in error.value.message


@given(st.lists(st.floats(1, 1e6), max_size=60), st.integers(1, 20))
def test_cuts_are_even(work: list[float], count: int) -> None:
    found = shard_boundaries(np.array(work), count)
    assert len(found) == count + 1
    assert (found[0], found[-1]) == (0, len(work))
    assert (np.diff(found) >= 0).all()
    ends = np.concatenate([[0.0], np.cumsum(work)])[found]
    if work:
        wanted = ends[-1] * np.arange(count + 1) / count
        assert (np.abs(ends - wanted) <= max(work) / 2 * (1 + 1e-9)).all()


@given(
    st.integers(1, 5000), st.integers(1, 5000), st.integers(1, 100), st.sampled_from([None, (800, 1333), (224, None)])
)
def test_work_is_what_the_network_sees(
    height: int, width: int, boxes: int, resize: tuple[int, int | None] | None
) -> None:
    (found,) = estimate_work(np.array([[height, width]]), np.array([boxes]), resize)
    real = np.prod([float(side) for side in resized((height, width), resize)])
    largest = max(resized((height, width), resize))
    assert abs(found - BOX_PIXELS * boxes - IMAGE_PIXELS - real) <= 3 * largest + 3


def test_a_coco_like_set_is_balanced() -> None:
    """Cut 118,287 images like COCO train2017's into 64 shards: longest side 640, 7.3 boxes on average."""
    rng = np.random.default_rng(0)
    images = 118_287
    short = np.where(rng.random(images) < 0.75, rng.integers(424, 482, images), rng.integers(300, 640, images))
    upright = rng.random(images) < 0.3
    sizes = np.stack([np.where(upright, 640, short), np.where(upright, short, 640)], axis=1)
    boxes = rng.geometric(1 / 8.3, images) - 1
    boxes[rng.random(images) < 0.0086] = 0  # images without any
    work = estimate_work(sizes, boxes, (800, 1333))
    parts = np.add.reduceat(work, shard_boundaries(work, 64)[:-1])
    assert parts.max() <= 1.03 * parts.mean()
    assert parts.min() >= 0.97 * parts.mean()
