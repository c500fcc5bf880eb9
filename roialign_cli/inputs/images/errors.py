"""The error of an image that cannot be used."""

from __future__ import annotations

from roialign_cli.errors import InputError

IMAGE_MISSING = "expected an image file, found nothing there"


class ImageError(InputError):
    """One image that cannot be used; it is recorded in the feature file, or ends the run with --on-error stop."""

    def with_name(self, name: str) -> ImageError:
        """Return the same error with the name of the image in its message."""
        return ImageError(self.reference, f'"{name}": {self.message}', self.hint)


def timeout_error(seconds: float) -> ImageError:
    """Return the error of an image that takes longer than --image-timeout to read."""
    return ImageError("image-timeout", f"expected to read it within {seconds:g} s, found that it takes longer")
