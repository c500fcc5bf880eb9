"""Test decoding to RGB: modes, orientation, transparency, and damaged files."""

from __future__ import annotations

import hashlib
import importlib
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from roialign_cli.errors import InputError
from roialign_cli.inputs.images import ImageError, ImageFile, decode, decode_image, open_images, read_size

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)


def saved(tmp_path: Path, image: Image.Image, name: str = "x.png", **options: object) -> Path:
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.tiff", "x.webp"])
def test_lossless_rgb_is_as_it_is(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, Image.fromarray(RGB), name, **({"lossless": True} if name.endswith("webp") else {}))
    assert np.array_equal(decode(path), RGB)
    assert read_size(ImageFile(path)) == (6, 9)


@pytest.mark.parametrize("name", ["x.png", "x.bmp", "x.tiff", "x.webp", "x.jpg"])
def test_large_files_are_read_in_parts_and_give_the_same(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = ImageFile(saved(tmp_path, Image.fromarray(RGB), name))
    whole = decode_image(file)
    assert whole.version.sha256 == hashlib.sha256(file.path.read_bytes()).digest()
    decoding = importlib.import_module("roialign_cli.inputs.images.decode")  # a function has the same name
    monkeypatch.setattr(decoding, "BUFFERED_BYTES", 10)
    monkeypatch.setattr(decoding, "io", None)  # nothing is read into memory
    parts = decode_image(file)
    assert np.array_equal(parts.pixels, whole.pixels)
    assert parts.version == whole.version


def test_gray_palette_and_bilevel_become_rgb(tmp_path: Path) -> None:
    gray = RGB[:, :, 0]
    assert np.array_equal(decode(saved(tmp_path, Image.fromarray(gray))), np.stack([gray] * 3, 2))
    palette = Image.fromarray(RGB).quantize(4)
    assert np.array_equal(decode(saved(tmp_path, palette)), np.asarray(palette.convert("RGB")))
    bilevel = Image.fromarray(gray > 128)
    assert set(np.unique(decode(saved(tmp_path, bilevel)))) <= {0, 255}


def test_sixteen_bit_gray_keeps_its_range(tmp_path: Path) -> None:
    gray = np.array([[0, 257, 32896, 65535]], np.uint16)
    for name in ("x.png", "x.tiff"):
        path = saved(tmp_path, Image.fromarray(gray), name)
        assert decode(path)[0, :, 1].tolist() == [0, 1, 128, 255]


def test_transparency_is_laid_over_black(tmp_path: Path) -> None:
    alpha = np.full((6, 9, 1), 128, np.uint8)
    alpha[0] = 0
    path = saved(tmp_path, Image.fromarray(np.concatenate([RGB, alpha], 2)))
    expected = np.rint(RGB * (alpha / 255.0))
    assert np.abs(decode(path) - expected).max() <= 1
    assert decode(path)[0].max() == 0
    palette = Image.fromarray(RGB).quantize(4)
    palette.info["transparency"] = 0
    clear = np.asarray(palette) == 0
    assert clear.any()
    assert decode(saved(tmp_path, palette, transparency=0))[clear].max() == 0


def test_cmyk(tmp_path: Path) -> None:
    path = saved(tmp_path, Image.fromarray(RGB).convert("CMYK"), "x.tiff")
    assert np.abs(decode(path).astype(int) - RGB).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp", "x.tiff"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, name: str) -> None:
    flat = np.zeros((24, 40, 3), np.uint8)
    flat[:8, :8] = 255  # the corner that says which way is up
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path, Image.fromarray(flat), name, exif=exif)
    upright = decode(path)
    turned = orientation >= 5
    assert upright.shape == ((40, 24, 3) if turned else (24, 40, 3))
    assert read_size(ImageFile(path)) == upright.shape[:2]
    corner = {1: (0, 0), 2: (0, 1), 3: (1, 1), 4: (1, 0), 5: (0, 0), 6: (0, 1), 7: (1, 1), 8: (1, 0)}[orientation]
    bright = [(y, x) for y in (0, 1) for x in (0, 1) if upright[y * -1, x * -1].mean() > 128]
    assert bright == [corner]


def test_the_first_picture_of_an_animation_counts(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 4), color) for color in ("red", "blue")]
    path = saved(tmp_path, frames[0], "x.gif", save_all=True, append_images=frames[1:])
    assert decode(path)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_thin_images(tmp_path: Path, size: tuple[int, int]) -> None:
    assert decode(saved(tmp_path, Image.new("RGB", size))).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.webp", "x.gif", "x.bmp", "x.tiff"])
def test_a_truncated_file_is_an_image_error(tmp_path: Path, name: str) -> None:
    noise = Image.fromarray(np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8))
    whole = saved(tmp_path, noise, name).read_bytes()
    for share in (0, 0.01, 0.1, 0.5, 0.9):
        path = tmp_path / f"cut{name}"
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(ImageError):
            decode(path)


def test_what_is_no_image_is_an_image_error(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "folder.jpg").mkdir()
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "float.tiff")
    bomb = bytearray(saved(tmp_path, Image.new("1", (8, 8)), "bomb.bmp").read_bytes())
    bomb[18:26] = (60000).to_bytes(4, "little") * 2
    (tmp_path / "bomb.bmp").write_bytes(bomb)
    found = {}
    for name in ("text.jpg", "folder.jpg", "float.tiff", "bomb.bmp", "nowhere.png"):
        with pytest.raises(ImageError) as error:
            decode(tmp_path / name)
        found[name] = error.value.reference
    assert found == {
        "text.jpg": "image-unreadable", "folder.jpg": "image-missing", "float.tiff": "image-mode",
        "bomb.bmp": "image-too-large", "nowhere.png": "image-missing",
    }  # fmt: skip


def test_images_are_listed_with_their_subfolders(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/deep/b.PNG", "sub/c.txt", "d.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert set(open_images(tmp_path).names()) == {"a.jpg", "sub/deep/b.PNG", "d.webp"}
    with pytest.raises(InputError, match="found nothing there"):
        open_images(tmp_path / "nothing")


def test_torchcodec_agrees_with_pillow(tmp_path: Path) -> None:
    """Plain images differ by a rounding at most; all others are left to Pillow."""
    pytest.importorskip("torchcodec")
    pixels = np.random.default_rng(0).integers(0, 256, (24, 31, 3), np.uint8)
    plain = Image.fromarray(pixels).resize((310, 240))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    kinds = {
        "a.jpg": (plain, {}), "rotated.jpg": (plain, {"exif": exif}), "gray.jpg": (plain.convert("L"), {}),
        "cmyk.jpg": (plain.convert("CMYK"), {}), "a.png": (plain, {}), "rotated.png": (plain, {"exif": exif}),
        "alpha.png": (plain.convert("RGBA"), {}), "palette.png": (plain.convert("P"), {}), "a.webp": (plain, {}),
        "rotated.webp": (plain, {"exif": exif}), "a.avif": (plain, {}), "a.bmp": (plain, {}), "a.gif": (plain, {}),
        "animated.webp": (plain, {"save_all": True, "append_images": [plain.rotate(90)]}),
    }  # fmt: skip
    for name, (image, options) in kinds.items():
        image.save(tmp_path / name, **options)
        file = ImageFile(tmp_path / name)
        ours, theirs = (decode_image(file, decoder).pixels.astype(int) for decoder in ("torchcodec", "pillow"))
        assert ours.shape == theirs.shape, name
        assert np.abs(ours - theirs).max() <= 2, name


def test_torchcodec_refuses_truncated_images(tmp_path: Path) -> None:
    pytest.importorskip("torchcodec")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (99, 99, 3), np.uint8))
    for name in ("a.jpg", "a.png", "a.webp"):
        image.save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(ImageError, match="cannot be decoded") as error:
            decode_image(ImageFile(tmp_path / name), "torchcodec")
        assert ".cpp" not in error.value.message
