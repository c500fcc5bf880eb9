"""The error tree: every failure that a user can meet, with its exit code. Imports nothing of this package."""

from __future__ import annotations

import reprlib
from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of the command line; 1 is left to Python, which uses it for uncaught exceptions."""

    DONE = 0
    USAGE = 2  # wrong usage or configuration
    INPUT = 3  # images, boxes or tensors that cannot be used
    BACKBONE = 4  # backbone, layer or weights
    KERNEL = 5  # RoI Align kernel
    OUTPUT = 6  # feature file
    IMAGES_FAILED = 7  # the run is finished, but some images failed
    INTERRUPTED = 130  # 128 + SIGINT, the convention of shells; the run can be resumed


MAX_MESSAGE = 1000  # characters; a longer message is cut in its middle
_short = reprlib.Repr()
_short.maxstring = _short.maxother = 80


def quoted(value: object) -> str:
    """Return what was found as an error quotes it: `repr`, cut to 80 characters."""
    return _short.repr(value)


class RoialignError(Exception):
    """A failure shown to the user as `error[reference]: where: expected ..., found ...`, followed by one hint.

    `reference` is a short stable name to search for; `message` says where, what was expected and what was found.
    """

    exit_code: int = 1

    def __init__(self, reference: str, message: str, hint: str = "") -> None:
        if len(message) > MAX_MESSAGE:  # a backstop: what was found in a file may be of any length
            message = f"{message[: MAX_MESSAGE // 2]} ... {message[-MAX_MESSAGE // 2 :]}"
        super().__init__(f"{message}\nhint: {hint}" if hint else message)
        self.reference = reference
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.reference, self.message, self.hint)  # errors are pickled between processes


class ConfigError(RoialignError):
    """Wrong usage or configuration."""

    exit_code = ExitCode.USAGE


class InputError(RoialignError):
    """Images, boxes or tensors that cannot be used as they are."""

    exit_code = ExitCode.INPUT


class OperatorInputError(InputError, ValueError):
    """Invalid arguments of `roi_align`; the message names the offending row."""


class BackboneError(RoialignError):
    """An unknown backbone or layer, or weights that are unavailable or do not fit the model."""

    exit_code = ExitCode.BACKBONE


class KernelError(RoialignError):
    """A RoI Align kernel that cannot run here."""

    exit_code = ExitCode.KERNEL


class OutputError(RoialignError):
    """A feature file that cannot be written, read or trusted."""

    exit_code = ExitCode.OUTPUT


class ImagesFailedError(RoialignError):
    """The run is finished, but some images failed; the feature file names them and their errors."""

    exit_code = ExitCode.IMAGES_FAILED
