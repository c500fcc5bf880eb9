"""Test pictures: points lie where they belong, numbers follow the definition, and mistakes are clear errors."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Run
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colors
from PIL import Image

from roialign_cli import extract
from roialign_cli.arrays import PackedNames
from roialign_cli.backbones import load_backbone
from roialign_cli.config import load
from roialign_cli.errors import ConfigError
from roialign_cli.figures.colours import channel_mean, principal
from roialign_cli.figures.overlay import draw_overlay
from roialign_cli.figures.panels import draw_panels
from roialign_cli.figures.places import find_places
from roialign_cli.figures.style import BOX, SAMPLE
from roialign_cli.ops.explain import bilinear_lookup, explain, parse_roi
from roialign_cli.ops.masks import parse_masks
from roialign_cli.ops.reference import interpolate
from roialign_cli.regions.regions import Regions
from roialign_cli.regions.views import LayerView, make_layer_views
from roialign_cli.types import BoxTable

QUICK = ("-c", "quickstart")


@pytest.fixture(scope="module")
def view() -> LayerView:
    """Return the view of a black 200 x 100 image with one box, on gabor's stride-4 map at twice the size."""
    settings = load("quickstart", {"resize": "200"})
    backbone = load_backbone(settings)
    boxes = np.array([[40, 20, 120, 60]], np.float32)
    table = BoxTable(PackedNames.from_strings(["a.png"]), np.array([0, 1]), boxes)
    return make_layer_views(np.zeros((100, 200, 3), np.uint8), table, 0, backbone, settings, torch.device("cpu"))[0]


def test_bins_and_samples_lie_in_the_box(view: LayerView) -> None:
    settings = load("quickstart", {"output_size": "2x4", "sampling_ratio": 2})
    places = find_places(view, 0, settings)
    drawn = places.in_image(view, 4)
    assert drawn.text == "2 x 2 samples in each of 2 x 4 bins"
    corners = [[[x, y], [x + 20, y], [x + 20, y + 20], [x, y + 20]] for y in (20, 40) for x in (40, 60, 80, 100)]
    np.testing.assert_allclose(drawn.bins, corners)
    samples = [[x, y] for y in (25, 35, 45, 55) for x in (45, 55, 65, 75, 85, 95, 105, 115)]
    np.testing.assert_allclose(drawn.samples, samples)
    # In map cells, whose centres are integers: 2 pixels of input to one of the image, 4 to a cell, less half a cell.
    np.testing.assert_allclose(places.bins[:4, 0, 0], [19.5, 29.5, 39.5, 49.5])
    unaligned = load("quickstart", {"output_size": "2x4", "sampling_ratio": 2, "aligned": False})
    moved = find_places(view, 0, unaligned).in_image(view, 4).samples
    np.testing.assert_allclose(moved, np.array(samples) + 1)  # half a cell, two pixels of input


def test_regions_of_every_shape_are_placed(view: LayerView) -> None:
    """A view has two pixels of input to one of the image, four of which are a cell."""
    box = torch.tensor([[0, 80.0, 40, 240, 120]], dtype=torch.float64)
    turned = torch.tensor([[0, 160.0, 80, 80, 40, 90]], dtype=torch.float64)
    settings = load("quickstart", {"output_size": "1x2", "sampling_ratio": 1, "region": "rotated"})
    places = find_places(dataclasses.replace(view, regions=Regions(box, turned)), 0, settings).in_image(view, 4)
    np.testing.assert_allclose(places.samples, [[80, 50], [80, 30]])  # the width of the box points up
    np.testing.assert_allclose(places.bins[0], [[70, 60], [70, 40], [90, 40], [90, 60]], atol=1e-9)
    points = Regions(box, points=torch.tensor([[[10.0, 20], [30, 40]]], dtype=torch.float64))
    places = find_places(dataclasses.replace(view, regions=points), 0, load("quickstart", {"region": "points"}))
    np.testing.assert_allclose(places.in_image(view, 4).samples, [[5, 10], [15, 20]])
    assert places.text == "2 points"
    masks = Regions(box, masks=parse_masks([[[80, 40, 240, 40, 240, 120, 80, 120]]], 1))
    places = find_places(dataclasses.replace(view, regions=masks), 0, load("quickstart", {"region": "mask"}))
    np.testing.assert_allclose(places.in_image(view, 4).shape, [[[40, 20], [120, 20], [120, 60], [40, 60]]])
    assert places.text == "the integral over 7 x 7 bins"


def test_samples_of_a_huge_box_are_those_on_the_map(view: LayerView) -> None:
    huge = dataclasses.replace(view, regions=Regions(torch.tensor([[0, -1e9, -1e9, 1e9, 1e9]])))
    samples = find_places(huge, 0, load("quickstart", {})).samples
    for along, cells in zip(samples.T, (100, 50), strict=True):
        assert cells / 2 <= len(np.unique(along)) < 3 * cells


def test_what_is_drawn_is_on_the_right_pixels(view: LayerView) -> None:
    settings = load("quickstart", {"output_size": "2x4", "sampling_ratio": 2})
    boxes = np.array([[40, 20, 120, 60]], np.float32)
    figure = draw_overlay(np.zeros((100, 200, 3), np.uint8), boxes, None, view, 0, settings, "mean")
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=figure.dpi)
    with Image.open(buffer) as picture:
        drawn = np.asarray(picture.convert("RGB")).astype(int)

    def near(x: float, y: float, colour: str) -> bool:
        """Return whether a pixel within two of a point of the first panel has the colour."""
        across, up = figure.axes[0].transData.transform((x, y))
        row, column = round(len(drawn) - up), round(across)
        wanted = np.array(colors.to_rgb(colour)) * 255
        window = drawn[row - 2 : row + 3, column - 2 : column + 3].reshape(-1, 3)
        return bool((np.abs(window - wanted).max(axis=1) < 60).any())

    for x in (45, 55, 65, 75, 85, 95, 105, 115):
        for y in (25, 35, 45, 55):
            assert near(x, y, SAMPLE)
            assert not near(x + 5, y + 5, SAMPLE)
    assert near(40, 52, BOX) or near(40, 52, "white")  # the outline, under the lines of the bins
    assert near(60, 22, "white")
    assert near(150, 80, "black")


@given(st.floats(-3, 9), st.floats(-3, 8))
def test_a_lookup_is_the_reference_s(x: float, y: float) -> None:
    features = np.random.default_rng(0).normal(size=(5, 6))
    found = bilinear_lookup(features, x, y)
    assert found.value == interpolate(features[None], y, x)[0]
    products = sum(weight * value for weight, value in zip(found.weights, found.values, strict=True))
    assert found.value == pytest.approx(products, abs=1e-12)
    if found.clamped is not None:
        assert sum(found.weights) == pytest.approx(1)


def test_the_worked_example_of_the_definition() -> None:
    told = explain((0.8, 0, 2.4, 4.5), (2, 2), 1.0, 0, False)
    assert (told.x.bin, told.y.bin) == (pytest.approx(0.8), 2.25)
    assert (told.y.grid, told.x.grid) == (3, 1)
    np.testing.assert_allclose(told.samples(0, 0), [(1.2, 0.375), (1.2, 1.125), (1.2, 1.875)])
    # Cells hold 10 y + x, which bilinear interpolation repeats exactly: each bin holds that of its centre.
    np.testing.assert_allclose(told.pooled, [[12.45, 13.25], [34.95, 35.75]])
    figure = draw_panels(told)
    assert [axes.get_title(loc="left")[:1] for axes in figure.axes] == ["1", "2", "3", "4", "5"]


def test_explain_prints_the_worked_example(roialign: Run, tmp_path: Path) -> None:
    done = roialign("explain", "-o", tmp_path / "e.svg")
    assert done.returncode == 0, done.stderr
    for text in ("x: 1.6 / 2 = 0.8", "y: 4.5 / 2 = 2.25", "(1.2, 0.375), (1.2, 1.125), (1.2, 1.875)", "ceil(2.25) = 3",
                 "(2, 1)", "0.075", "sum: 4.95", "12.45", "35.75"):  # fmt: skip
        assert text in done.stdout, text
    assert "<svg" in (tmp_path / "e.svg").read_text()
    facts = json.loads(roialign("explain", "10,10,10,10", "--aligned", "--output-size", "3", "--json").stdout)
    assert facts["lookup"] is None
    assert facts["pooled"] == [[0.0] * 3] * 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["1,2,3"], "expected four numbers"),
        (["1,2,nan,4"], "expected finite numbers"),
        (["5,5,1,1"], "x2 >= x1"),
        (["0,0,9999,9"], "a map of at most 256 cells"),
        (["--", "-1e9,-1e9,9,9"], "expected at most 200000 samples to explain"),
        (["0,0,9,9", "--sampling-ratio", "1000"], "expected at most 200000 samples to explain"),
        (["0,0,9,9", "--spatial-scale", "0"], "spatial_scale: expected a number above 0"),
        (["0,0,9,9", "--output-size", "a"], "output_size: expected a number or HEIGHTxWIDTH"),
        (["0,0,9,9", "-o", "x.h5"], "expected a picture to write"),
    ],
)
def test_explain_refuses(roialign: Run, tmp_path: Path, arguments: list[str], expected: str) -> None:
    done = roialign("explain", *arguments, cwd=tmp_path)
    assert done.returncode in (2, 6)
    assert expected in done.stderr
    assert "Traceback" not in done.stderr


@given(st.text(max_size=30) | st.text("0123456789.,- en", max_size=30))
def test_any_roi_is_four_numbers_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        x1, y1, x2, y2 = parse_roi(text)
        assert x1 <= x2
        assert y1 <= y2


@pytest.mark.parametrize("roi", [(-30, -30, -5, -5), (0, 0, 0.1, 0.1), (-3, 2, 40, 3), (7, 7, 7, 7)])
@pytest.mark.parametrize("aligned", [True, False])
def test_panels_of_awkward_boxes(roi: tuple[float, float, float, float], aligned: bool) -> None:
    figure = draw_panels(explain(roi, (3, 2), 0.5, 0, aligned))
    figure.savefig(io.BytesIO(), dpi=50)


def test_colours_are_those_of_the_data() -> None:
    vectors = torch.randn(500, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 1, 1, 1, 1, 1])
    colouring = principal(vectors, 1)
    assert colouring.components[:, 0].abs().argmax() == 0
    assert colouring.components[0, 0] > 0.99
    order = torch.argsort(vectors[:, 0])
    found = colouring(vectors[order])[:, 0]
    assert found[:10].max() < 0.1
    assert found[-10:].min() > 0.9
    mean = channel_mean(vectors)
    assert torch.equal(mean(vectors)[:, 0].argmax(), vectors.mean(1).clamp_max(mean.high[0]).argmax())
    assert principal(torch.ones(3, 2), 3)(torch.ones(3, 2)).shape == (
        3,
        3,
    )  # fewer channels than colours, nothing varies


@pytest.mark.slow
def test_values_that_are_not_finite_are_grey_and_change_nothing_else() -> None:
    vectors = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    harmed = torch.cat([vectors, torch.tensor([[float("nan")] * 4, [0, float("inf"), 0, 0]])])
    for colouring, plain in (
        (principal(harmed, 3), principal(vectors, 3)),
        (channel_mean(harmed), channel_mean(vectors)),
    ):
        assert torch.equal(colouring(vectors), plain(vectors))
        assert (colouring(harmed[50:]) == 0.5).all()
    huge = principal(vectors * 1e37, 3)(vectors * 1e37)
    assert torch.allclose(huge, principal(vectors, 3)(vectors), atol=1e-4)
    assert (principal(harmed[50:], 3)(harmed[50:]) == 0.5).all()


def test_show_an_image(roialign: Run, tmp_path: Path) -> None:
    cat = SAMPLE_IMAGES / "cat.jpg"
    done = roialign("show", cat, SAMPLE_BOXES, *QUICK, "--box", "3", "-o", tmp_path / "cat.png", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == "2 x 3"
    with Image.open(tmp_path / "cat.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 20
        picture.save(tmp_path / "picture.png")
    for arguments, code, expected in (
        ((cat, SAMPLE_BOXES, "--box", "4"), 3, "expected one of the 4 boxes"),
        ((tmp_path / "picture.png", SAMPLE_BOXES), 3, 'expected boxes of "picture.png", found none'),
        ((cat,), 2, "expected an image and a box file"),
        ((cat, SAMPLE_BOXES, "--colour", "red"), 2, "expected one of pca, mean"),
        ((cat, SAMPLE_BOXES, "--layer", "nose"), 4, "expected its one layer gabor"),
    ):
        wrong = roialign("show", *arguments, *QUICK, "-o", tmp_path / "x.png")
        assert wrong.returncode == code, wrong.stderr
        assert expected in wrong.stderr
        assert not (tmp_path / "x.png").exists()


@pytest.mark.slow
def test_show_a_file(roialign: Run, tmp_path: Path) -> None:
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", config_name="quickstart")
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "mean.h5", config_name="quickstart", reduce="mean", dtype="float16")
    for arguments in (["f.h5"], ["mean.h5"], ["f.h5", "cat.jpg"]):
        done = roialign("show", *arguments[1:], "--from", arguments[0], "-o", "sheet.png", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        with Image.open(tmp_path / "sheet.png") as picture:
            assert picture.size[0] > 500
    for arguments, expected in (
        (["dog.jpg", "--from", "f.h5"], "expected the name of an image in it"),
        (["--from", "f.h5", "--layer", "x"], "expected one of gabor"),
        (["--from", "none.h5"], "found nothing there"),
    ):
        wrong = roialign("show", *arguments, "-o", "x.png", cwd=tmp_path)
        assert wrong.returncode in (3, 6)
        assert expected in wrong.stderr


@pytest.mark.parametrize("region", ["rotated", "mask"])
def test_explanations_of_regions_are_drawn(region: str, tmp_path: Path, roialign: Run) -> None:
    done = roialign("explain", "--region", region, "-o", tmp_path / "e.png", "--output-size", "2x3")
    assert done.returncode == 0, done.stderr
    assert "pooled" in done.stdout
    with Image.open(tmp_path / "e.png") as picture:
        assert np.asarray(picture.convert("RGB")).std() > 10
