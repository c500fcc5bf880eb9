"""Test ablations: the grid, measurements against closed forms, the probe against brute force, the whole command."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import Run
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from helpers.tensors import make_rois
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image

from roialign_cli import FeatureFile, extract
from roialign_cli.ablation import run
from roialign_cli.ablation.grid import Variant, make_grid, parse_vary
from roialign_cli.ablation.measure import Exact, compare, samples_per_bin
from roialign_cli.ablation.probe import Probe, nearest_centroid
from roialign_cli.ablation.report.plots import draw
from roialign_cli.ablation.report.write import write_report
from roialign_cli.ablation.run import ablate
from roialign_cli.ablation.summary import recommend, setting_label
from roialign_cli.backbones.base import Layer
from roialign_cli.config import Settings, load
from roialign_cli.errors import ConfigError, InputError, RoialignError
from roialign_cli.ops import roi_align
from roialign_cli.ops.reference import axis
from roialign_cli.regions.regions import Regions
from roialign_cli.store.check import check

GABOR = load("quickstart", {})


def test_the_grid_is_every_combination_once() -> None:
    vary = parse_vary(["sampling-ratio=0,1,2", "op=roi_align,roi_pool", "mode=avg,exact", "aligned=true,no"])
    variants = make_grid(Settings(), vary)
    assert len({variant.name for variant in variants}) == len(variants) == 3 * 2 + 2 + 1
    assert sum(variant.op == "roi_pool" for variant in variants) == 1
    assert "roi_align-7x7-ratio_2-unaligned-avg" in {variant.name for variant in variants}
    assert [variant.settings.sampling_ratio for variant in make_grid(Settings(), {})] == [0, 1, 2, 4, 8]
    sizes = make_grid(load(None, {"sampling_ratio": 3}), {"output-size": ["7", "3x5"]})
    assert [(v.settings.output_size, v.settings.sampling_ratio) for v in sizes] == [((7, 7), 3), ((3, 5), 3)]


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("sampling-ratio", "expected NAME=VALUE"),
        ("sampling-ratio=", "expected NAME=VALUE"),
        ("ratio=1", "expected one of op, region, output_size"),
        ("sampling-ratio=x", "sampling_ratio: expected a whole number, found 'x'"),
        ("sampling-ratio=-1", "sampling_ratio: expected at least 0"),
        ("op=roi_crop", "op: expected one of roi_align, roi_pool"),
        ("aligned=perhaps", "aligned: expected true or false"),
        ("mode=mean", "mode: expected one of avg, max, exact"),
        ("output-size=0", "output_size: expected at least 1"),
    ],
)
def test_a_grid_of_nonsense_is_refused(text: str, found: str) -> None:
    with pytest.raises(ConfigError) as error:
        make_grid(Settings(), parse_vary([text]))
    assert found in error.value.message


VARIED = st.builds(
    "{}={}".format, st.sampled_from(["sampling-ratio", "output-size", "aligned", "mode", "op", "x"]), st.text()
)


@hypothesis_settings(max_examples=300)
@given(st.lists(VARIED | st.text(), max_size=3))
def test_any_vary_is_a_grid_or_a_clear_error(texts: list[str]) -> None:
    with contextlib.suppress(RoialignError):
        assert make_grid(Settings(), parse_vary(texts))


def ramp(height: int = 40, width: int = 60) -> torch.Tensor:
    """Return a map whose channels are its coordinates and a mixture of both, so pooled values show their place."""
    y, x = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    return torch.stack([x, y, x + 2 * y])[None]


@pytest.mark.parametrize("ratio", [1, 2, 0])
def test_on_a_ramp_everything_is_known(ratio: int) -> None:
    rois = torch.tensor([[0, 33.0, 21, 97, 80], [0, 10, 12, 150, 130]])
    shifted = rois + torch.tensor([0, 0.5, 0.5, 0.5, 0.5])

    def pooled(boxes: torch.Tensor, **options: Any) -> torch.Tensor:
        return roi_align(ramp(), boxes, 7, spatial_scale=0.25, **options)

    centred, own = (
        Exact.from_features(pooled(rois, mode="exact", aligned=aligned), pooled(shifted, mode="exact", aligned=aligned))
        for aligned in (True, False)
    )
    same = compare(pooled(rois, sampling_ratio=ratio), pooled(shifted, sampling_ratio=ratio), centred, centred)
    torch.testing.assert_close(same, torch.tensor([[0.0], [1], [0], [0]]).expand(4, 2), atol=2e-5, rtol=0)
    options = {"sampling_ratio": ratio, "aligned": False}
    away = compare(pooled(rois, **options), pooled(shifted, **options), own, centred)
    expected = torch.tensor([[0.0], [1], [0], [2]]).expand(4, 2)  # half a cell of stride 4 to the right, and down
    torch.testing.assert_close(away, expected, atol=5e-4, rtol=0)


def test_errors_by_hand() -> None:
    own = Exact.from_features(
        torch.tensor([[3.0, 4], [0, 0], [0, 0], [1, 0]]), torch.tensor([[3.0, 5], [0, 0], [0, 0], [1, 0]])
    )
    pooled = torch.tensor([[3.0, 4.5], [0, 0], [1, 0], [2, 0]])
    found = compare(pooled, pooled + torch.tensor([0, 0.75]), own, own)
    torch.testing.assert_close(found[0], torch.tensor([0.1, 0, 1, 1]))
    torch.testing.assert_close(found[1], torch.tensor([27 / (5 * math.hypot(3, 4.5)), 1, 0, 1]))
    assert found[2, 0] == 0.125  # moved by three quarters of half a pixel
    assert found[3, 0] == 0.25
    assert found[2:, 1:].isnan().all()  # nothing moves there
    finite = Exact.from_features(torch.ones(1, 2), torch.ones(1, 2))
    for number in (math.nan, math.inf):
        broken = torch.tensor([[number, 4.0]])
        for exact in (Exact.from_features(broken, broken), finite):
            assert not compare(broken, broken, exact, exact)[0].isfinite()


@pytest.mark.parametrize("aligned", [True, False])
def test_samples_per_bin_are_those_of_the_reference(aligned: bool) -> None:
    layer = Layer("fpn", 8, (4, 8))
    rois = make_rois(40, 1, 200, 150).double()
    levels = torch.arange(len(rois)) % 2
    (variant,) = make_grid(load(None, {"output_size": "3x5", "aligned": aligned}), {"sampling_ratio": [0]})
    found = samples_per_bin(variant, layer, Regions(rois), levels)
    for (_, x1, y1, x2, y2), level, count in zip(rois.tolist(), levels.tolist(), found.tolist(), strict=True):
        scale = 1 / layer.strides[level]
        grids = [axis(low, high, scale, bins, 0, aligned).grid for low, high, bins in ((y1, y2, 3), (x1, x2, 5))]
        assert count == max(0, grids[0]) * max(0, grids[1])
    assert samples_per_bin(replace(variant, op="roi_pool"), layer, Regions(rois), levels).isnan().all()


def test_nearest_centroid_is_what_brute_force_finds() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 60)
    labels[:2] = 77, 78  # each alone in its class
    points = rng.normal(size=(60, 8)).astype(np.float32) + labels[:, None].astype(np.float32) % 3
    hits, judged = 0, 0
    for i in range(60):
        others = np.arange(60) != i
        if not (labels[others] == labels[i]).any():
            continue
        judged += 1
        classes = np.unique(labels[others])
        means = [points[others & (labels == label)].mean(0) for label in classes]
        hits += classes[np.argmin(np.linalg.norm(means - points[i], axis=1))] == labels[i]
    score = nearest_centroid(torch.from_numpy(points), torch.from_numpy(labels))
    assert score is not None
    assert (score.accuracy, score.boxes, score.classes) == (pytest.approx(hits / judged), judged, 5)
    assert nearest_centroid(torch.zeros(3, 2), torch.arange(3)) is None


def test_sketches_keep_distances_and_memory_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.randn(50, 20, 7, 7, generator=torch.Generator().manual_seed(0))
    features[25:] += 1
    labels = np.arange(50) // 25
    probe = Probe(labels, 2, 1)
    for variant in range(2):
        probe.add(variant, 0, np.arange(25), features[:25])
        probe.add(variant, 0, np.arange(25, 50), features[25:])
    unit = torch.nn.functional.normalize(features.flatten(1), dim=1)
    ratio = torch.pdist(probe._sketch[0, 0].float()) / torch.pdist(unit)
    assert ratio.min() > 0.75
    assert ratio.max() < 1.25
    assert torch.equal(probe._sketch[0], probe._sketch[1])
    score = probe.score(0, 0)
    assert score is not None
    assert score.accuracy == 1
    monkeypatch.setattr("roialign_cli.ablation.probe.MAX_BOXES", 10)
    few = Probe(labels, 1, 1)
    few.add(0, 0, np.arange(50), features)
    assert few._sketch.shape == (1, 1, 10, 256)
    assert not few._sketch.isnan().any()


def test_the_recommended_setting() -> None:
    def row(setting: str, error: float, time: float | None, **others: Any) -> dict[str, Any]:
        return {
            "class": "all", "op": "roi_align", "mode": "avg", "output_size": "7x7", "aligned": True,
            "centers": "assumed", "layer": "a", "region": "box",
            "setting": setting, "error_mean": error, "ms_per_1000": time, **others,
        }  # fmt: skip

    rows = [row("one", 0.2, 1.0), row("two", 0.005, 2.0), row("four", 0.001, 2.1), row("many", 0.0, 9.0)]
    (choice,) = recommend(rows, 0.01)
    assert choice.setting == "four"  # as fast as `two` within the noise, and nearer
    assert "20.00% or more (one)" in choice.reason
    (choice,) = recommend(rows, 0.3)
    assert choice.setting == "one"
    (choice,) = recommend(rows[:1], 0.01)
    assert choice.setting is None
    assert "none is within 1.00%" in choice.reason
    worse = [
        *rows,
        *(row(name, 0.5, 1.0, layer="b") for name in ("one", "two", "four")),
        row("many", 0.0, 1.0, layer="b"),
    ]
    assert recommend(worse, 0.01)[0].setting == "many"  # the others fail on layer b
    assert [choice.geometry for choice in recommend([*rows, row("x", 0, 1, output_size="14x14")], 1)] == [
        "7x7, aligned", "14x14, aligned",
    ]  # fmt: skip
    assert recommend([row("pool", 0.0, 1.0, op="roi_pool"), row("max", 0.0, 1.0, mode="max")], 1) == []


@pytest.fixture(scope="module", params=["gabor", "resnet18"])
def rows(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """Measure settings on the photographs of sample_data."""
    settings = (
        GABOR
        if request.param == "gabor"
        else load(None, {"backbone": "resnet18", "weights": "random", "layers": "layer2"})
    )
    variants = make_grid(settings, {"sampling_ratio": [1, 2, 4, 8, 16, 32, 0], "op": ["roi_align", "roi_pool"]})
    found = ablate(SAMPLE_IMAGES, SAMPLE_BOXES, settings, variants, probe=True)
    assert found.finished
    assert found.probe is not None
    return {row["setting"]: row for row in found.rows if row["class"] == "all"}


def test_error_falls_with_the_sampling_ratio(rows: dict[str, dict[str, Any]]) -> None:
    errors = [rows[f"roi_align-7x7-ratio_{ratio}-aligned-avg"]["error_mean"] for ratio in (1, 2, 4, 8, 16, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3
    adaptive = rows["roi_align-7x7-adaptive-aligned-avg"]
    assert errors[3] < adaptive["error_mean"] < errors[1]
    assert 4 < adaptive["samples_per_bin_mean"] < 1024
    for row in rows.values():
        if row["mode"] == "max":  # approximates no integral
            assert row["error_mean"] is row["cosine_mean"] is None
        else:
            assert row["error_median"] <= row["error_p95"] <= row["error_max"]
            assert row["cosine_min"] <= row["cosine_p5"] <= row["cosine_median"] <= 1 + 1e-6
        assert row["ms_per_1000"] > 0
        assert 0 <= row["probe_accuracy"] <= 1


def test_roi_pool_does_not_follow_its_box(rows: dict[str, dict[str, Any]]) -> None:
    rounded = rows["roi_pool-7x7"]["alignment_px_mean"]
    assert rounded > 10 * rows["roi_align-7x7-adaptive-aligned-avg"]["alignment_px_mean"]
    assert rounded > 10 * rows["roi_align-7x7-ratio_8-aligned-avg"]["alignment_px_mean"]
    assert rows["roi_align-7x7-ratio_32-aligned-avg"]["alignment_px_mean"] < 0.01


@pytest.mark.slow
@pytest.mark.parametrize("columns", [None, 40])
def test_numbers_are_never_cut(tmp_path: Path, roialign: Run, columns: int | None) -> None:
    """A pipe gets the whole table; a narrow terminal fewer columns, which a line names."""
    env = {} if columns is None else {"COLUMNS": str(columns), "FORCE_COLOR": "1"}
    vary = ("--vary", "sampling-ratio=1,2", "--vary", "output-size=7,14", "--probe", "label")
    done = roialign("ablate", SAMPLE_IMAGES, SAMPLE_BOXES, "-c", "quickstart", "-o", tmp_path / "ab", *vary, env=env)
    assert done.returncode == 0, done.stderr
    assert "…" not in done.stdout
    assert ("not shown: 95th, samples" in done.stdout) == (columns is not None)


@pytest.mark.slow
def test_every_layer_has_its_plots(tmp_path: Path) -> None:
    layers = ("layer1", "layer2")
    settings = load(None, {"backbone": "resnet18", "weights": "random", "layers": layers})
    variants = make_grid(settings, {"sampling_ratio": [1, 2], "output_size": [3, 5, 7, 9, 11, 13]})
    found = ablate(SAMPLE_IMAGES, SAMPLE_BOXES, settings, variants)
    write_report(found, tmp_path)
    page = (tmp_path / "report.html").read_text()
    best = {choice.setting for choice in found.recommendations} - {None}
    for layer in layers:
        assert f"> {layer}</label>" in page
        assert (tmp_path / f"error_by_class-{layer}.png").exists()
        drawn = draw(found.rows, layer, best)["error_by_class"].axes[0].get_legend_handles_labels()[1]
        labels = {setting_label(row) for row in found.rows if row["setting"] in best}
        assert len(labels & set(drawn)) == min(len(labels), 8)
    assert "the largest error and the sum of the times count" in page


def test_the_command(tmp_path: Path, roialign: Run) -> None:
    arguments = ("ablate", SAMPLE_IMAGES, SAMPLE_BOXES, "-c", "quickstart", "-o", tmp_path / "ab", "--probe", "label")
    vary = ("--vary", "sampling-ratio=1,2", "--vary", "op=roi_align,roi_pool", "--save-features")
    done = roialign(*arguments, *vary)
    assert done.returncode == 0, done.stderr
    assert "7x7, aligned: take none" in done.stdout
    assert "7x7, ratio 2, aligned is nearest" in done.stdout
    with (tmp_path / "ab" / "ablation.csv").open() as file:
        table = list(csv.DictReader(file))
    facts = json.loads((tmp_path / "ab" / "ablation.json").read_text())
    assert [
        {name: "" if value is None else str(value) for name, value in row.items()} for row in facts["rows"]
    ] == table
    assert {row["class"] for row in table} == {"all", "small", "medium", "large"}
    assert [int(row["boxes"]) for row in table if row["class"] == "all"] == [19, 19, 19]
    assert facts["provenance"]["backbone"] == "gabor"
    assert facts["probe"]["boxes"] == 6
    for plot in ("error_by_ratio", "time_by_ratio", "error_by_class", "alignment"):
        assert (tmp_path / "ab" / f"{plot}.png").read_bytes()[:4] == b"\x89PNG"
        assert b"<svg" in (tmp_path / "ab" / f"{plot}.svg").read_bytes()
    again = roialign(*arguments, *vary)
    assert again.returncode == 6
    assert "error[output-exists]" in again.stderr
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", config_name="quickstart", sampling_ratio=2)
    with (
        FeatureFile(tmp_path / "f.h5") as plain,
        FeatureFile(tmp_path / "ab" / "roi_align-7x7-ratio_2-aligned-avg.h5") as ours,
    ):
        assert np.array_equal(plain.features(), ours.features())
        assert plain.settings == ours.settings
        assert check(ours).problems == []
        assert ours.status.tolist() == [1] * 5
    with FeatureFile(tmp_path / "ab" / "roi_pool-7x7.h5") as pooled:
        assert pooled.settings["op"] == "roi_pool"
        assert check(pooled).problems == []


def test_several_layers_levels_and_images_that_fail(tmp_path: Path, photos: tuple[Path, Path]) -> None:
    folder, boxes = photos
    (folder / "a" / "img 6.png").write_bytes(b"no image")
    settings = load(None, {"backbone": "resnet18", "weights": "random", "layers": "layer1,layer2", "output_size": 2})
    variants = make_grid(settings, {"sampling_ratio": [0, 1]})
    path = tmp_path / "f.h5"
    found = ablate(folder, boxes, settings, variants, save=lambda variant: path.with_stem(variant.name))
    assert list(found.failures) == ["a/img 6.png"]
    assert {row["layer"] for row in found.rows} == {"layer1", "layer2"}
    with FeatureFile(path.with_stem(variants[0].name)) as file:
        assert sorted(file.status.tolist()) == [1] * 11 + [2]
        assert check(file).problems == []
    with pytest.raises(InputError, match=r"img 6\.png"):
        ablate(folder, boxes, replace(settings, on_error="stop"), variants)
    with pytest.raises(InputError, match="expected boxes with labels"):
        ablate(folder, boxes, settings, variants, probe=True)


BROKEN = """
from torch import nn

class Broken(nn.Module):
    def forward(self, x):
        maps = nn.functional.avg_pool2d(x, 4)
        return maps.where(x.amax() < 2, float("nan"))
"""


def test_features_that_are_not_finite_are_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An image with NaN fails, and changes no figure of the others; without other images there are no figures."""
    (tmp_path / "bright_fails.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "im").mkdir()
    noise = np.random.default_rng(0).integers(0, 128, (3, 64, 64, 3), np.uint8)
    noise[1, :, :, 0] = 255
    for name, pixels in zip("abc", noise, strict=True):
        Image.fromarray(pixels).save(tmp_path / "im" / f"{name}.png")
    labelled = {"boxes": [[3, 4, 60, 50], [9, 9, 30, 40]], "labels": ["cat", "dog"]}
    settings = load(None, {"backbone": "bright_fails:Broken"})
    variants = make_grid(settings, {"sampling_ratio": [1, 2], "mode": ["avg", "max"]})

    def measure(names: str, **more: Any) -> Any:
        boxes = tmp_path / "boxes.json"
        boxes.write_text(json.dumps({f"{name}.png": labelled for name in names}))
        return ablate(tmp_path / "im", boxes, replace(settings, **more), variants, probe=True, save=path_of)

    def path_of(variant: Variant) -> Path:
        return tmp_path / f"{variant.name}.h5"

    found = measure("abc")
    assert found.failures == {"b.png": "expected finite features, found NaN or infinity in 2 of 2 boxes"}
    assert (found.images, found.finished, found.probe["boxes"]) == (2, True, 4)
    with FeatureFile(path_of(variants[0])) as file:
        assert file.errors == found.failures
    assert [{**row, "ms_per_1000": 0} for row in found.rows] == [
        {**row, "ms_per_1000": 0} for row in measure("ac").rows
    ]
    boxes = tmp_path / "boxes.json"
    stopped = ablate(tmp_path / "im", boxes, settings, variants, should_stop=lambda: True)
    assert not stopped.finished
    boxes.write_text(json.dumps({f"{name}.png": labelled for name in "bac"}))
    stopped = ablate(tmp_path / "im", boxes, settings, variants, should_stop=lambda: True)
    assert (stopped.finished, stopped.images, list(stopped.failures)) == (False, 0, ["b.png"])  # also after a failure
    none = measure("b")
    assert none.images == 0
    assert all(row["error_mean"] is None for row in none.rows)
    with pytest.raises(InputError, match=r"b\.png.*expected finite features"):
        measure("abc", on_error="stop")


def test_no_boxes_at_all(tmp_path: Path) -> None:
    boxes = tmp_path / "boxes.json"
    boxes.write_text('{"cat.jpg": []}')
    found = ablate(SAMPLE_IMAGES, boxes, GABOR, make_grid(GABOR, {}))
    assert found.finished
    assert found.images == 0
    assert found.recommendations == []
    assert all(row["boxes"] == 0 and row["error_mean"] is None for row in found.rows)


def test_boxes_are_measured_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    variants = make_grid(GABOR, {"sampling_ratio": [0, 2], "op": ["roi_align", "roi_pool"]})
    whole = ablate(SAMPLE_IMAGES, SAMPLE_BOXES, GABOR, variants)
    monkeypatch.setattr(run, "CHUNK_BYTES", 3 * 32 * 49 * 4)
    parts = ablate(SAMPLE_IMAGES, SAMPLE_BOXES, GABOR, variants)
    for one, other in zip(whole.rows, parts.rows, strict=True):
        assert one["error_mean"] == other["error_mean"]
        assert one["alignment_px_mean"] == other["alignment_px_mean"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_was_measured_survives(tmp_path: Path, number: int) -> None:
    boxes = {}
    (tmp_path / "im").mkdir()
    for i in range(400):
        (tmp_path / "im" / f"{i}.jpg").symlink_to(SAMPLE_IMAGES / "cat.jpg")
        boxes[f"{i}.jpg"] = [[10, 10, 200, 150]]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    often = "from roialign_cli.ablation import run; run.CHECKPOINT_SECONDS = 0.1"
    script = f"{often}; from roialign_cli.__main__ import main; main()"
    arguments = ["ablate", "im", "boxes.json", "-o", "ab", "-c", "quickstart"]
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], cwd=tmp_path, stderr=subprocess.DEVNULL)
    table = tmp_path / "ab" / "ablation.csv"
    while not table.exists():
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(number)
    assert process.wait() == (130 if number == signal.SIGINT else -number)
    with table.open() as file:
        counts = {int(row["boxes"]) for row in csv.DictReader(file) if row["class"] == "all"}
    (count,) = counts
    assert 0 < count < 400
    facts = json.loads((tmp_path / "ab" / "ablation.json").read_text())
    assert facts["finished"] is False
    assert number == signal.SIGKILL or "Interrupted" in (tmp_path / "ab" / "report.html").read_text()


@pytest.mark.parametrize(
    ("options", "code", "expected"),
    [
        (["--vary", "ratio=1"], 2, ["error[vary]: vary: expected one of op, region, output_size"]),
        (["--probe", "colour"], 2, ["probe: expected label, found 'colour'"]),
        (["--tolerance", "5"], 2, ["tolerance: expected a share"]),
        (["-o", "/proc/ab"], 6, ["error[output-folder]: /proc/ab: cannot be created"]),
        (["--vary", "mode=exact", "--kernel", "torchvision"], 5, ["error[kernel-mode]"]),
    ],
)
def test_mistakes(tmp_path: Path, roialign: Run, options: list[str], code: int, expected: list[str]) -> None:
    done = roialign("ablate", SAMPLE_IMAGES, SAMPLE_BOXES, "-c", "quickstart", "-o", tmp_path / "ab", *options)
    assert done.returncode == code, done.stderr
    for text in expected:
        assert text in done.stderr


def test_ready_configurations() -> None:
    for name in ("ablate_sampling_ratio", "ablate_alignment"):
        with pytest.raises(ConfigError) as error:
            load(name, {})
        assert "roialign ablate" in error.value.hint


def test_where_cells_look_is_an_axis(tmp_path: Path, roialign: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features of assumed centres lie beside those of measured ones by the offset that was measured."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "ab.yaml").write_text(
        "backbone: resnet18\nweights: random:0\nlayers: layer1\nvary: {centers: [assumed, measured], mode: [avg, exact]}\n"
    )
    command = [
        "ablate",
        SAMPLE_IMAGES,
        SAMPLE_BOXES,
        "-c",
        tmp_path / "ab.yaml",
        "-o",
        tmp_path / "ab",
        "--save-features",
    ]
    done = roialign(*command)
    assert done.returncode == 0, done.stderr
    for word, recorded in (("aligned", False), ("measured", True)):
        with FeatureFile(tmp_path / "ab" / f"roi_align-7x7-exact-{word}.h5") as file:
            assert ("centers" in file.attributes) == recorded
    rows = {
        row["setting"]: row
        for row in csv.DictReader((tmp_path / "ab" / "ablation.csv").read_text().splitlines())
        if row["class"] == "all"
    }
    assert {name: row["centers"] for name, row in rows.items()} == {
        "roi_align-7x7-adaptive-aligned-avg": "assumed", "roi_align-7x7-exact-aligned": "assumed",
        "roi_align-7x7-adaptive-measured-avg": "measured", "roi_align-7x7-exact-measured": "measured",
    }  # fmt: skip
    assert float(rows["roi_align-7x7-exact-measured"]["offset_px_median"]) == pytest.approx(0, abs=1e-3)
    assert float(rows["roi_align-7x7-exact-measured"]["error_mean"]) == pytest.approx(0, abs=1e-6)
    # Cells look 1.5 pixels left of and above where they are assumed to: a box takes features from there.
    assert -2.5 < float(rows["roi_align-7x7-exact-aligned"]["offset_px_median"]) < -0.5
    assert "7x7, measured: take" in done.stdout
