"""List the images of a folder, read their sizes from headers, and decode them to RGB.

Conventions: EXIF orientation is applied, because boxes refer to the upright image; alpha is composited over black; 16-bit
gray is scaled to 8 bits; animations and multi-page files are represented by their first picture.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, ImageCms, ImageOps

from roialign_cli.arrays import NAMES_PER_BLOCK, PackedNames
from roialign_cli.config import MAX_PIXELS
from roialign_cli.errors import InputError
from roialign_cli.inputs.file_versions import version_of
from roialign_cli.types import FileVersion

EXTENSIONS = frozenset({b"jpg", b"jpeg", b"png", b"webp", b"bmp", b"tif", b"tiff", b"gif", b"avif", b"mpo"})
IMAGE_MISSING = "expected an image file, found nothing there"
SWAPPED_ORIENTATIONS = frozenset({5, 6, 7, 8})  # EXIF orientations that swap height and width


class ImageError(InputError):
    """One image that cannot be used; it is recorded in the feature file, or ends the run with --on-error stop."""

    def with_name(self, name: str) -> ImageError:
        """Return the same error with the name of the image in its message."""
        return ImageError(self.reference, f'"{name}": {self.message}', self.hint)


def timeout_error(seconds: float) -> ImageError:
    """Return the error of an image that takes longer than --image-timeout to read."""
    return ImageError("image-timeout", f"expected to read it within {seconds:g} s, found that it takes longer")


def list_images(folder: Path) -> set[str]:
    """Return the names of the image files below a folder, relative to it and with forward slashes.

    Raises InputError if the folder does not exist.
    """
    return set(map(os.fsdecode, _walk(folder)))


def _walk(folder: Path) -> Iterator[bytes]:
    """Yield the names of the image files below a folder as bytes, which is faster for millions of files."""
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing there"
        raise InputError("images-folder", f"{folder}: expected a folder of images, found {found}")
    for parent, _, files in os.walk(os.fsencode(folder)):
        relative = Path(os.fsdecode(parent)).relative_to(folder).as_posix()
        prefix = b"" if relative == "." else os.fsencode(relative) + b"/"
        for file in files:
            stem, _, extension = file.rpartition(b".")
            if stem and extension.lower() in EXTENSIONS:
                yield prefix + file


class ImageListing:
    """The images of a folder, stored as hashes of their names: 10 million of them take 0.1 GB instead of 1 GB.

    A missing name is mistaken for an image, by a collision of hashes, about once in 10^12 listings; that image then
    fails when it is read.
    """

    def __init__(self, folder: Path) -> None:
        self._hashes = np.fromiter(map(hash, _walk(folder)), np.int64)
        self._hashes.sort()

    def __len__(self) -> int:
        return len(self._hashes)

    def has(self, names: PackedNames) -> npt.NDArray[np.bool_]:
        """Return a mask [M] of the names that are in the folder."""
        found = np.zeros(len(names), np.bool_)
        for begin in range(0, len(names) if len(self) else 0, NAMES_PER_BLOCK):
            wanted = np.fromiter(map(hash, names[begin : begin + NAMES_PER_BLOCK].encoded()), np.int64)
            place = np.minimum(np.searchsorted(self._hashes, wanted), len(self) - 1)
            found[begin : begin + len(wanted)] = self._hashes[place] == wanted
        return found


def read_size(path: Path) -> tuple[int, int]:
    """Return (height, width) of the upright image in pixels from its header. Raises ImageError."""
    with _open(path) as (image, _):
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


def decode_image(path: Path) -> DecodedImage:
    """Decode an image and identify the version of its file. Raises ImageError, also if the file changes meanwhile."""
    with _open(path) as (image, file):
        before = os.fstat(file.fileno())
        image.load()  # raises decoding errors here, because Pillow may not raise them again later
        pixels = np.ascontiguousarray(_to_rgb(ImageOps.exif_transpose(image)))
        version = version_of(file)
        if version is None or (version.size, version.modified) != (before.st_size, before.st_mtime_ns):
            raise ImageError("image-changed", "expected an unchanged file, found that it changed while it was read")
        return DecodedImage(pixels, version)


def decode(path: Path) -> npt.NDArray[np.uint8]:
    """Return the upright image as RGB [H, W, 3] uint8, or raise ImageError."""
    return decode_image(path).pixels


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
def _open(path: Path) -> Iterator[tuple[Image.Image, BufferedReader]]:
    """Open an image and its file, and turn every error of reading and decoding in this context into an ImageError."""
    if not path.is_file():
        exists = os.path.lexists(path)
        raise ImageError(
            "image-missing", "expected an image file, found something that is not a file" if exists else IMAGE_MISSING
        )
    try:
        with path.open("rb") as file, Image.open(file) as image:
            yield image, file
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
    return np.asarray(image.convert("RGB"))
