"""Find boxes and extract their features in one run: against runs over the same boxes, killed, resumed, in shards, exported."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.commands import Run, start
from helpers.feature_files import assert_same
from helpers.small_runs import stop_after
from helpers.tensors import relative_error
from PIL import Image

from roialign_cli import FeatureFile, extract
from roialign_cli.config import load
from roialign_cli.errors import ConfigError, OutputError
from roialign_cli.extraction.benchmark import make_job
from roialign_cli.extraction.compaction import work_path
from roialign_cli.extraction.recompute import recompute
from roialign_cli.extraction.run import run_job
from roialign_cli.inputs.images import open_images
from roialign_cli.store.check import check
from roialign_cli.store.merge import merge

IMAGES = 6
SETTINGS: dict[str, Any] = {
    "backbone": "retinanet_resnet50_fpn_v2", "weights": "random:0", "resize": "96", "detect": True, "min_score": 0.011,
    "max_boxes": 12, "output_size": 3,
}  # fmt: skip
OPTIONS = [
    "--backbone", "retinanet_resnet50_fpn_v2", "--weights", "random:0", "--resize", "96", "--detect", "--min-score", "0.011",
    "--max-boxes", "12", "--output-size", "3",
]  # fmt: skip


def make_image(path: Path, seed: int) -> None:
    small = np.random.default_rng(seed).integers(0, 255, (8, 12, 3), np.uint8)
    Image.fromarray(small).resize((96 + 16 * (seed % 2), 80), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder of images of two sizes, in the folder that commands run in."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "im"
    folder.mkdir()
    for i in range(IMAGES):
        make_image(folder / f"{i:03}.png", i)
    return folder


def boxes_of(path: Path) -> dict[str, Any]:
    with FeatureFile(path) as file:
        return {name: file[name].boxes.tolist() for name in file.done_names}


def test_rows_are_those_of_the_same_boxes_in_a_file(images: Path, tmp_path: Path) -> None:
    summary = extract(images, None, tmp_path / "f.h5", **SETTINGS)
    assert summary.finished
    assert 0 < summary.boxes <= IMAGES * 12
    assert not work_path(tmp_path / "f.h5").exists()
    (tmp_path / "boxes.json").write_text(json.dumps(boxes_of(tmp_path / "f.h5")))
    plain = {key: value for key, value in SETTINGS.items() if key not in ("detect", "min_score", "max_boxes")}
    extract(images, tmp_path / "boxes.json", tmp_path / "again.h5", **plain)
    with FeatureFile(tmp_path / "f.h5") as found, FeatureFile(tmp_path / "again.h5") as again:
        assert check(found).problems == []
        assert found.attributes["format_version"] == 1
        assert summary.boxes == len(found.boxes) == summary.features["fpn"][0]
        assert np.array_equal(found.boxes, again.boxes)
        assert np.array_equal(found.dataset("levels"), again.dataset("levels"))
        assert relative_error(torch.tensor(found.features()), torch.tensor(again.features())) < 1e-5
        assert all((np.diff(found[name].scores) <= 0).all() for name in found.names)


def test_the_backbone_runs_once_per_image_whatever_the_batches(images: Path, tmp_path: Path) -> None:
    found = []
    for size in (1, 3):
        job = make_job(images, None, tmp_path / f"{size}.h5", load(None, {**SETTINGS, "batch_size": size}))
        seen: list[int] = []
        job.backbone.model.register_forward_pre_hook(lambda _, given, seen=seen: seen.append(len(given[0])))
        run_job(job, overwrite=False)
        assert sum(seen) == IMAGES
        found.append(FeatureFile(job.output))
    assert np.array_equal(found[0].offset, found[1].offset)
    assert relative_error(torch.tensor(found[0].boxes), torch.tensor(found[1].boxes)) < 1e-5
    assert relative_error(torch.tensor(found[0].features()), torch.tensor(found[1].features())) < 1e-4


def test_stopped_and_resumed_with_the_same_bits(images: Path, tmp_path: Path) -> None:
    given = {**SETTINGS, "batch_size": 1}
    extract(images, None, tmp_path / "whole.h5", **given)
    for stop in (1, 3):
        summary = extract(images, None, tmp_path / "f.h5", should_stop=stop_after(stop), **given)
        assert summary.interrupted
        assert not (tmp_path / "f.h5").exists()
        with FeatureFile(work_path(tmp_path / "f.h5")) as file:
            assert check(file).problems == []
    assert extract(images, None, tmp_path / "f.h5", **given).finished
    assert_same(tmp_path / "f.h5", tmp_path / "whole.h5")
    assert extract(images, None, tmp_path / "f.h5", **given).already_finished


@pytest.mark.slow
def test_an_image_that_changes_between_two_runs(images: Path, tmp_path: Path) -> None:
    """Its rows in the work file are replaced, and those that it has no longer are empty again."""
    given = {**SETTINGS, "batch_size": 1}
    extract(images, None, tmp_path / "f.h5", should_stop=stop_after(4), **given)
    Image.new("RGB", (96, 80)).save(images / "000.png")
    with pytest.warns(
        RuntimeWarning, match='1 done images changed since they were read and are computed again: "000.png"'
    ):
        extract(images, None, tmp_path / "f.h5", **given)
    extract(images, None, tmp_path / "whole.h5", **given)
    assert_same(tmp_path / "f.h5", tmp_path / "whole.h5")
    with FeatureFile(tmp_path / "f.h5") as file:
        assert check(file).problems == []
    make_image(images / "001.png", 77)
    with pytest.raises(OutputError, match=r'found 1 that have changed, the first is "001.png"'):
        extract(images, None, tmp_path / "f.h5", **given)
    make_image(images / "009.png", 9)
    with pytest.raises(OutputError, match="it has 6 images, this run has 7"):
        extract(images, None, tmp_path / "f.h5", **given)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_somebody_else_in_the_place_of_the_work_file(overwrite: bool, images: Path, tmp_path: Path) -> None:
    """It is neither replaced nor removed, also beside a finished output."""
    work = work_path(tmp_path / "f.h5")
    for _ in range(2):
        work.write_text("my notes")
        with pytest.raises(OutputError, match="expected nothing, or what an earlier run left, found something else"):
            extract(images / "000.png", None, tmp_path / "f.h5", overwrite=overwrite, **SETTINGS)
        assert work.read_text() == "my notes"
        work.unlink()
        extract(images / "000.png", None, tmp_path / "f.h5", overwrite=overwrite, **SETTINGS)


@pytest.mark.slow
def test_killed_at_any_instant(images: Path, tmp_path: Path) -> None:
    """The output is absent or complete, and the same command completes it."""
    command = ["extract", str(images), *OPTIONS, "--batch-size", "1", "-o", "f.h5"]
    folder = tmp_path / "run"
    folder.mkdir()
    begun = time.monotonic()
    whole = start(command, folder)
    whole.join()
    seconds = time.monotonic() - begun
    shutil.copy(folder / "f.h5", tmp_path / "whole.h5")
    rng = random.Random(0)
    for _ in range(20):
        (folder / "f.h5").unlink()
        for _ in range(3):
            process = start(command, folder)
            process.join(rng.uniform(0.3, 1.1) * seconds)
            process.kill()
            process.join()
            assert process.exitcode in (0, -signal.SIGKILL)
            if (folder / "f.h5").exists():
                assert_same(folder / "f.h5", tmp_path / "whole.h5")
        last = start(command, folder)
        last.join()
        assert last.exitcode == 0, (folder / "err").read_text()
        assert_same(folder / "f.h5", tmp_path / "whole.h5")
        assert sorted(path.name for path in folder.iterdir()) == ["err", "f.h5", "out"]


@pytest.mark.slow
def test_two_shards_and_processes(images: Path, tmp_path: Path) -> None:
    extract(images, None, tmp_path / "whole.h5", **SETTINGS)
    for number in (1, 2):
        extract(images, None, tmp_path / "f.h5", shard=f"{number}/2", **SETTINGS)
    shards = sorted(tmp_path.glob("f-*.h5"))
    assert len(shards) == 2
    result = merge(shards, tmp_path / "merged.h5")
    extract(images, None, tmp_path / "both.h5", **SETTINGS, processes=2)
    with FeatureFile(tmp_path / "whole.h5") as whole:
        assert result.boxes == len(whole.boxes)
        for other in ("merged.h5", "both.h5"):
            with FeatureFile(tmp_path / other) as file:
                assert check(file).problems == []
                assert file.names == whole.names
                assert np.array_equal(file.offset, whole.offset)
                assert relative_error(torch.tensor(file.boxes), torch.tensor(whole.boxes)) < 1e-5


@pytest.mark.parametrize(
    "more",
    [
        {"head": "box"},
        pytest.param({"proposals": True}, marks=pytest.mark.slow),
        pytest.param({"head": "box", "dtype": "float16"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_two_stage_detector(more: dict[str, Any], images: Path, tmp_path: Path) -> None:
    given = {**SETTINGS, "backbone": "fasterrcnn_resnet50_fpn_v2", "output_size": 7, "min_score": 0.0, **more}
    summary = extract(images / "000.png", None, tmp_path / "f.h5", **given)
    assert summary.boxes == 12
    with FeatureFile(tmp_path / "f.h5") as file:
        assert check(file).problems == []
        regions = file[0]
        assert (regions.labels is None) == ("proposals" in more)
        assert np.shape(regions.features) == ((12, 1024) if "head" in more else (12, 256, 7, 7))
        assert np.isfinite(regions.features).all()


@pytest.mark.slow
def test_written_boxes_and_exports_are_read_again(images: Path, tmp_path: Path, roialign: Run) -> None:
    for i in range(IMAGES):
        (images / f"{i:03}.png").rename(images / f"{i + 1}.png")
    done = roialign("extract", images, *OPTIONS, "-o", "f.h5", "--write-boxes", "boxes.json", "--json")
    assert done.returncode == 0, done.stderr
    for form in ("native", "coco-results"):
        ids = [] if form == "native" else ["--image-id", "int"]
        exported = roialign("export", "f.h5", "--to", form, "-o", f"{form}.json", *ids)
        assert exported.returncode == 0, exported.stderr
        plain = [
            option for option in OPTIONS if option not in ("--detect", "--min-score", "0.011", "--max-boxes", "12")
        ]
        again = roialign("extract", images, f"{form}.json", *plain, "-o", f"{form}.h5")
        assert again.returncode == 0, again.stderr
    assert (tmp_path / "boxes.json").read_text() == (tmp_path / "native.json").read_text()
    with FeatureFile(tmp_path / "f.h5") as file:
        for form, tolerance in (("native", 0.0), ("coco-results", 1e-6)):
            with FeatureFile(tmp_path / f"{form}.h5") as again:
                for name in file.names:
                    own, other = file[name], again[name]
                    assert relative_error(torch.tensor(other.boxes), torch.tensor(own.boxes)) <= tolerance
                    assert np.array_equal(own.labels, other.labels)
                    assert np.array_equal(own.scores, other.scores)
    for form in ("npz", "tsv"):
        assert roialign("export", "f.h5", "--to", form, "-o", f"out-{form}").returncode == 0


def test_images_that_fail(images: Path, tmp_path: Path, roialign: Run) -> None:
    (images / "broken.png").write_bytes(b"no image")
    (images / "cut.png").write_bytes((images / "001.png").read_bytes()[:-60])
    for _ in range(2):
        done = roialign("extract", images, *OPTIONS, "-o", "f.h5", "--json")
        assert done.returncode == 7, done.stderr
        summary = json.loads(done.stdout)
        assert (summary["done"], summary["failed"]) == (IMAGES, 2)
        assert set(summary["failures"]) == {"broken.png", "cut.png"}
    with FeatureFile(tmp_path / "f.h5") as file:
        assert check(file).problems == []


def test_maps_that_are_not_finite_fail_their_images(images: Path, tmp_path: Path) -> None:
    """A detector finds nothing on NaN, which must not look like an image without objects."""
    job = make_job(images, None, tmp_path / "f.h5", load(None, SETTINGS))
    next(job.backbone.model.parameters()).data.fill_(torch.nan)
    summary = run_job(job, overwrite=True)
    assert (summary.done, summary.failed) == (0, IMAGES)
    assert all("values not finite" in reason for reason in summary.failures.values())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["boxes.json"], "--detect: expected no box file beside it, found boxes.json"),
        (["--reuse", "old.h5"], "reuse: expected none with detect"),
        (["--engine", "ray"], "detect: expected engine local with it, found ray"),
        (["--write-boxes", "f.h5"], "write_boxes: expected another file than the output, found f.h5"),
        (["--write-boxes", "there.json"], "there.json: expected nothing there, found a file"),
        (
            ["--write-boxes", "b.json", "--boxes-format", "voc"],
            "boxes_format: expected native or coco-results to write",
        ),
        (["--grid", "2x2"], "grid: expected"),
    ],
)
def test_options_that_do_not_go_together(
    options: list[str], expected: str, images: Path, tmp_path: Path, roialign: Run
) -> None:
    (tmp_path / "there.json").write_text("{}")
    (tmp_path / "boxes.json").write_text("{}")
    done = roialign("extract", images, *options, *OPTIONS, "-o", "f.h5")
    assert done.returncode in (2, 3, 6), done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes.json", "im", "there.json"]


def test_boxes_are_written_only_with_a_detector(images: Path, roialign: Run) -> None:
    done = roialign("extract", images, "--whole-image", "-c", "quickstart", "--write-boxes", "b.json", "-o", "f.h5")
    assert done.returncode == 2
    assert "write_boxes: expected --detect with it" in done.stderr


def test_in_python_without_a_box_file(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use --whole-image or --grid"):
        extract(images, None, tmp_path / "f.h5", config_name="quickstart")


def test_a_finished_file_is_reused_and_computed_again(images: Path, tmp_path: Path) -> None:
    extract(images, None, tmp_path / "f.h5", **SETTINGS)
    with FeatureFile(tmp_path / "f.h5") as file:
        result = recompute(file, open_images(images), 3)
    assert len(result.images) == 3
    assert max(one.difference for one in result.images) < 1e-5
    boxes = boxes_of(tmp_path / "f.h5")
    boxes["000.png"] = [[1, 2, 30, 40]]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    plain = {key: value for key, value in SETTINGS.items() if key not in ("detect", "min_score", "max_boxes")}
    summary = extract(images, tmp_path / "boxes.json", tmp_path / "again.h5", reuse=[tmp_path / "f.h5"], **plain)
    assert (summary.reused_images, summary.done) == (IMAGES - 1, IMAGES)


def test_a_configuration_with_a_detector_is_not_for_other_commands(images: Path, tmp_path: Path, roialign: Run) -> None:
    (tmp_path / "c.yaml").write_text("backbone: retinanet_resnet50_fpn_v2\nweights: random:0\ndetect: true\n")
    done = roialign("ablate", images, "-c", "c.yaml", "-o", "ab", "--vary", "sampling-ratio=1")
    assert done.returncode == 2
    assert "detect: expected a box file for ablate" in done.stderr
