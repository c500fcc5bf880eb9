"""Read the sizes of images from their headers, and decode them to RGB.

Conventions: EXIF orientation is applied, because boxes refer to the upright image; alpha is composited over black; 16-bit
gray is scaled to 8 bits; animations and multi-page files are represented by their first picture.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, ImageOps

from roialign_cli.config import MAX_PIXELS
from roialign_cli.inputs.images.errors import ImageError
from roialign_cli.inputs.images.file import ImageFile, digest
from roialign_cli.types import FileVersion

TORCHCODEC_FORMATS = frozenset({"JPEG", "PNG", "WEBP", "AVIF"})
BUFFERED_BYTES = 64 << 20  # files up to this size are read at once; larger ones as Pillow asks for their parts
SWAPPED_ORIENTATIONS = frozenset({5, 6, 7, 8})  # EXIF orientations that swap height and width


def read_size(file: ImageFile) -> tuple[int, int]:
    """Return (height, width) of the upright image in pixels from its header. Raises ImageError."""
    with _open(file) as (image, _, _):
        width, height = image.size
        # Pillow applies the orientation of TIFF headers itself, and decodes a whole PNG to look for a late EXIF chunk.
        if image.format not in ("TIFF", "PNG") or (image.format == "PNG" and "exif" in image.info):
            orientation = image.getexif().get(ExifTags.Base.Orientation)
            if orientation in SWAPPED_ORIENTATIONS:
                return width, height
        return height, width


@dataclass(frozen=True)
class DecodedImage:
    """An upright image as RGB [H, W, 3] uint8, and the version of the file that it was read from."""

    pixels: npt.NDArray[np.uint8]
    version: FileVersion


def decode_image(file: ImageFile, decoder: str = "pillow") -> DecodedImage:
    """Decode an image and identify the version of its file. Raises ImageError, also if the file changes meanwhile.

    `decoder` is pillow or torchcodec; the latter leaves to Pillow what is not a plain color or gray image of its formats.
    """
    with _open(file, BUFFERED_BYTES) as (image, opened, before):
        if decoder == "torchcodec" and _is_plain(image):
            pixels = _decode_with_torchcodec(opened)
        else:
            image.load()  # raises decoding errors here, because Pillow may not raise them again later
            ImageOps.exif_transpose(image, in_place=True)  # otherwise it copies upright images, too
            pixels = np.ascontiguousarray(_to_rgb(image))
        version = FileVersion(*before, digest(opened))
        if file.state() != before:
            raise ImageError("image-changed", "expected an unchanged file, found that it changed while it was read")
        return DecodedImage(pixels, version)


def decode(path: Path) -> npt.NDArray[np.uint8]:
    """Return the upright image in a file as RGB [H, W, 3] uint8, or raise ImageError."""
    return decode_image(ImageFile(path)).pixels


@contextmanager
def limit_pixels(max_pixels: int = MAX_PIXELS) -> Iterator[None]:
    """Refuse images of more pixels before they are decoded, and silence Pillow's warnings; 0: no limit.

    The warnings are not needed, because problems that matter are raised as ImageError.
    """
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = max_pixels // 2 or None  # Pillow warns at this many and refuses at twice as many
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _open(source: ImageFile, buffered: int = 0) -> Iterator[tuple[Image.Image, BinaryIO, tuple[int, int]]]:
    """Open an image; yield it, its file, and the state of the file before.

    A file of up to `buffered` bytes is read into memory at once. Pillow reads a JPEG in forty parts, and after each of them a
    thread that decodes would wait for the others. Every error of reading and decoding in this context becomes an ImageError.
    """
    try:
        before = source.state() if source.exists() else (0, 0)  # `open` reports a file that is missing
        with source.open() as file:
            content = io.BytesIO(file.read(buffered)) if before[0] <= buffered else file
            with Image.open(content) as image:
                yield image, content, before
    except ImageError:
        raise
    except Image.DecompressionBombError as error:
        text = str(error).partition(", could be")[0]
        raise ImageError("image-too-large", f"{text}; --max-pixels allows more") from None
    except MemoryError:
        raise ImageError("image-memory", "not enough memory to decode it") from None
    except Exception as error:  # Pillow's plugins raise nearly anything on hostile input
        text = str(error).partition(" <_io.")[0] or type(error).__name__  # cut Pillow's description of the file object
        raise ImageError("image-unreadable", f"cannot be decoded: {text}") from None


def _is_plain(image: Image.Image) -> bool:
    """Return whether torchcodec reads an image as Pillow does: one picture of 8 bits per channel, without transparency.

    Both turn JPEG upright by its EXIF orientation; images of other formats that are not upright are left to Pillow.
    """
    if image.format not in TORCHCODEC_FORMATS or image.mode not in ("RGB", "L") or "transparency" in image.info:
        return False
    if image.format == "PNG" and "exif" not in image.info:  # else Pillow would decode all of it to look for EXIF
        return bool(getattr(image, "n_frames", 1) == 1) and not any(
            "exif" in key.lower() for key in map(str, image.info)
        )
    upright = image.format == "JPEG" or image.getexif().get(ExifTags.Base.Orientation, 1) == 1
    return upright and bool(getattr(image, "n_frames", 1) == 1)


def _decode_with_torchcodec(file: BinaryIO) -> npt.NDArray[np.uint8]:
    """Return the pixels [H, W, 3] of an open file. Raises ImageError."""
    import torch

    decoders = importlib.import_module("torchcodec.decoders")  # mypy finds no names in it
    file.seek(0)
    content = torch.frombuffer(bytearray(file.read()), dtype=torch.uint8)
    try:
        pixels = decoders.decode_image(content, mode=decoders.ImageReadMode.RGB)
    except RuntimeError as error:
        reason = str(error).strip().rpartition(", ")[2]  # after the name of the place in its source
        raise ImageError("image-unreadable", f"cannot be decoded: {reason}") from None
    if pixels.dtype != torch.uint8 or pixels.dim() != 3:
        raise ImageError(
            "image-unreadable", f"cannot be decoded by torchcodec: found {list(pixels.shape)} {pixels.dtype}"
        )
    found: npt.NDArray[np.uint8] = pixels.permute(1, 2, 0).contiguous().numpy()
    return found


def _to_rgb(image: Image.Image) -> npt.NDArray[np.uint8]:
    if image.mode == "F":
        raise ImageError("image-mode", "expected 8 or 16 bits per channel, found floating-point pixels")
    if image.mode.startswith("I"):
        gray = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        transparent = image.info.get("transparency")
        gray[gray == (transparent if isinstance(transparent, int) else -1)] = 0
        gray_8bit = np.rint(gray / 257).astype(np.uint8)
        return np.repeat(gray_8bit[:, :, None], 3, axis=2)
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
        return np.asarray(converted)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        layer = image.convert("RGBA")
        black = Image.new("RGB", layer.size)
        black.paste(layer, mask=layer.getchannel("A"))
        return np.asarray(black)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))
