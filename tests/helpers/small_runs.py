"""Run over five small images, one at a time, and stop where a test asks for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from roialign_cli import extract
from roialign_cli.types import Summary

IMAGES = 5  # of the fixture `five_images`


def stop_after(images: int) -> Callable[[], bool]:
    """Return a function that asks the run to stop after that many batches have begun."""
    asked = iter(range(images))
    return lambda: next(asked, None) is None


def run(folder: Path, boxes: Path | None = None, images: int = 99, **more: Any) -> Summary:
    """Run over at most that many images of the folder, one at a time."""
    given = {
        "config_name": "quickstart",
        "output_size": 2,
        "batch_size": 1,
        **({} if boxes else {"grid": "1x1"}),
        **more,
    }
    return extract(folder / "im", boxes, folder / "f.h5", should_stop=stop_after(images), **given)
