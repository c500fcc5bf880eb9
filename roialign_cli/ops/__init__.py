"""RoI Align, and what it makes of points: public operators in front of several kernels."""

from roialign_cli.ops.operator import roi_align
from roialign_cli.ops.points import point_sample

__all__ = ["point_sample", "roi_align"]
