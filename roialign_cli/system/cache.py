"""Find the folder in which results that take long to compute are kept between runs."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def user_cache(name: str) -> Path | None:
    """Return the folder that keeps results of one kind between runs; None if there is no home folder."""
    place = os.environ.get("LOCALAPPDATA") if sys.platform == "win32" else os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(place) if place else Path.home() / ".cache") / "roialign" / name
    except RuntimeError:  # no home folder
        return None
