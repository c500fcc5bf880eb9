"""The command `roialign`: the only place that turns errors into messages and exit codes."""

from __future__ import annotations

import os
import sys
import warnings

from roialign_cli.cli import app
from roialign_cli.errors import RoialignError


def main() -> None:
    """Run the command line; `--debug`, anywhere on it, lets tracebacks through."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {message}", file=sys.stderr)  # noqa: T201
    try:
        app(arguments, prog_name="roialign")
    except RoialignError as error:
        if debug:
            raise
        _tell(error.reference, error.message, error.hint)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output went away
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        _tell("internal", f"{type(error).__name__}: {error}", "run again with --debug and report what it prints")
        sys.exit(1)


def _tell(reference: str, message: str, hint: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    console.print(Text(f"error[{reference}]", style="bold red") + Text(f": {message}", style="default"))
    if hint:
        console.print(Text("\nhint", style="bold cyan") + Text(f": {hint}", style="default"))


if __name__ == "__main__":
    main()
