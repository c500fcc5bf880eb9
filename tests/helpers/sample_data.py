"""Name the places of the checkout and of its sample data."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
SAMPLE_IMAGES = ROOT / "sample_data" / "images"
SAMPLE_BOXES = ROOT / "sample_data" / "boxes.json"
