"""RoI-aligned backbone features of your images and boxes, in HDF5."""

from roialign_cli.ops import roi_align
