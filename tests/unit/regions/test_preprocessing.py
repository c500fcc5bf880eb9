"""Test the network input: torchvision's sizes and values where images grow, antialiasing where they shrink."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate, pad
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.functional import resize

from roialign_cli.backbones.base import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
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


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(("size", "multiple"), [((37, 91), 1), ((37, 91), 32), ((64, 96), 32), ((1, 1), 1)])
@pytest.mark.parametrize("resize", [None, (29, None)])
def test_bits_are_those_of_the_plain_formula(
    count: int, size: tuple[int, int], multiple: int, resize: tuple[int, None] | None
) -> None:
    """Read-only images, as Pillow gives them, and others, with all values that a pixel can have."""
    values = np.random.default_rng(0).integers(0, 256, (count, *size, 3), np.uint8)
    values.reshape(-1)[:256] = np.arange(min(256, values.size))
    images = list(values)
    images[0].setflags(write=False)
    pixels = torch.from_numpy(values).permute(0, 3, 1, 2).float() / 255
    target = resized(size, resize)
    if target != size:
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        pixels = interpolate(pixels, target, mode="bilinear", antialias=True)
    expected = (pixels - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    expected = pad(expected, (0, -target[1] % multiple, 0, -target[0] % multiple))
    found = prepare(images, Preprocessing(IMAGENET_MEAN, IMAGENET_STD, resize, multiple=multiple), torch.device("cpu"))
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))
    assert found.is_contiguous(memory_format=torch.channels_last)
