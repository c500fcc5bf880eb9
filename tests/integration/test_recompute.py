"""Test `verify --recompute`: the same bits here and now, and whatever has changed since is found and named."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from helpers.commands import Run
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from PIL import Image

from roialign_cli import FeatureFile, extract
from roialign_cli.errors import OutputError
from roialign_cli.extraction.recompute import recompute
from roialign_cli.inputs.images import open_images

QUICK = {"config_name": "quickstart", "output_size": 2}


def test_the_same_rows_come_out_to_the_bit(tmp_path: Path, roialign: Run) -> None:
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", **QUICK)
    command = ("verify", tmp_path / "f.h5", "--images", SAMPLE_IMAGES, "--recompute")
    done = roialign(*command, 20)
    assert done.returncode == 0, done.stderr
    assert "5 images computed again, 5 the same to the bit" in done.stdout
    assert "every checksum matches" in done.stdout
    facts = json.loads(roialign(*command, 2, "--seed", 3, "--json").stdout)["recomputed"]
    assert len(facts["images"]) == 2
    assert facts["changed"] == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_kind_of_region_and_setting(dtype: str, tmp_path: Path) -> None:
    regions = {"cat.jpg": {"rotated": [[100, 90, 60, 40, 20]], "points": [[[5, 5], [90, 80]]]}}
    (tmp_path / "r.json").write_text(json.dumps(regions))
    for region in ("rotated", "points"):
        given = {"overwrite": True, "region": region, "dtype": dtype}
        extract(SAMPLE_IMAGES, tmp_path / "r.json", tmp_path / "f.h5", **given, **QUICK)
        with FeatureFile(tmp_path / "f.h5") as file:
            found = recompute(file, open_images(SAMPLE_IMAGES), 5)
        assert [one.difference for one in found.images] == [0]
    more = {"max_boxes": 2, "context": "1,2", "reduce": "max", "dtype": dtype}
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "g.h5", **QUICK, **more)
    with FeatureFile(tmp_path / "g.h5") as file:
        found = recompute(file, open_images(SAMPLE_IMAGES), 5)
    assert [one.difference for one in found.images] == [0] * 5
    assert [one.boxes for one in found.images] == [2] * 5


def test_an_image_that_was_saved_again(tmp_path: Path, roialign: Run) -> None:
    shutil.copytree(SAMPLE_IMAGES, tmp_path / "im")
    extract(tmp_path / "im", SAMPLE_BOXES, tmp_path / "f.h5", **QUICK)
    with Image.open(tmp_path / "im" / "coffee.jpg") as picture:
        picture.save(tmp_path / "im" / "coffee.jpg", quality=50)
    done = roialign("verify", tmp_path / "f.h5", "--images", tmp_path / "im", "--recompute", 20)
    assert done.returncode == 6
    assert "the image file has changed" in done.stdout
    assert "5 images computed again, 4 the same to the bit" in done.stdout
    assert "error[recompute-differs]" in done.stderr
    assert '1 of 5 images differ, "coffee.jpg" by' in done.stderr


def test_values_that_are_not_finite_differ_from_those_that_are(tmp_path: Path, roialign: Run) -> None:
    (tmp_path / "two_rows.py").write_text(BROKEN)
    given = {"backbone": "two_rows:Broken", "on_nonfinite": "keep"}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", **given)
        with FeatureFile(tmp_path / "f.h5") as file:
            assert np.isnan(file.features()).any()
            assert {one.difference for one in recompute(file, open_images(SAMPLE_IMAGES), 5).images} == {0}
        for number, place in ((np.nan, 0), (np.inf, 0), (-np.inf, 5)):
            with h5py.File(tmp_path / "f.h5", "r+") as raw:
                raw["features"][place, 0, 3, 3] = number
            with FeatureFile(tmp_path / "f.h5") as file:
                differing = recompute(file, open_images(SAMPLE_IMAGES), 5).beyond
            assert [one.difference for one in differing] == [1] * (1 + (place > 0))


BROKEN = """
from torch import nn

class Broken(nn.Module):
    def forward(self, x):
        maps = nn.functional.avg_pool2d(x, 8)
        maps[:, :, 10:12] = float("nan")
        maps[:, :, 2:4] = float("inf")
        return maps
"""


@pytest.mark.slow
def test_a_flipped_weight_is_found_and_named(tmp_path: Path) -> None:
    import torchvision

    torch.manual_seed(0)
    state = torchvision.models.squeezenet1_1(weights=None).state_dict()
    torch.save(state, tmp_path / "w.pth")
    given = {"backbone": "squeezenet1_1", "weights": str(tmp_path / "w.pth"), "resize": "64", "output_size": 1}
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", **given)
    with FeatureFile(tmp_path / "f.h5") as file:
        assert recompute(file, open_images(SAMPLE_IMAGES), 2).beyond == []
        state["features.0.weight"][0] *= -1
        torch.save(state, tmp_path / "w.pth")
        found = recompute(file, open_images(SAMPLE_IMAGES), 2)
    assert len(found.beyond) == 2
    assert found.changed == ["the weights"]


@pytest.mark.skipif(find_spec("torchcodec") is None, reason="needs torchcodec")
def test_another_decoder_is_named(tmp_path: Path) -> None:
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", **QUICK)
    with FeatureFile(tmp_path / "f.h5") as file:
        found = recompute(file, open_images(SAMPLE_IMAGES), 5, others={"decoder": "torchcodec"})
    assert "decoder was pillow, is torchcodec" in found.changed


def test_another_processor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "ABACUS")
        extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", **QUICK)
    with FeatureFile(tmp_path / "f.h5") as file:
        (changed,) = recompute(file, open_images(SAMPLE_IMAGES), 1).changed
    assert "ABACUS, is " in changed
    assert "processor" in changed


def test_missing_images_masks_and_usage(tmp_path: Path, roialign: Run) -> None:
    shutil.copytree(SAMPLE_IMAGES, tmp_path / "im")
    extract(tmp_path / "im", SAMPLE_BOXES, tmp_path / "f.h5", **QUICK)
    (tmp_path / "im" / "cat.jpg").unlink()
    with FeatureFile(tmp_path / "f.h5") as file:
        found = recompute(file, open_images(tmp_path / "im"), 5)
    assert "cat.jpg" in found.failures
    done = roialign("verify", tmp_path / "f.h5", "--images", tmp_path / "im", "--recompute", 5)
    assert done.returncode == 7
    assert "error[recompute-failed]" in done.stderr
    assert "found 1 of 5 images that cannot be" in done.stderr
    assert len(found.images) == 4
    (tmp_path / "m.json").write_text(json.dumps({"cat.jpg": {"polygons": [[[1, 1, 50, 1, 50, 40]]]}}))
    extract(SAMPLE_IMAGES, tmp_path / "m.json", tmp_path / "m.h5", region="mask", **QUICK)
    with (
        FeatureFile(tmp_path / "m.h5") as file,
        pytest.raises(OutputError, match="found masks, which files do not hold"),
    ):
        recompute(file, open_images(SAMPLE_IMAGES), 1)
    for arguments in (("--recompute", 3), ("--images", SAMPLE_IMAGES)):
        done = roialign("verify", tmp_path / "f.h5", *arguments)
        assert done.returncode == 2
        assert "expected --recompute N and --images together" in done.stderr
