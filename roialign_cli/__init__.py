"""Extract RoI-aligned backbone features of your images and boxes into HDF5.

The public names load on first use, so that importing the package, and `roialign --help`, stay fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from roialign_cli.version import __version__

if TYPE_CHECKING:
    from roialign_cli.extraction.run import extract
    from roialign_cli.ops import (
        deform_roi_align,
        point_sample,
        ps_roi_align,
        roi_align,
        roi_align_masked,
        roi_align_rotated,
    )
    from roialign_cli.regions.levels import assign_levels
    from roialign_cli.store import FeatureFile
    from roialign_cli.store.datasets import collate

__all__ = [
    "FeatureFile",
    "__version__",
    "assign_levels",
    "collate",
    "deform_roi_align",
    "extract",
    "point_sample",
    "ps_roi_align",
    "roi_align",
    "roi_align_masked",
    "roi_align_rotated",
]

_HOMES = {
    "FeatureFile": "roialign_cli.store",
    "assign_levels": "roialign_cli.regions.levels",
    "collate": "roialign_cli.store.datasets",
    "deform_roi_align": "roialign_cli.ops",
    "extract": "roialign_cli.extraction.run",
    "point_sample": "roialign_cli.ops",
    "ps_roi_align": "roialign_cli.ops",
    "roi_align": "roialign_cli.ops",
    "roi_align_masked": "roialign_cli.ops",
    "roi_align_rotated": "roialign_cli.ops",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__]
