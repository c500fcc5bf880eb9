"""Handle the signals that ask a command to end. This module imports nothing slow, to be ready early."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from types import FrameType, TracebackType

from roialign_cli.errors import ExitCode

# Sent by Ctrl-C, by schedulers, and by closing the terminal; Windows does not have the last one.
STOPPING = tuple(signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Interrupt(KeyboardInterrupt):
    """A signal was received. Python kills itself at exit after a plain KeyboardInterrupt that passed through `exec`."""


class Stop:
    """The signal handler: it raises Interrupt in a running command, once; otherwise it ends the process at once.

    Ending at once before the command runs avoids interrupting an import, which could turn the exception into another one.
    Signals are ignored while Python shuts down: it restores the system's default handlers then, and one of those would
    end a process whose command has already finished as if it had been killed.
    """

    def __init__(self) -> None:
        self.running = self.met = False
        sys.unraisablehook, sys.excepthook = _unraisable, _uncaught
        for number in not_ignored():
            signal.signal(number, self)
            atexit.register(signal.signal, number, signal.SIG_IGN)  # registered first, so called last

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        """Handle a signal."""
        if not self.running:
            os._exit(ExitCode.INTERRUPTED)
        self.running, self.met = False, True
        raise Interrupt


def _unraisable(unraisable: sys.UnraisableHookArgs) -> None:
    """End the process at once after a signal during a destructor, from which exceptions cannot propagate."""
    if unraisable.exc_type is Interrupt:
        os._exit(ExitCode.INTERRUPTED)
    sys.__unraisablehook__(unraisable)


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    """End the process at once after a signal that an extension module met while it imports, which prints it and goes on."""
    if kind is Interrupt:
        os._exit(ExitCode.INTERRUPTED)
    sys.__excepthook__(kind, error, traceback)


def not_ignored() -> list[signal.Signals]:
    """Return the signals that end a command, without those that nohup or a shell's background job has set to ignored."""
    return [number for number in STOPPING if signal.getsignal(number) != signal.SIG_IGN]
