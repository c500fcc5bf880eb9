"""Compile functions with Numba, without the GIL, and keep the machine code on disk where some cache folder is writable."""

from numba import njit

OPTIONS = {"nogil": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy", "boundscheck": False}


def jit(function):
    """Compile on first use.

    Numba's disk cache notices changes to the file of a cached function, but not to the files of the functions that it calls.
    So a compiled function must only call compiled functions of its own file.
    """
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:  # Numba found no writable cache folder: compile in memory
        return njit(**OPTIONS)(function)


def inlined(function):
    """Compile as part of each caller: functions that take tuples of many arrays compile a third faster that way."""
    return njit(inline="always", **OPTIONS)(function)
