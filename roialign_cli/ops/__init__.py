"""RoI Align of boxes, rotated boxes, masks, moved bins and points: public operators in front of several kernels."""

from roialign_cli.ops.cpu.output import limit_kept_outputs
from roialign_cli.ops.deformable import deform_roi_align
from roialign_cli.ops.masked import roi_align_masked
from roialign_cli.ops.operator import roi_align
from roialign_cli.ops.points import point_sample
from roialign_cli.ops.position_sensitive import ps_roi_align
from roialign_cli.ops.rotated import roi_align_rotated

__all__ = [
    "deform_roi_align",
    "limit_kept_outputs",
    "point_sample",
    "ps_roi_align",
    "roi_align",
    "roi_align_masked",
    "roi_align_rotated",
]
