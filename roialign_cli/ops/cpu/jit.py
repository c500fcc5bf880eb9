"""Compile functions with Numba, without the GIL, and keep the machine code on disk where some cache folder is writable."""

from numba import njit

OPTIONS = {"nogil": True, "fastmath": {"contract", "nsz"}, "error_model": "numpy", "boundscheck": False}
ROUNDED = {**OPTIONS, "fastmath": {"nsz"}}


def jit(function):
    """Compile on first use.

    Numba's disk cache notices changes to the file of a cached function, but not to the files of the functions that it calls.
    So a compiled function must only call compiled functions of its own file.
    """
    return _cached(function, OPTIONS)


def rounded(function):
    """Compile on first use, and round every product and sum, as the reference does.

    This is for coordinates. A fused multiply-add would find a whole number of cells per bin to be a little more, so that an
    adaptive grid has one sample more, or a sample on the edge of the map to be outside.
    """
    return _cached(function, ROUNDED)


def inlined(function):
    """Compile as part of each caller: functions that take tuples of many arrays compile a third faster that way."""
    return njit(inline="always", **OPTIONS)(function)


def _cached(function, options):
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # Numba found no writable cache folder: compile in memory
        return njit(**options)(function)
