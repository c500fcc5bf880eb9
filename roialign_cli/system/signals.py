"""Signals that ask a command to end. Imports nothing that takes long."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from types import FrameType

from roialign_cli.errors import ExitCode

# What asks a command to end: Ctrl-C, a scheduler, and a terminal that is closed, which Windows does not have.
STOPPING = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupt(KeyboardInterrupt):
    """A signal has come. Of plain KeyboardInterrupt Python kills itself in the end, if it went through `exec` of text."""


class Stop:
    """What a signal does: it raises Interrupt in a running command, once; else it ends the process at once.

    So an import is not broken into before a command has begun. In the last steps of Python signals are ignored: it gives
    them back to the system, which would end the process as if the command had not come to its end.
    """

    def __init__(self) -> None:
        self.running = self.met = False
        sys.unraisablehook = _unraisable
        for number in not_ignored():
            signal.signal(number, self)
            atexit.register(signal.signal, number, signal.SIG_IGN)  # of all such calls these are the last

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """Meet a signal."""
        if not self.running:
            os._exit(ExitCode.INTERRUPTED)
        self.running, self.met = False, True
        raise Interrupt


def _unraisable(met: sys.UnraisableHookArgs) -> None:
    """A signal that came in a destructor, where nothing can be raised, ends the process at once."""
    if met.exc_type is Interrupt:
        os._exit(ExitCode.INTERRUPTED)
    sys.__unraisablehook__(met)


def not_ignored() -> list[signal.Signals]:
    """Return the signals that end a command; nohup, or a shell that runs a job in the background, has some ignored."""
    return [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
