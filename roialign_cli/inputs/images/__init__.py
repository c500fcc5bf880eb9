"""Find images, read their sizes, and decode them."""

from roialign_cli.inputs.images.decode import DecodedImage, decode, decode_image, limit_pixels, read_size
from roialign_cli.inputs.images.errors import IMAGE_MISSING, ImageError, timeout_error
from roialign_cli.inputs.images.file import ImageFile
from roialign_cli.inputs.images.find import open_images
from roialign_cli.inputs.images.image_set import ImageSet

__all__ = [
    "IMAGE_MISSING", "DecodedImage", "ImageError", "ImageFile", "ImageSet", "decode", "decode_image", "limit_pixels",
    "open_images", "read_size", "timeout_error",
]  # fmt: skip
