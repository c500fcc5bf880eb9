"""RoI Align: one public operator in front of several kernels."""

from roialign_cli.ops.operator import roi_align

__all__ = ["roi_align"]
