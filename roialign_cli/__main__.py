"""Run the command `roialign`: the only place that turns errors and signals into messages and exit codes.

`main` imports what takes long only after it handles signals.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from roialign_cli.errors import ExitCode
from roialign_cli.system.openmp import limit_spinning
from roialign_cli.system.signals import Stop
from roialign_cli.system.stdout import Output, discard, take_stdout

if TYPE_CHECKING:
    from roialign_cli.errors import RoialignError

ANYWHERE = ("--debug", "--quiet")  # options that may be given before or after the command


def main() -> None:
    """Run the command line; anywhere on it, `--debug` shows tracebacks, and `--quiet` hides all but errors and JSON."""
    stop, output = Stop(), take_stdout()
    limit_spinning()
    code = _run(sys.argv[1:], stop, output)
    code = code if output is None else _end_output(output, code)
    if sys.stderr is not None:
        try:
            sys.stderr.flush()
        except OSError:  # there is nobody to report it to
            discard(sys.stderr)
    if stop.met:  # perhaps during an import: an extension that is half loaded can crash Python as it shuts down
        os._exit(code)
    sys.exit(code)


def _run(arguments: list[str], stop: Stop, output: Output | None) -> int:
    """Run a command and print its error; return the exit code."""
    import warnings

    from roialign_cli.cli import app
    from roialign_cli.errors import RoialignError

    debug, quiet, as_json = (option in arguments for option in ("--debug", "--quiet", "--json"))
    warnings.showwarning = lambda message, *_, **__: None if quiet else _print_warning(f"warning: {message}")
    if quiet:
        from roialign_cli.cli import console

        console.stdout.quiet = console.stderr.quiet = True
    try:
        try:
            stop.running = True
            app([argument for argument in arguments if argument not in ANYWHERE], prog_name="roialign")
        finally:
            stop.running = False
    except BaseException as error:
        if stop.met or isinstance(error, KeyboardInterrupt):
            return ExitCode.INTERRUPTED  # also if an interrupted import raises another error
        if isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else int(error.code is not None)
        if output is not None and error is output.failure:
            return ExitCode.DONE  # `_end_output` reports it
        if debug:
            raise
        if not isinstance(error, RoialignError):
            hint = "run again with --debug and report what it prints"
            error = RoialignError("internal", f"{type(error).__name__}: {error}", hint)
        _print_error(error, as_json=as_json)
        return error.exit_code
    return ExitCode.DONE


def _end_output(output: Output, code: int) -> int:
    """Flush stdout; return the exit code, or another one if stdout has failed."""
    with suppress(OSError):
        output.flush()
    failure = output.failure
    if failure is None:
        return code
    discard(output)
    if code == ExitCode.INTERRUPTED or isinstance(failure, BrokenPipeError):  # the reader has gone
        return code or 1
    from roialign_cli.errors import OutputError

    error = OutputError("output-write", f"stdout: cannot be written: {failure.strerror}")
    _print_error(error)
    return error.exit_code


def _print_error(error: RoialignError, *, as_json: bool = False) -> None:
    """Print an error and its hint on stderr, with --json as a line of JSON."""
    if as_json:
        facts = {"reference": error.reference, "message": error.message, "hint": error.hint}
        _print_warning(json.dumps({"error": {**facts, "exit_code": int(error.exit_code)}}))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    with suppress(OSError):  # there is nobody to report it to
        console.print(Text(f"error[{error.reference}]", style="bold red") + Text(f": {error.message}", style="default"))
        if error.hint:
            console.print(Text("\nhint", style="bold cyan") + Text(f": {error.hint}", style="default"))


def _print_warning(text: str) -> None:
    """Print a line on stderr."""
    with suppress(OSError):
        print(text, file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main()
