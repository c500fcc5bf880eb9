"""Write results as JSON that every reader takes: without NaN and infinity, which JSON does not have."""

from __future__ import annotations

import json
import math
from typing import Any


def to_json(result: Any) -> str:
    """Return a document with one line per value; numbers that are not finite are null, and objects of other types text."""
    return json.dumps(_finite(result), indent=1, default=str)


def _finite(value: Any) -> Any:
    """Return a value with None for numbers in it that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
