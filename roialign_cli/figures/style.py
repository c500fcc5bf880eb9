"""Define the style of all figures, and save them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from roialign_cli.errors import OutputError

STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "svg.fonttype": "none", "svg.hashsalt": "roialign",
}  # fmt: skip
BOX, BIN, SAMPLE = (
    "#d55e00",
    "#ffffff",
    "#0072b2",
)  # Okabe and Ito's colours, which most colour-blind people distinguish


def drawable(name: str) -> str:
    """Return a file name as text that Matplotlib accepts, with replacement characters for bytes that are not UTF-8."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of its suffix (png, svg, pdf, ...). Raises OutputError if that fails."""
    try:
        with rc_context(STYLE):
            figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        found = getattr(error, "strerror", None) or error
        raise OutputError("plot", f"{path}: expected a picture to write, such as picture.png, found: {found}") from None
