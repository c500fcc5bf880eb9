"""Test whole runs over rotated boxes, masks and points: against pooling by hand, resumed, in shards, killed, on a pyramid."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import Run
from helpers.feature_files import assert_same
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from PIL import Image, ImageOps

from roialign_cli import FeatureFile, extract, point_sample, roi_align_masked, roi_align_rotated
from roialign_cli.backbones import load_backbone
from roialign_cli.config import load
from roialign_cli.errors import ConfigError
from roialign_cli.regions.levels import assign_levels
from roialign_cli.store.check import check
from roialign_cli.store.merge import link, merge

KINDS = ("rotated", "mask", "points")
ELLIPSE = 2 * np.sin(np.pi / 8)  # share of its box that a polygon of 16 corners on an ellipse covers


def ellipse(box: list[float]) -> list[float]:
    """Return the polygon of an ellipse in a box."""
    x1, y1, x2, y2 = box
    turns = np.linspace(0, 2 * np.pi, 17)[:-1]
    corners = np.stack(
        [(x1 + x2) / 2 + np.cos(turns) * (x2 - x1) / 2, (y1 + y2) / 2 + np.sin(turns) * (y2 - y1) / 2], 1
    )
    return corners.reshape(-1).round(2).tolist()


@pytest.fixture(scope="module")
def annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file with a region of every kind for each box of the sample data."""
    content = {}
    for name, entry in json.loads(SAMPLE_BOXES.read_text()).items():
        boxes = entry["boxes"] if isinstance(entry, dict) else entry
        content[name] = {
            "boxes": boxes,
            "rotated": [[(a + c) / 2, (b + d) / 2, c - a, (d - b) / 2, 15 * i] for i, (a, b, c, d) in enumerate(boxes)],
            "polygons": [[ellipse(box)] for box in boxes],
            "points": [[[a, b, 2], [(a + c) / 2, (b + d) / 2, 1], [0, 0, 0]] for a, b, c, d in boxes],
        }
    path = tmp_path_factory.mktemp("regions") / "regions.json"
    path.write_text(json.dumps(content))
    return path


def run(annotations: Path, output: Path, region: str, **more: Any) -> Any:
    return extract(SAMPLE_IMAGES, annotations, output, config_name="quickstart", region=region, batch_size=1, **more)


@pytest.fixture(scope="module")
def whole(annotations: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return a finished file for each kind."""
    folder = tmp_path_factory.mktemp("whole")
    for region in KINDS:
        assert run(annotations, folder / f"{region}.h5", region).finished
    return {region: folder / f"{region}.h5" for region in KINDS}


def maps_of(name: str) -> torch.Tensor:
    """Return the maps of a sample image, computed by hand."""
    backbone = load_backbone(load("quickstart", {}))
    pixels = np.array(ImageOps.exif_transpose(Image.open(SAMPLE_IMAGES / name)).convert("RGB"))
    inputs = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    mean, std = (torch.tensor(getattr(backbone.preprocessing, part))[:, None, None] for part in ("mean", "std"))
    with torch.inference_mode():
        ((maps,),) = backbone((inputs - mean) / std, "float32")
    assert maps is not None
    return maps


def test_rows_equal_pooling_by_hand(annotations: Path, whole: dict[str, Path]) -> None:
    content = json.loads(annotations.read_text())
    for name in ("cat.jpg", "rocket.jpg"):
        maps, entry = maps_of(name), content[name]
        count = len(entry["boxes"])
        zeros = torch.zeros(count, 1, dtype=torch.float64)
        rotated = torch.cat([zeros, torch.tensor(entry["rotated"], dtype=torch.float64)], dim=1)
        boxes = torch.cat([zeros, torch.tensor(entry["boxes"], dtype=torch.float64)], dim=1)
        places = torch.tensor(entry["points"], dtype=torch.float64)[..., :2].reshape(-1, 2)
        points = torch.cat([torch.zeros(len(places), 1, dtype=torch.float64), places], dim=1)
        masked, coverage = roi_align_masked(maps, boxes, entry["polygons"], 7, spatial_scale=0.25)
        expected = {
            "rotated": roi_align_rotated(maps, rotated, 7, spatial_scale=0.25),
            "mask": masked,
            "points": point_sample(maps, points, spatial_scale=0.25).view(count, 3, -1),
        }
        for region, path in whole.items():
            with FeatureFile(path) as file:
                found, features = file[name], expected[region].numpy()
                assert np.abs(found.features - features).max() <= 1e-5 * np.abs(features).max(), region
                if region == "rotated":
                    assert np.allclose(found.rotated, entry["rotated"])
                    assert np.allclose(found.area, rotated[:, 3] * rotated[:, 4])
                elif region == "mask":
                    assert np.allclose(found.coverage, coverage, atol=1e-6)
                    sizes = (boxes[:, 3:] - boxes[:, 1:3]).prod(1)
                    assert np.allclose(found.area, sizes * ELLIPSE, rtol=1e-3)  # of a polygon of 16 corners
                else:
                    assert np.allclose(found.points, entry["points"])


@pytest.mark.parametrize("region", KINDS)
def test_a_stopped_run_resumes_to_the_same(
    region: str, annotations: Path, whole: dict[str, Path], tmp_path: Path
) -> None:
    calls = iter(range(2))
    first = run(annotations, tmp_path / "f.h5", region, should_stop=lambda: next(calls, None) is None)
    assert 0 < first.done < first.images
    assert run(annotations, tmp_path / "f.h5", region).finished
    assert_same(tmp_path / "f.h5", whole[region])
    assert run(annotations, tmp_path / "f.h5", region).already_finished


@pytest.mark.parametrize("region", KINDS)
def test_shards_merge_to_the_same(region: str, annotations: Path, whole: dict[str, Path], tmp_path: Path) -> None:
    for number in (1, 2):
        assert run(annotations, tmp_path / "f.h5", region, shard=f"{number}/2").finished
    shards = sorted(tmp_path.glob("f-*.h5"))
    merge(shards, tmp_path / "merged.h5")
    link(shards, tmp_path / "linked.h5")
    for name in ("merged.h5", "linked.h5"):
        assert_same(tmp_path / name, whole[region])
    assert run(annotations, tmp_path / "merged.h5", region).already_finished


@pytest.mark.slow
@pytest.mark.parametrize("region", KINDS)
def test_a_killed_run_resumes_to_the_same(
    region: str, annotations: Path, whole: dict[str, Path], tmp_path: Path
) -> None:
    output = tmp_path / "f.h5"
    command = [
        sys.executable,
        "-m",
        "roialign_cli",
        "extract",
        SAMPLE_IMAGES,
        annotations,
        "-o",
        output,
        "-c",
        "quickstart",
    ]
    more = ["--region", region, "--batch-size", "1"]
    process = subprocess.Popen(
        [str(part) for part in command] + more, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not output.exists() and process.poll() is None:
        time.sleep(0.001)
    time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert run(annotations, output, region).finished
    assert_same(output, whole[region])


@pytest.mark.slow
def test_stored_as_float16_reduced_and_exported(
    annotations: Path, whole: dict[str, Path], tmp_path: Path, roialign: Run
) -> None:
    for region in KINDS:
        run(annotations, tmp_path / f"{region}.h5", region, dtype="float16")
        with FeatureFile(tmp_path / f"{region}.h5") as file, FeatureFile(whole[region]) as right:
            for name in file.names:
                assert np.allclose(file[name].features, right[name].features, rtol=1e-3, atol=1e-3)
    for region in ("rotated", "mask"):
        run(annotations, tmp_path / f"{region}_mean.h5", region, reduce="mean")
        with FeatureFile(tmp_path / f"{region}_mean.h5") as file, FeatureFile(whole[region]) as right:
            assert check(file).problems == []
            for name in file.names:
                bins, coverage = right[name].features, right[name].coverage
                weight = np.ones_like(bins[:, :1]) if coverage is None else coverage[:, None]
                expected = (bins * weight).sum((2, 3)) / weight.sum((2, 3))
                assert np.allclose(file[name].features, expected, atol=1e-5)
    done = roialign("export", whole["mask"], "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "out" / "cat.jpg.npz") as arrays, FeatureFile(whole["mask"]) as file:
        assert np.array_equal(arrays["coverage"], file["cat.jpg"].coverage)


@pytest.mark.slow
def test_a_region_is_pooled_from_the_level_of_its_own_area(annotations: Path, tmp_path: Path) -> None:
    settings = {"backbone": "fasterrcnn_mobilenet_v3_large_320_fpn", "weights": "random:0", "resize": "320"}
    for region in ("rotated", "mask"):
        path = tmp_path / f"{region}.h5"
        extract(SAMPLE_IMAGES, annotations, path, region=region, output_size=1, canonical_size=112, **settings)
        with FeatureFile(path) as file:
            (strides,) = json.loads(file.attributes["strides"]).values()
            for name in file.names:
                height, width = file[name].size
                side = np.sqrt(file[name].area) * 320 / min(height, width)  # of a square of the region's area
                squares = torch.from_numpy(np.stack([0 * side, 0 * side, side, side], axis=1))
                expected = assign_levels(squares, tuple(strides), 4, 112)
                assert file[name].levels.tolist() == expected.tolist()


def test_a_single_vector_of_a_whole_mask(annotations: Path, tmp_path: Path) -> None:
    run(annotations, tmp_path / "f.h5", "mask", output_size=1)
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file["cat.jpg"].coverage.shape == (4,)
        assert np.allclose(file["cat.jpg"].coverage, ELLIPSE, atol=1e-3)
        assert file["cat.jpg"].features.shape == (4, 32, 1, 1)


def test_a_changed_region_is_another_run(
    annotations: Path, whole: dict[str, Path], tmp_path: Path, roialign: Run
) -> None:
    content = json.loads(annotations.read_text())
    content["cat.jpg"]["polygons"][0][0][0] += 3
    content["cat.jpg"]["rotated"][0][4] += 1
    content["cat.jpg"]["points"][0][0][0] += 1
    changed = tmp_path / "changed.json"
    changed.write_text(json.dumps(content))
    for region, path in whole.items():
        done = roialign(
            "extract", SAMPLE_IMAGES, changed, "-o", path, "-c", "quickstart", "--region", region, "--batch-size", "1"
        )
        assert done.returncode == 6
        assert "have changed" in done.stderr


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"region": "mask", "mode": "max"}, "mode: expected exact or avg with region mask, found 'max'"),
        ({"region": "mask", "context": "1,2"}, "context: expected none with region mask, found 1.0,2.0"),
        ({"region": "mask", "output_size": "1,7"}, "output_sizes: expected none with region mask, found 1x1,7x7"),
        ({"region": "points", "reduce": "mean"}, "reduce: expected none with region points, found 'mean'"),
        ({"region": "points", "head": "box"}, "head: expected none with region points"),
        (
            {"region": "points", "region_missing": "box"},
            "region_missing: expected error with region points, found 'box'",
        ),
        ({"region": "rotated", "kernel": "torchvision"}, "kernel: expected auto, cpu or cuda with region rotated"),
        ({"region": "circle"}, "region: expected one of box, rotated, mask, points, found 'circle'"),
    ],
)
def test_settings_that_do_not_fit_a_region(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("quickstart", settings)
    assert load("quickstart", {"region": "mask"}).mode == "exact"
    assert load("quickstart", {"region": "mask", "mode": "avg"}).mode == "avg"


def test_run_lengths_over_another_size_than_the_image(tmp_path: Path) -> None:
    """COCO states sizes, which are believed until the image is decoded; EXIF may turn the image."""
    with Image.open(SAMPLE_IMAGES / "rocket.jpg") as picture:
        width, height = picture.size  # as it is stored: orientation 6 turns it
    whole = {"size": [height, width], "counts": [10, height * width - 10]}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 50, 60], "segmentation": whole}
    image = {"id": 1, "file_name": "rocket.jpg", "width": width, "height": height}
    other = {"id": 2, "file_name": "cat.jpg", "width": 451, "height": 300}
    polygon = {**annotation, "id": 2, "image_id": 2, "segmentation": [[1, 1, 40, 1, 40, 40]]}
    content = {"images": [image, other], "annotations": [annotation, polygon], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "coco.json").write_text(json.dumps(content))
    summary = extract(SAMPLE_IMAGES, tmp_path / "coco.json", tmp_path / "f.h5", config_name="quickstart", region="mask")
    assert (summary.done, summary.failed) == (1, 1)
    found = f"expected masks over its height x width, {width} x {height}, found one over {height} x {width}"
    assert found in summary.failures["rocket.jpg"]


def test_files_without_a_row(tmp_path: Path) -> None:
    (tmp_path / "none.json").write_text(json.dumps({"cat.jpg": {"boxes": []}}))
    for region in KINDS:
        summary = run(tmp_path / "none.json", tmp_path / f"{region}.h5", region)
        assert summary.finished
        with FeatureFile(tmp_path / f"{region}.h5") as file:
            assert check(file).problems == []
            assert len(file["cat.jpg"].boxes) == 0


@pytest.mark.slow
@pytest.mark.parametrize("region", KINDS)
def test_a_plan_of_regions(region: str, annotations: Path, roialign: Run) -> None:
    done = roialign("plan", SAMPLE_IMAGES, annotations, "--region", region, "-c", "quickstart")
    assert done.returncode == 0, done.stderr
