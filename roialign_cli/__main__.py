"""The command `roialign`: the only place that turns errors and signals into messages and exit codes.

What takes long to import is imported by `main`, where a signal is met already.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from roialign_cli.system.signals import INTERRUPTED, Stop
from roialign_cli.system.stdout import Output, discard, take_stdout

if TYPE_CHECKING:
    from roialign_cli.errors import RoialignError


def main() -> None:
    """Run the command line; `--debug`, anywhere on it, lets tracebacks through."""
    stop, output = Stop(), take_stdout()
    code = _run(sys.argv[1:], stop, output)
    code = code if output is None else _end_output(output, code)
    if sys.stderr is not None:
        try:
            sys.stderr.flush()
        except OSError:  # nobody can be told
            discard(sys.stderr)
    sys.exit(code)


def _run(arguments: list[str], stop: Stop, output: Output | None) -> int:
    """Run a command and tell of its errors; returns the exit code."""
    import warnings

    from roialign_cli.cli import app
    from roialign_cli.errors import RoialignError

    debug = "--debug" in arguments
    warnings.showwarning = lambda message, *_, **__: _say(f"warning: {message}")
    try:
        try:
            stop.running = True
            app([argument for argument in arguments if argument != "--debug"], prog_name="roialign")
        finally:
            stop.running = False
    except BaseException as error:
        if stop.met or isinstance(error, KeyboardInterrupt):
            return INTERRUPTED  # whatever an import has made of it that was broken into
        if isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        if output is not None and error is output.failure:
            return 0  # told at the end
        if debug:
            raise
        if not isinstance(error, RoialignError):
            hint = "run again with --debug and report what it prints"
            error = RoialignError("internal", f"{type(error).__name__}: {error}", hint)
        _tell(error)
        return error.exit_code
    return 0


def _end_output(output: Output, code: int) -> int:
    """Hand over what is left for stdout; returns the exit code, another if stdout has failed."""
    with suppress(OSError):
        output.flush()
    failure = output.failure
    if failure is None:
        return code
    discard(output)
    if code == INTERRUPTED or isinstance(failure, BrokenPipeError):  # the reader of our output went away
        return code or 1
    from roialign_cli.errors import OutputError

    error = OutputError("output-write", f"stdout: cannot be written: {failure.strerror}")
    _tell(error)
    return error.exit_code


def _tell(error: RoialignError) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    with suppress(OSError):  # nobody can be told
        console.print(Text(f"error[{error.reference}]", style="bold red") + Text(f": {error.message}", style="default"))
        if error.hint:
            console.print(Text("\nhint", style="bold cyan") + Text(f": {error.hint}", style="default"))


def _say(text: str) -> None:
    with suppress(OSError):
        print(text, file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
