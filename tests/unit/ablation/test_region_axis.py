"""Test regions as an axis of `ablate`: each against its own integral, and how much background boxes mix in."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import Run
from PIL import Image

from roialign_cli.ablation.grid import make_grid, region_to_read
from roialign_cli.ablation.run import ablate
from roialign_cli.config import load
from roialign_cli.errors import ConfigError


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Return a folder with an image that is bright on its left, and a box half of which is a mask there."""
    pixels = np.random.default_rng(0).integers(0, 40, (96, 128, 3), np.uint8)
    pixels[:, :64] += 180
    (tmp_path / "im").mkdir()
    Image.fromarray(pixels).save(tmp_path / "im" / "a.png")
    region = {"boxes": [[24, 16, 104, 80]], "polygons": [[[24, 16, 64, 16, 64, 80, 24, 80]]]}
    turned = {"boxes": [[24, 16, 104, 80]], "rotated": [[64, 48, 80, 64, 90]]}
    (tmp_path / "mask.json").write_text(json.dumps({"a.png": region}))
    (tmp_path / "rotated.json").write_text(json.dumps({"a.png": turned}))
    return tmp_path


def test_boxes_and_masks_are_compared(data: Path) -> None:
    settings = load("quickstart", {"output_size": 2})
    variants = make_grid(settings, {"region": ["box", "mask"], "mode": ["avg", "exact"]})
    assert region_to_read(variants) == "mask"
    assert [variant.name for variant in variants] == [
        "roi_align-2x2-adaptive-aligned-avg", "roi_align-2x2-exact-aligned",
        "roi_align-mask-2x2-adaptive-aligned-avg", "roi_align-mask-2x2-exact-aligned",
    ]  # fmt: skip
    found = ablate(data / "im", data / "mask.json", settings, variants)
    rows = {row["setting"]: row for row in found.rows if row["class"] == "all"}
    assert {name for name, row in rows.items() if row["error_mean"] == 0} == {
        "roi_align-2x2-exact-aligned", "roi_align-mask-2x2-exact-aligned",
    }  # fmt: skip
    assert {row["region"] for row in found.rows} == {"box", "mask"}
    assert [choice.geometry for choice in found.recommendations] == ["2x2, aligned", "mask, 2x2, aligned"]
    assert found.background is not None
    assert found.background.region == "mask"
    assert found.background.outside == pytest.approx(0.5)
    assert found.background.distance["gabor"] > 0.1  # the right half of the box is dark


def test_one_kind_alone_has_no_background(data: Path) -> None:
    settings = load("quickstart", {"output_size": 2})
    for kind in ("mask", "rotated"):
        found = ablate(data / "im", data / f"{kind}.json", settings, make_grid(settings, {"region": [kind]}))
        assert found.background is None
        assert {row["region"] for row in found.rows} == {kind}


def test_rotated_boxes_and_their_enclosing_boxes(data: Path) -> None:
    settings = load("quickstart", {"output_size": 2})
    found = ablate(data / "im", data / "rotated.json", settings, make_grid(settings, {"region": ["box", "rotated"]}))
    assert found.background is not None
    assert found.background.outside == pytest.approx(0, abs=1e-6)  # turned by a right angle, it fills its box


def test_on_the_command_line(data: Path, roialign: Run) -> None:
    command = ("ablate", data / "im", data / "mask.json", "-c", "quickstart", "-o", data / "ab", "--region", "box,mask")
    done = roialign(*command, "--vary", "mode=exact")
    assert done.returncode == 0, done.stderr
    assert "background: 50% of a box lies outside of its mask" in done.stdout
    assert json.loads((data / "ab" / "ablation.json").read_text())["background"]["outside"] == pytest.approx(0.5)
    refused = roialign(*command, "--save-features", "--overwrite")
    assert refused.returncode == 2
    assert "save_features: expected region box alone" in refused.stderr


@pytest.mark.parametrize("regions", [["points"], ["mask", "rotated"], ["box", "mask", "rotated"]])
def test_kinds_that_cannot_be_compared(regions: list[str]) -> None:
    with pytest.raises(ConfigError, match="vary: region: expected box, rotated, mask"):
        make_grid(load("quickstart", {}), {"region": regions})
