"""Test runs whose bins are moved by a trained head: against the two steps by hand, and heads that do not fit."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import Run
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from torch import nn

from roialign_cli import FeatureFile, deform_roi_align, extract, roi_align
from roialign_cli.backbones import load_backbone
from roialign_cli.config import load
from roialign_cli.errors import BackboneError, ConfigError

CHANNELS, SIZE = 32, (3, 2)
BINS = math.prod(SIZE)


def head(*, modulated: bool, hidden: int = 24) -> nn.ModuleDict:
    """Return a head as mmcv's modulated pack has it, with random weights that move bins by some tenths of the box."""
    torch.manual_seed(0)
    parts = {
        "offset_fc": nn.Sequential(
            nn.Linear(CHANNELS * BINS, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 2 * BINS),
        )
    }
    nn.init.normal_(parts["offset_fc"][4].bias, std=3)
    if modulated:
        parts["mask_fc"] = nn.Sequential(
            nn.Linear(CHANNELS * BINS, hidden), nn.ReLU(), nn.Linear(hidden, BINS), nn.Sigmoid()
        )
    return nn.ModuleDict(parts)


@pytest.mark.parametrize("modulated", [False, True])
def test_rows_equal_the_two_steps_by_hand(modulated: bool, tmp_path: Path) -> None:
    trained = head(modulated=modulated)
    torch.save(trained.state_dict(), tmp_path / "head.pth")
    settings = {"output_size": "3x2", "resize": "none"}
    given = {**settings, "deform": str(tmp_path / "head.pth"), "config_name": "quickstart"}
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "f.h5", **given)
    with FeatureFile(tmp_path / "f.h5") as file:
        found = file["cat.jpg"]
        assert len(file.attributes["deform_sha256"]) == 64
    backbone = load_backbone(load("quickstart", settings))
    from PIL import Image

    pixels = torch.from_numpy(np.array(Image.open(SAMPLE_IMAGES / "cat.jpg").convert("RGB"))).permute(2, 0, 1)[None]
    with torch.inference_mode():
        ((maps,),) = backbone(pixels.float() / 255, "float32")
        assert maps is not None
        rois = torch.cat([torch.zeros(len(found.boxes), 1), torch.from_numpy(found.boxes)], dim=1)
        plain = roi_align(maps, rois, SIZE, spatial_scale=0.25)
        offsets = trained["offset_fc"](plain.flatten(1)).view(-1, 2, *SIZE)
        factors = trained["mask_fc"](plain.flatten(1)).view(-1, *SIZE) if modulated else None
        expected = deform_roi_align(maps, rois, offsets, SIZE, modulation=factors, spatial_scale=0.25)
    assert (expected - plain).abs().max() > 0.05
    assert np.abs(found.features - expected.numpy()).max() <= 1e-5 * expected.abs().max()


def test_a_changed_head_is_another_run(tmp_path: Path, roialign: Run) -> None:
    torch.save(head(modulated=False).state_dict(), tmp_path / "head.pth")
    command = (
        "extract",
        SAMPLE_IMAGES,
        SAMPLE_BOXES,
        "-o",
        tmp_path / "f.h5",
        "-c",
        "quickstart",
        "--output-size",
        "3x2",
    )
    command = (*command, "--deform", tmp_path / "head.pth")
    assert roialign(*command).returncode == 0
    assert "was finished already" in roialign(*command).stdout
    torch.save(head(modulated=True).state_dict(), tmp_path / "head.pth")
    changed = roialign(*command)
    assert changed.returncode == 6
    assert "the head that moves bins has changed since" in changed.stderr


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"fc.weight": torch.ones(2, 2)}, r"expected tensors offset_fc.\{0,2,4\}.\{weight,bias\}, found fc.weight"),
        (head(modulated=False)["offset_fc"].state_dict(prefix="offset_fc.") | {"more": torch.ones(1)}, "more"),
        (
            {"offset_fc.0.weight": torch.ones(8, 7 * 7 * 32)},
            "a head for 32 channels of 3x2 bins, 192 inputs, found 1568",
        ),
        (
            {**head(modulated=False).state_dict(), "offset_fc.4.bias": torch.full((12,), math.nan)},
            "expected finite numbers",
        ),
        (
            {**head(modulated=False).state_dict(), "offset_fc.4.bias": torch.ones(11)},
            r"4.bias: expected shape \[12\]",
        ),
    ],
)
def test_heads_that_do_not_fit(state: dict[str, torch.Tensor], message: str, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "head.pth")
    with pytest.raises(BackboneError, match=message):
        load_backbone(load("quickstart", {"output_size": "3x2", "deform": str(tmp_path / "head.pth")}))


def test_no_head_and_settings_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="expected a weights file"):
        load_backbone(load("quickstart", {"deform": str(tmp_path / "none.pth")}))
    for settings, message in (
        ({"region": "rotated"}, "region: expected box with deform, found 'rotated'"),
        ({"mode": "max"}, "mode: expected avg or exact with deform, found 'max'"),
        ({"levels": "soft"}, "levels: expected assign with deform"),
        ({"output_size": "3,7"}, "output_sizes: expected none with deform"),
    ):
        with pytest.raises(ConfigError, match=message):
            load("quickstart", {"deform": "head.pth", **settings})
