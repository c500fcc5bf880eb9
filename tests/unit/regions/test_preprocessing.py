"""Test the network input: torchvision's sizes and values where images grow, antialiasing where they shrink."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.functional import resize

from roialign_cli.backbones.base import Preprocessing
from roialign_cli.regions.preprocessing import prepare
from roialign_cli.regions.resize import resized


@given(height=st.integers(1, 300), width=st.integers(1, 300), short=st.integers(20, 90), extra=st.integers(0, 90))
def test_sizes_are_torchvisions(height: int, width: int, short: int, extra: int) -> None:
    found = resized((height, width), (short, short + extra))
    transform = GeneralizedRCNNTransform(short, short + extra, [0.0], [1.0])
    if min(found) > 1:  # torchvision cannot make an image of no rows; ours has at least one
        images, _ = transform([torch.zeros(3, height, width)])
        assert images.image_sizes == [found]


@pytest.mark.parametrize("size", [(48, 64), (37, 90), (120, 90)])
def test_values_are_torchvisions(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    transform = GeneralizedRCNNTransform(80, 133, list(mean), list(std))
    expected, _ = transform([torch.from_numpy(image).permute(2, 0, 1) / 255])
    found = prepare(
        [image, image], Preprocessing(mean, std, (80, 133), antialias=False, multiple=32), torch.device("cpu")
    )
    assert found.shape[-2:] == expected.tensors.shape[-2:]
    assert torch.allclose(found[1], expected.tensors[0], atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_shrinking_is_antialiased() -> None:
    image = np.random.default_rng(0).integers(0, 256, (200, 160, 3), np.uint8)
    found = prepare([image], Preprocessing((0, 0, 0), (1, 1, 1), (40, None)), torch.device("cpu"))[0]
    expected = resize(torch.from_numpy(image).permute(2, 0, 1), [50, 40], antialias=True) / 255
    assert (found - expected).abs().max() <= 1 / 255
