"""Read box files of all formats into one convention: x1, y1, x2, y2 in pixels."""

from roialign_cli.inputs.boxes.read import read_boxes

__all__ = ["read_boxes"]
