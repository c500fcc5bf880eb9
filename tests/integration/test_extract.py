"""Test extraction from outside: features equal hand-written scripts, and do not depend on batches or order."""

from __future__ import annotations

import json
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import torchvision
from helpers.commands import Run
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from helpers.tensors import relative_error
from PIL import ExifTags, Image, ImageOps
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign
from torchvision.transforms.functional import normalize, to_tensor

from roialign_cli import FeatureFile, config, extract
from roialign_cli.errors import InputError, OutputError
from roialign_cli.extraction.job import prepare_job
from roialign_cli.extraction.plan import plan_run
from roialign_cli.extraction.run import run_job
from roialign_cli.inputs.images import ImageError, open_images
from roialign_cli.store.check import check

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def sample() -> dict[str, torch.Tensor]:
    """Return the images of the sample data as a user would open them."""
    names = json.loads(SAMPLE_BOXES.read_text())
    return {name: to_tensor(ImageOps.exif_transpose(Image.open(SAMPLE_IMAGES / name)).convert("RGB")) for name in names}


def sample_boxes() -> dict[str, torch.Tensor]:
    entries = json.loads(SAMPLE_BOXES.read_text())
    return {name: torch.tensor(entry["boxes"], dtype=torch.float32) for name, entry in entries.items()}


def test_resnet18_equals_a_handwritten_script(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = torchvision.models.resnet18(weights=None).eval()
    torch.save(model.state_dict(), tmp_path / "state.pth")
    extract(
        SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", backbone="resnet18", weights=str(tmp_path / "state.pth"),
        layers="layer3", sampling_ratio=2, output_size="7x5",
    )  # fmt: skip
    body = torch.nn.Sequential(*list(model.children())[:7])
    boxes = sample_boxes()
    with FeatureFile(tmp_path / "f.h5") as file, torch.inference_mode():
        for name, image in sample().items():
            maps = body(normalize(image, MEAN, STD)[None])
            expected = torchvision.ops.roi_align(maps, [boxes[name]], (7, 5), 1 / 16, 2, aligned=True)
            assert relative_error(torch.tensor(file[name].features), expected) < 1e-4
            assert np.array_equal(file[name].boxes, boxes[name].numpy())
            assert file[name].size == tuple(image.shape[1:])


def test_the_pyramid_equals_torchvisions_own_pipeline(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = torchvision.models.get_model("fasterrcnn_resnet50_fpn", weights=None, weights_backbone=None).eval()
    torch.save(model.state_dict(), tmp_path / "state.pth")
    model.transform.min_size, model.transform.max_size = (256,), 400
    extract(
        SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", backbone="fasterrcnn_resnet50_fpn",
        weights=str(tmp_path / "state.pth"), resize="256,400", sampling_ratio=2, aligned=False,
    )  # fmt: skip
    pooler = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    boxes = sample_boxes()
    with FeatureFile(tmp_path / "f.h5") as file, torch.inference_mode():
        for name, image in sample().items():
            images, targets = model.transform([image], [{"boxes": boxes[name]}])
            assert isinstance(images, ImageList)
            scaled = [target["boxes"] for target in targets]
            padded = [images.tensors.shape[-2:]]  # the true strides; torchvision guesses them from these sizes
            expected = pooler(model.backbone(images.tensors), scaled, padded)
            assert relative_error(torch.tensor(file[name].features), expected) < 1e-4
            levels = pooler.map_levels(scaled)
            assert file[name].levels.tolist() == levels.tolist()


def features(path: Path) -> dict[str, np.ndarray]:
    with FeatureFile(path) as file:
        return {name: np.array(file[name].features) for name in file}


@pytest.mark.parametrize(
    "backbone",
    [
        "gabor",
        "resnet18",
        "fasterrcnn_mobilenet_v3_large_320_fpn",
        pytest.param("fasterrcnn_resnet50_fpn", marks=pytest.mark.slow),
    ],
)
def test_features_depend_on_nothing_but_image_and_box(tmp_path: Path, photos: tuple[Path, Path], backbone: str) -> None:
    folder, boxes = photos
    options = {"backbone": backbone, "weights": "DEFAULT" if backbone == "gabor" else "random:2", "resize": "none"}
    content = json.loads(boxes.read_text())
    shuffled = tmp_path / "shuffled.json"
    shuffled.write_text(json.dumps(dict(reversed(content.items()))))
    runs = {"base": {"batch_size": 1, "workers": 1}, "batch": {"batch_size": 5, "workers": 3}, "auto": {}}
    found = {}
    for name, run in runs.items():
        extract(folder, boxes, tmp_path / f"{name}.h5", **options, **run)
        found[name] = features(tmp_path / f"{name}.h5")
    extract(folder, shuffled, tmp_path / "order.h5", **options)
    found["order"] = features(tmp_path / "order.h5")
    assert list(found["base"]) == list(content)
    scale = max(np.abs(values).max(initial=0) for values in found["base"].values())
    for name, run in found.items():
        for image, values in found["base"].items():
            assert np.abs(run[image] - values).max(initial=0) <= 1e-5 * scale, (name, image)


def test_several_layers_reduction_and_half_precision(tmp_path: Path, photos: tuple[Path, Path]) -> None:
    options = {"backbone": "resnet18", "weights": "random", "layers": "layer1,layer2", "output_size": 3}
    extract(*photos, tmp_path / "f.h5", **options)
    extract(*photos, tmp_path / "mean.h5", **options, reduce="mean")
    extract(*photos, tmp_path / "max.h5", **options, reduce="max")
    extract(*photos, tmp_path / "half.h5", **options, dtype="float16")
    summary = extract(*photos, tmp_path / "bf16.h5", **options, precision="bfloat16")
    assert summary.features == {"layer1": (31, 64, 3, 3), "layer2": (31, 128, 3, 3)}
    full, mean, most, half, brain = (FeatureFile(tmp_path / f"{n}.h5") for n in ("f", "mean", "max", "half", "bf16"))
    for layer in ("layer1", "layer2"):
        values = np.array(full.features(layer))
        assert np.allclose(mean.features(layer), values.mean((2, 3)), atol=1e-6)
        assert np.array_equal(most.features(layer), values.max((2, 3)))
        assert np.array_equal(half.features(layer), values.astype(np.float16))
        assert np.abs(brain.features(layer) - values).max() < 0.05 * np.abs(values).max()
    with h5py.File(tmp_path / "f.h5") as file:
        assert set(file["features"]) == {"layer1", "layer2"}


def test_the_file_is_what_the_specification_says(tmp_path: Path, photos: tuple[Path, Path]) -> None:
    folder, boxes = photos
    extract(folder, boxes, tmp_path / "f.h5", config_name="quickstart")
    content = json.loads(boxes.read_text())
    with h5py.File(tmp_path / "f.h5") as file:
        assert file.attrs["format"] == "roialign-features"
        assert file.attrs["format_version"] == 1
        assert json.loads(file.attrs["config"])["output_size"] == [7, 7]
        assert len(file.attrs["weights_sha256"]) == len(file.attrs["boxes_sha256"]) == 64
        rows, images = 31, 12
        expected = {
            "features": ((rows, 32, 7, 7), "float32"), "boxes": ((rows, 4), "float32"),
            "images/offset": ((images + 1,), "int64"), "images/size": ((images, 2), "int64"),
            "images/status": ((images,), "uint8"), "images/crc32": ((images,), "uint32"),
        }  # fmt: skip
        for name, (shape, dtype) in expected.items():
            assert (file[name].shape, file[name].dtype) == (shape, dtype)
        for name in ("images/name", "images/error"):
            assert h5py.check_string_dtype(file[name].dtype).encoding == "utf-8"
        file.visititems(lambda _, item: None if isinstance(item, h5py.Group) else contiguous(item))
        assert [name.decode() for name in file["images/name"]] == list(content)
        assert file["images/status"][:].tolist() == [1] * images
        assert "labels" not in file
        assert np.array_equal(
            file["boxes"][:], np.concatenate([np.reshape(b, (-1, 4)) for b in content.values()]).astype("f4")
        )


def contiguous(dataset: h5py.Dataset) -> None:
    assert dataset.chunks is None
    assert dataset.id.get_offset() is not None


def test_reader(tmp_path: Path) -> None:
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", config_name="quickstart")
    with FeatureFile(tmp_path / "f.h5") as file:
        assert len(file) == 5
        assert list(file) == file.names == list(json.loads(SAMPLE_BOXES.read_text()))
        cat = file["cat.jpg"]
        assert len(cat) == 4
        assert cat.features.shape == (4, 32, 7, 7)
        assert cat.labels.tolist() == ["cat", "eye", "eye", "nose"]
        assert isinstance(cat.mapped["gabor"], np.memmap)
        assert not cat.mapped["gabor"].flags.writeable
        own = torch.from_numpy(cat.features)  # would warn of memory that cannot be written
        own += 1
        assert torch.equal(torch.from_numpy(file["cat.jpg"].features) + 1, own)
        assert file.settings["backbone"] == "gabor"
        assert "dog.jpg" not in file
        with pytest.raises(KeyError):
            file["dog.jpg"]


def test_a_link_to_nothing_is_not_replaced(tmp_path: Path) -> None:
    output = tmp_path / "f.h5"
    output.symlink_to("elsewhere")
    with pytest.raises(OutputError, match="found a link to nothing"):
        extract(SAMPLE_IMAGES, SAMPLE_BOXES, output, config="quickstart")
    assert output.is_symlink()
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, output, config="quickstart", overwrite=True)
    assert len(FeatureFile(output)) == 5


def test_several_output_sizes(tmp_path: Path) -> None:
    """They come from one pass of the backbone, and each equals a run of its own."""
    options = {"backbone": "fasterrcnn_mobilenet_v3_large_320_fpn", "weights": "random:0", "resize": "64"}
    summary = extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", output_size="7,3x5", **options)
    assert summary.features == {"fpn_7x7": (19, 256, 7, 7), "fpn_3x5": (19, 256, 3, 5)}
    with FeatureFile(tmp_path / "f.h5") as both:
        assert not check(both).problems
        for size in ("7x7", "3x5"):
            extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / f"{size}.h5", output_size=size, **options)
            with FeatureFile(tmp_path / f"{size}.h5") as one:
                assert np.array_equal(one.features(), both.features(f"fpn_{size}"))
                assert np.array_equal(one.dataset("levels"), both.dataset("levels"))
    again = extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", output_sizes=[7, [3, 5]], **options)
    assert again.already_finished
    with pytest.raises(OutputError, match=r"output_sizes was \[\[7, 7\], \[3, 5\]\], is \[\]"):
        extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", output_size=7, **options)


def test_boxes_with_context(tmp_path: Path) -> None:
    """Each scale is a layer, equal to a run over boxes that were scaled by hand, from the levels of the boxes themselves."""
    options = {
        "backbone": "fasterrcnn_mobilenet_v3_large_320_fpn",
        "weights": "random:0",
        "resize": "64",
        "output_size": 3,
    }
    summary = extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", context="1,1.5", **options)
    assert summary.features == {"fpn_context1": (19, 256, 3, 3), "fpn_context1.5": (19, 256, 3, 3)}
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "plain.h5", **options)
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "one.h5", context=1.5, **options)
    with (
        FeatureFile(tmp_path / "f.h5") as file,
        FeatureFile(tmp_path / "plain.h5") as plain,
        FeatureFile(tmp_path / "one.h5") as one,
    ):
        assert not check(file).problems
        assert np.array_equal(file.features("fpn_context1"), plain.features())
        assert np.array_equal(file.features("fpn_context1.5"), one.features())
        assert np.array_equal(file.dataset("boxes"), plain.dataset("boxes"))
        assert np.array_equal(file.dataset("levels"), plain.dataset("levels"))
    table = json.loads(SAMPLE_BOXES.read_text())
    scaled = {
        name: [
            [x1 - (x2 - x1) / 4, y1 - (y2 - y1) / 4, x2 + (x2 - x1) / 4, y2 + (y2 - y1) / 4] for x1, y1, x2, y2 in boxes
        ]
        for name, boxes in _boxes(table).items()
    }
    (tmp_path / "scaled.json").write_text(json.dumps(scaled))
    # Levels are those of the boxes before they grow: a canonical size that grows alike gives the same.
    extract(
        SAMPLE_IMAGES, tmp_path / "scaled.json", tmp_path / "by_hand.h5", canonical_size=336, allow_outside=True, **options
    )  # fmt: skip
    with FeatureFile(tmp_path / "by_hand.h5") as by_hand, FeatureFile(tmp_path / "one.h5") as one:
        for name in by_hand:
            assert np.allclose(by_hand[name].features, one[name].features, atol=1e-5)


def _boxes(table: dict[str, Any]) -> dict[str, list[list[float]]]:
    return {name: entry["boxes"] if isinstance(entry, dict) else entry for name, entry in table.items()}


@pytest.mark.parametrize(
    ("levels", "fuse", "channels"), [("soft", "mean", 256), ("all", "sum", 256), ("all", "concat", 512)]
)
def test_levels_other_than_that_of_the_size(levels: str, fuse: str, channels: int, tmp_path: Path) -> None:
    given = {
        "backbone": "fasterrcnn_mobilenet_v3_large_320_fpn", "weights": "random:0", "resize": "64", "output_size": 3,
        "levels": levels, "fuse": fuse,
    }  # fmt: skip
    summary = extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", **given)
    assert summary.features["fpn"][1:] == (channels, 3, 3)
    stop = iter([False, False, True])
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "resumed.h5", should_stop=lambda: next(stop), **given)
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "resumed.h5", **given)
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "assigned.h5", **given | {"levels": "assign", "fuse": "mean"})
    with (
        FeatureFile(tmp_path / "f.h5") as file,
        FeatureFile(tmp_path / "resumed.h5") as resumed,
        FeatureFile(tmp_path / "assigned.h5") as assigned,
    ):
        assert not check(file).problems
        assert np.array_equal(file.features(), resumed.features())
        assert np.array_equal(file.dataset("levels"), assigned.dataset("levels"))
    with pytest.raises(OutputError, match="levels was"):
        extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", **given | {"levels": "assign", "fuse": "mean"})


def test_awkward_names(tmp_path: Path) -> None:
    names = [
        "a.1.jpg",
        "a.2.jpg",
        "A.1.jpg",
        "日本/写真 1.png",
        "emoji 🦊.png",
        "space .jpg",
        "n" * 200 + ".png",
        "x/y/z/a.1.jpg",
    ]
    content = {}
    for i, name in enumerate(names):
        (tmp_path / "im" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30), (10 * i, 5, 5)).save(tmp_path / "im" / name)
        content[name] = [[0, 0, 10, 10 + i]]
    (tmp_path / "b.json").write_text(json.dumps(content))
    extract(tmp_path / "im", tmp_path / "b.json", tmp_path / "f.h5", config_name="quickstart")
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file.names == names
        for i, name in enumerate(names):
            assert file[name].boxes.tolist() == [[0, 0, 10, 10 + i]]
            assert file[name].features[0, 24].mean() == pytest.approx(10 * i / 255, abs=0.02)


@pytest.mark.parametrize("content", [{}, {"cat.jpg": []}, {"cat.jpg": [], "rocket.jpg": [[5, 5, 5, 5]]}])
def test_few_or_no_boxes(tmp_path: Path, content: dict[str, list[list[float]]]) -> None:
    (tmp_path / "b.json").write_text(json.dumps(content))
    summary = extract(SAMPLE_IMAGES, tmp_path / "b.json", tmp_path / "f.h5", config_name="quickstart")
    assert (summary.done, summary.failed, summary.finished) == (len(content), 0, True)
    with FeatureFile(tmp_path / "f.h5") as file:
        for name, boxes in content.items():
            assert file[name].features.shape == (len(boxes), 32, 7, 7)
            assert file[name].features.sum() == 0
    assert extract(SAMPLE_IMAGES, tmp_path / "b.json", tmp_path / "f.h5", config_name="quickstart").already_finished


def test_boxes_outside_are_counted_and_can_be_clipped(tmp_path: Path) -> None:
    content = {"cat.jpg": [[-10, -10, 100, 100], [400, 200, 500, 400], [1, 1, 5, 5], [600, 600, 700, 700]]}
    (tmp_path / "b.json").write_text(json.dumps(content))
    plain = extract(SAMPLE_IMAGES, tmp_path / "b.json", tmp_path / "f.h5", config_name="quickstart", allow_outside=True)
    assert (plain.outside_boxes, plain.empty_boxes, plain.unused_images) == (3, 0, 4)
    clipped = extract(
        SAMPLE_IMAGES, tmp_path / "b.json", tmp_path / "c.h5", config_name="quickstart", clip=True, allow_outside=True
    )
    assert (clipped.outside_boxes, clipped.empty_boxes) == (3, 1)
    with FeatureFile(tmp_path / "c.h5") as file:
        assert file["cat.jpg"].boxes.tolist() == [
            [0, 0, 100, 100],
            [400, 200, 451, 300],
            [1, 1, 5, 5],
            [451, 300, 451, 300],
        ]
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file["cat.jpg"].boxes.tolist() == content["cat.jpg"]


def test_more_rows_than_fit_one_block(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 200, (30000, 2))
    boxes = np.hstack([corner, corner + 40]).round(1)
    (tmp_path / "b.json").write_text(json.dumps({"cat.jpg": boxes.tolist(), "coffee.jpg": boxes[:50].tolist()}))
    summary = extract(SAMPLE_IMAGES, tmp_path / "b.json", tmp_path / "f.h5", config_name="quickstart")
    assert summary.bytes > 2 * (64 << 20)
    (tmp_path / "few.json").write_text(json.dumps({"cat.jpg": boxes[::999].tolist()}))
    extract(SAMPLE_IMAGES, tmp_path / "few.json", tmp_path / "few.h5", config_name="quickstart")
    with FeatureFile(tmp_path / "f.h5") as many, FeatureFile(tmp_path / "few.h5") as few:
        assert np.array_equal(many["cat.jpg"].features[::999], few["cat.jpg"].features)


def test_failed_images_are_in_the_ledger_and_tried_again(tmp_path: Path, photos: tuple[Path, Path]) -> None:
    folder, boxes = photos
    names = [name for name, rows in json.loads(boxes.read_text()).items() if rows]
    whole = (folder / names[0]).read_bytes()
    (folder / names[0]).write_bytes(whole[: len(whole) // 2])
    (folder / names[1]).rename(tmp_path / "away")
    summary = extract(folder, boxes, tmp_path / "f.h5", config_name="quickstart")
    assert (summary.done, summary.failed, summary.finished) == (10, 2, True)
    assert set(summary.failures) == set(names[:2])
    with FeatureFile(tmp_path / "f.h5") as file, pytest.raises(OutputError, match="failed: cannot be decoded"):
        file[names[0]]
    for stop in (names[1], names[0]):
        with pytest.raises(InputError, match=stop):
            extract(folder, boxes, tmp_path / "stop.h5", config_name="quickstart", on_error="stop")
        if (tmp_path / "away").exists():
            (tmp_path / "away").rename(folder / names[1])
    (folder / names[0]).write_bytes(whole)
    assert extract(folder, boxes, tmp_path / "f.h5", config_name="quickstart").failed == 0
    extract(folder, boxes, tmp_path / "fresh.h5", config_name="quickstart")
    again, fresh = features(tmp_path / "f.h5"), features(tmp_path / "fresh.h5")
    assert all(np.array_equal(again[name], fresh[name]) for name in fresh)


def test_an_image_may_fail_again_beside_one_that_is_done(tmp_path: Path) -> None:
    whole = (SAMPLE_IMAGES / "cat.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole)
    (tmp_path / "b.jpg").write_bytes(whole[: len(whole) // 2])  # of one size, so of one batch
    (tmp_path / "b.json").write_text(json.dumps({"a.jpg": [[1, 1, 50, 50]], "b.jpg": [[1, 1, 50, 50]]}))
    for _ in range(2):
        summary = extract(tmp_path, tmp_path / "b.json", tmp_path / "f.h5", config_name="quickstart")
        assert (summary.done, summary.failed) == (1, 1)
    (tmp_path / "b.jpg").write_bytes(whole)
    assert extract(tmp_path, tmp_path / "b.json", tmp_path / "f.h5", config_name="quickstart").done == 2
    found = features(tmp_path / "f.h5")
    assert np.array_equal(found["a.jpg"], found["b.jpg"])


def test_another_configuration_is_refused(tmp_path: Path, photos: tuple[Path, Path]) -> None:
    output = tmp_path / "f.h5"
    extract(*photos, output, config_name="quickstart")
    before = output.read_bytes()
    with pytest.raises(OutputError) as error:
        extract(*photos, output, config_name="quickstart", mode="max", output_size=3)
    assert "output_size was [7, 7], is [3, 3]" in error.value.message
    assert "mode was avg, is max" in error.value.message
    with pytest.raises(OutputError, match="the box file has changed since"):
        extract(SAMPLE_IMAGES, SAMPLE_BOXES, output, config_name="quickstart")
    assert output.read_bytes() == before
    assert extract(*photos, output, config_name="quickstart", mode="max", overwrite=True).done == 12


def test_saturation_in_float16_is_counted(tmp_path: Path, photos: tuple[Path, Path]) -> None:
    model = torchvision.models.resnet18(weights=None)
    with torch.no_grad():
        model.bn1.weight.mul_(1e6)
    torch.save(model.state_dict(), tmp_path / "big.pth")
    options = {"backbone": "resnet18", "weights": str(tmp_path / "big.pth"), "layers": "relu", "dtype": "float16"}
    summary = extract(*photos, tmp_path / "f.h5", **options)
    values = np.array(FeatureFile(tmp_path / "f.h5").features())
    assert np.isfinite(values).all()
    extract(*photos, tmp_path / "full.h5", **{**options, "dtype": "float32"})
    full = np.array(FeatureFile(tmp_path / "full.h5").features())
    assert summary.saturated_values == (np.abs(full) >= 65520).sum() > 0  # what rounds to infinity
    assert (values[full > 65504] == 65504).all()
    with FeatureFile(tmp_path / "f.h5") as file:
        counted = {name: int(note.split()[0]) for name, note in file.notes.items()}
        for name in file:
            assert counted.get(name, 0) == (np.abs(full[file.rows(name)]) >= 65520).sum()


BRIGHT = """
import torch
from torch import nn

class Bright(nn.Module):
    # Not a number in the upper half of white images, infinite below.

    def forward(self, x):
        maps = nn.functional.avg_pool2d(x, 4)
        broken = x.amin((1, 2, 3), keepdim=True) > 2
        below = (torch.arange(maps.shape[2]) >= 8)[:, None]
        return maps.where(~broken, torch.where(below, torch.inf, torch.nan))
"""


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_features_that_are_no_numbers_fail_their_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, processes: int
) -> None:
    (tmp_path / "bright.py").write_text(BRIGHT)
    (tmp_path / "im").mkdir()
    for name, value in (("a.png", 0), ("b.png", 255), ("c.png", 128)):
        Image.new("RGB", (64, 64), (value, value, value)).save(tmp_path / "im" / name)
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({name: [[0, 0, 64, 20], [0, 44, 64, 64]] for name in ("a.png", "b.png", "c.png")}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.delitem(sys.modules, "bright", raising=False)
    options = {"backbone": "bright:Bright", "dtype": dtype, "processes": processes}
    summary = extract(tmp_path / "im", boxes, tmp_path / "f.h5", **options)
    assert (summary.done, summary.failed) == (2, 1)
    values = 2 * 3 * 49
    assert summary.failures == {"b.png": f"its features have {values} values not finite"}
    assert summary.nonfinite_values == values
    with pytest.raises(ImageError, match=r'"b.png": its features have 294 .*\n.*keep'):
        extract(tmp_path / "im", boxes, tmp_path / "stop.h5", on_error="stop", **options)
    kept = extract(tmp_path / "im", boxes, tmp_path / "f.h5", on_nonfinite="keep", **options)
    assert (kept.done, kept.nonfinite_values, kept.saturated_values) == (3, values, 0)
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file.notes == {"b.png": f"{values} values not finite"}
        assert file.errors == {}
        assert np.isnan(file["b.png"].features[0]).all()
        assert np.isposinf(file["b.png"].features[1]).all()
        assert np.isfinite(file["c.png"].features).all()
        assert check(file).problems == []


def test_should_stop_leaves_a_file_to_go_on_with(tmp_path: Path, photos: tuple[Path, Path]) -> None:
    asked = iter([False, False, True])
    summary = extract(
        *photos, tmp_path / "f.h5", config_name="quickstart", batch_size=1, should_stop=lambda: next(asked)
    )
    assert summary.interrupted
    assert 0 < summary.pending < 12
    with FeatureFile(tmp_path / "f.h5") as file:
        pending = [name for name, status in zip(file.names, file.status, strict=True) if status == 0]
        with pytest.raises(OutputError, match="pending"):
            file[pending[0]]
    assert extract(*photos, tmp_path / "f.h5", config_name="quickstart").finished


def test_progress_counts_every_image(tmp_path: Path, photos: tuple[Path, Path]) -> None:
    steps = []
    summary = extract(*photos, tmp_path / "f.h5", config_name="quickstart", on_progress=steps.append)
    assert [step.images for step in steps] == list(range(1, 13))
    assert steps[-1].boxes == steps[-1].total_boxes == summary.boxes == 31
    assert steps[-1].bytes == summary.bytes == 31 * 32 * 49 * 4


def test_dry_run_writes_nothing(tmp_path: Path, roialign: Run) -> None:
    done = roialign(
        "extract", SAMPLE_IMAGES, SAMPLE_BOXES, "-o", tmp_path / "f.h5", "-c", "quickstart", "--dry-run", "--json"
    )
    assert done.returncode == 0, done.stderr
    plan = json.loads(done.stdout)
    assert (plan["images"], plan["boxes"], plan["bytes"]) == (5, 19, 19 * 32 * 49 * 4)
    assert plan["free_bytes"] > 0
    assert list(tmp_path.iterdir()) == []


def test_sizes_stated_wrongly_do_not_matter(tmp_path: Path, photos: tuple[Path, Path]) -> None:
    """The width and height of a COCO file save opening every image, but the image itself decides."""
    folder, boxes = photos
    table = json.loads(boxes.read_text())

    def coco(width: int, height: int) -> Path:
        images = [{"id": i, "file_name": n, "width": width, "height": height} for i, n in enumerate(table)]
        annotations = [
            {"image_id": i, "bbox": [x1, y1, x2 - x1, y2 - y1]}
            for i, rows in enumerate(table.values())
            for x1, y1, x2, y2 in rows
        ]
        path = tmp_path / f"{width}.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations}))
        return path

    right, wrong = tmp_path / "right.h5", tmp_path / "wrong.h5"
    settings = {"backbone": "gabor", "sampling_ratio": 2}
    extract(folder, boxes, right, **settings)
    assert extract(folder, coco(96, 64), wrong, **settings).done == 12
    with FeatureFile(right) as expected, FeatureFile(wrong) as found:
        for name in expected.names:
            assert len(expected[name].boxes) == 0 or found[name].size == expected[name].size
            assert np.allclose(found[name].features, expected[name].features, atol=1e-4)
    summary = extract(folder, coco(96, 64), tmp_path / "clipped.h5", clip=True, **settings)
    assert (summary.done, summary.failed) == (12, 0)  # clipping reads the headers


def test_a_png_turned_by_a_late_exif_chunk_is_upright(tmp_path: Path) -> None:
    """The header states one size and the decoded image has another: the image decides."""
    folder = tmp_path / "images"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    plain = (tmp_path / "plain.png").read_bytes()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    end = plain.index(b"IEND") - 4
    late = len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    (folder / "turned.png").write_bytes(plain[:end] + late + plain[end:])
    Image.fromarray(np.rot90(pixels, -1)).save(folder / "upright.png")
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps({name: [[1, 2, 30, 50]] for name in ("turned.png", "upright.png")}))
    assert extract(folder, boxes, tmp_path / "f.h5", backbone="gabor").done == 2
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file["turned.png"].size == (60, 40)
        assert np.allclose(file["turned.png"].features, file["upright.png"].features, atol=1e-5)


class Scarce(torch.nn.Module):
    """Fail like a device without room for more than a number of images; the host's allocator has its own message."""

    def __init__(self, model: torch.nn.Module, most: int, error: Exception) -> None:
        super().__init__()
        self.model, self.most, self.error = model, most, error

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if len(images) > self.most:
            raise self.error
        return self.model(images)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("CUDA_ERROR_OUT_OF_MEMORY at the launch of a kernel"),
    ],
)
def test_out_of_memory_halves_the_batch(tmp_path: Path, photos: tuple[Path, Path], error: Exception) -> None:
    settings = config.load(None, {"backbone": "gabor", "resize": "64", "batch_size": 5})
    table = json.loads(photos[1].read_text())
    first = Image.open(photos[0] / next(iter(table)))
    (tmp_path / "im").mkdir()
    for i in range(5):
        first.transpose(Image.Transpose.FLIP_LEFT_RIGHT if i % 2 else Image.Transpose.ROTATE_180).save(
            tmp_path / "im" / f"{i}.png"
        )
    (tmp_path / "boxes.json").write_text(json.dumps({f"{i}.png": [[1, 2, 30 + i, 40]] for i in range(5)}))
    folder, boxes = tmp_path / "im", tmp_path / "boxes.json"
    extract(folder, boxes, tmp_path / "whole.h5", backbone="gabor", resize="64")
    for most, done in ((2, 5), (0, 0)):
        output = tmp_path / f"{most}.h5"
        images = open_images(folder)
        job = prepare_job(plan_run(images, boxes, output, settings), images, output, settings)
        job = replace(job, backbone=replace(job.backbone, model=Scarce(job.backbone.model, most, error)))
        with pytest.warns(RuntimeWarning, match="not enough memory for [25] images"):
            summary = run_job(job, overwrite=False)
        assert (summary.done, summary.failed, summary.finished) == (done, 5 - done, True)
        assert all("not enough memory" in reason for reason in summary.failures.values())
    for name, values in features(tmp_path / "whole.h5").items():
        assert np.allclose(features(tmp_path / "2.h5")[name], values, atol=1e-6)
    with FeatureFile(tmp_path / "2.h5") as file:
        assert not check(file).problems
