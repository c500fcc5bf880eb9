"""The error tree: every failure a user can meet, with its exit code. Imports only the standard library."""

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of the command line."""

    DONE = 0
    USAGE = 2
    INPUT = 3
    BACKBONE = 4
    KERNEL = 5
    OUTPUT = 6
    IMAGES_FAILED = 7
    INTERRUPTED = 130


class RoialignError(Exception):
    """A failure told to the user as `error[reference]: where: what was expected, what was found`, then one hint.

    `reference` is a short stable name to search for; `message` says where, what was expected and what was found.
    """

    exit_code: int = 1

    def __init__(self, reference: str, message: str, hint: str = "") -> None:
        super().__init__(f"{message}\nhint: {hint}" if hint else message)
        self.reference = reference
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type, tuple[str, str, str]]:
        return type(self), (self.reference, self.message, self.hint)  # errors travel between processes


class ConfigError(RoialignError):
    """Wrong usage or configuration."""

    exit_code = ExitCode.USAGE


class InputError(RoialignError):
    """Images, boxes or tensors that cannot be used as they are."""

    exit_code = ExitCode.INPUT


class OperatorInputError(InputError, ValueError):
    """Arguments of `roi_align` that have no meaning; names the offending row."""


class BackboneError(RoialignError):
    """An unknown backbone or layer, or weights that cannot be had or do not fit."""

    exit_code = ExitCode.BACKBONE


class KernelError(RoialignError):
    """A RoI Align kernel that cannot run here."""

    exit_code = ExitCode.KERNEL


class OutputError(RoialignError):
    """A feature file that cannot be written, read or trusted."""

    exit_code = ExitCode.OUTPUT


class ImagesFailedError(RoialignError):
    """The run is finished, but some images failed; the file's ledger names them."""

    exit_code = ExitCode.IMAGES_FAILED
