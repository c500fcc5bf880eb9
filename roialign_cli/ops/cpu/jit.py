"""Compile functions with Numba, without the GIL, and keep the machine code on disk where some cache folder is writable."""

import gc
import os

from numba import njit
from numba.core import event

OPTIONS = {"nogil": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy", "boundscheck": False}
ROUNDED = {**OPTIONS, "fastmath": {"nsz"}}


def jit(function):
    """Compile a function that Python calls, on its first call, and keep the machine code.

    Numba's disk cache notices changes to the file of a cached function, but not to the files of the functions that it calls.
    So a compiled function must only call compiled functions of its own file.
    """
    return _cached(function, OPTIONS)


def rounded(function):
    """Compile like `jit`, and round every product and sum, as the reference does."""
    return _cached(function, ROUNDED)


def inner(function):
    """Compile as part of functions of `jit`: without what Python would need to call it, and a file of its own."""
    return njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)(function)


def inner_rounded(function):
    """Compile like `inner`, and round every product and sum, as the reference does.

    This is for coordinates. A fused multiply-add would find a whole number of cells per bin to be a little more, so that an
    adaptive grid has one sample more, or a sample on the edge of the map to be outside.
    """
    return njit(no_cpython_wrapper=True, no_cfunc_wrapper=True, **ROUNDED)(function)


def inlined(function):
    """Compile as part of each caller: functions that take tuples of many arrays compile a third faster that way."""
    return njit(inline="always", **OPTIONS)(function)


def _cached(function, options):
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # Numba found no writable cache folder: compile in memory
        return njit(**options)(function)


class _Compiling(event.Listener):
    """Put off Python's collector of garbage while Numba compiles, which takes an eighth less time so."""

    def __init__(self):
        self._depth = 0  # functions are compiled while their callers are, under one lock of all threads
        self._was_enabled = False

    def on_start(self, _):
        if self._depth == 0:
            self._was_enabled = gc.isenabled()
            gc.disable()
        self._depth += 1

    def on_end(self, _):
        self._depth -= 1
        if self._depth == 0 and self._was_enabled:
            gc.enable()

    def end_in_child(self):
        """End what the thread that compiles would have ended, in a process that was forked meanwhile."""
        if self._depth and self._was_enabled:
            gc.enable()
        self._depth = 0


_compiling = _Compiling()
event.register("numba:compile", _compiling)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_compiling.end_in_child)
