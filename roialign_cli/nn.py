"""Modules for networks that are trained or run in torch, with the arguments of torchvision's modules and of mmcv's.

model.roi_heads.box_roi_pool = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from roialign_cli.config import Mode
from roialign_cli.errors import OperatorInputError
from roialign_cli.ops import checks, deform_roi_align, roi_align
from roialign_cli.regions.levels import assign_levels

Size = int | Sequence[int]


class RoIAlign(nn.Module):
    """Pool RoIs from one map; takes the arguments of `torchvision.ops.RoIAlign`, and `mode`.

    Args:
        output_size: bins per side, one number or (height, width).
        spatial_scale: map cells per image pixel (1 / stride).
        sampling_ratio: samples per bin and axis; 0 or less is adaptive, as in torchvision.
        aligned: shift by half a cell. False by default, as in torchvision; `roi_align` has True.
        mode: `avg`, `max` or `exact`.
    """

    def __init__(
        self, output_size: Size, spatial_scale: float, sampling_ratio: int, aligned: bool = False, *, mode: Mode = "avg"
    ) -> None:
        super().__init__()
        self.output_size, self.spatial_scale, self.sampling_ratio = output_size, spatial_scale, sampling_ratio
        self.aligned, self.mode = aligned, mode

    def forward(self, input: Tensor, rois: Tensor | Sequence[Tensor]) -> Tensor:
        """Return [K, C, PH, PW] of RoIs [K, 5], or of boxes [L, 4] per image, from a map [N, C, H, W]."""
        return roi_align(
            input, rois, self.output_size, spatial_scale=self.spatial_scale,
            sampling_ratio=max(self.sampling_ratio, 0), aligned=self.aligned, mode=self.mode,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return the arguments, for the printed module."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}, mode={self.mode!r}"
        )


class MultiScaleRoIAlign(nn.Module):
    """Pool each box from the level of a pyramid that fits its size; with the arguments of torchvision's.

    All levels are one call of the operator. Levels are those of Feature Pyramid Networks (arXiv:1612.03144, eq. 1). The scale
    of each map is the power of two next to its height over that of the largest image, anew in each call.

    Args:
        featmap_names: names of the maps to pool from, those that exist; the finest comes first in `x`.
        output_size: bins per side, one number or (height, width).
        sampling_ratio: samples per bin and axis; 0 or less is adaptive.
        canonical_scale: side in pixels of a box that belongs to canonical_level.
        canonical_level: the level of such a box.
        aligned: shift by half a cell. False by default, as in torchvision's module.
        mode: `avg`, `max` or `exact`.
    """

    def __init__(
        self, featmap_names: Sequence[str], output_size: Size, sampling_ratio: int, *,
        canonical_scale: int = 224, canonical_level: int = 4, aligned: bool = False, mode: Mode = "avg",
    ) -> None:  # fmt: skip
        super().__init__()
        self.featmap_names = list(featmap_names)
        self.output_size = tuple(checks.check_output_size(output_size))  # torchvision's heads read it as a pair
        self.sampling_ratio, self.aligned, self.mode = sampling_ratio, aligned, mode
        self.canonical_scale, self.canonical_level = canonical_scale, canonical_level

    def forward(
        self, x: Mapping[str, Tensor], boxes: Sequence[Tensor], image_shapes: Sequence[tuple[int, int]]
    ) -> Tensor:
        """Return [K, C, PH, PW] of the boxes [L, 4] of each image, (x1, y1, x2, y2) in pixels of images of (height, width).

        Raises OperatorInputError if there is no such map, or strides do not double from map to map.
        """
        if not isinstance(x, Mapping) or not any(name in self.featmap_names for name in x) or not image_shapes:
            found = f"found {list(x)} and {image_shapes}"
            raise _input_error(f"expected one of the maps {self.featmap_names} and image_shapes, {found}")
        maps = checks.check_maps([features for name, features in x.items() if name in self.featmap_names])
        table = checks.check_rois(boxes, maps[0])
        height = max(shape[0] for shape in image_shapes)
        if height <= 0:
            raise _input_error(f"expected image_shapes (height, width) of at least a pixel, found {list(image_shapes)}")
        powers = [-round(math.log2(m.shape[2] / height)) for m in maps]
        if not 0 <= powers[-1] - powers[0] < len(maps):
            raise _input_error(
                f"expected maps whose strides double, finest first, found strides {[2**power for power in powers]}"
            )
        strides = tuple(2**power for power in powers)
        levels = None
        if len(maps) > 1:  # levels are whole numbers, so they are outside of autograd
            levels = assign_levels(table[:, 1:].detach(), strides, self.canonical_level, self.canonical_scale)
        return roi_align(
            maps, table, self.output_size, spatial_scale=[1 / stride for stride in strides], levels=levels,
            sampling_ratio=max(self.sampling_ratio, 0), aligned=self.aligned, mode=self.mode,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return the arguments, for the printed module."""
        return (
            f"featmap_names={self.featmap_names}, output_size={self.output_size}, "
            f"sampling_ratio={self.sampling_ratio}, aligned={self.aligned}, mode={self.mode!r}"
        )


class DeformRoIAlign(nn.Module):
    """Pool RoIs whose bins are moved by learned offsets; takes the arguments of mmcv's `DeformRoIPool`.

    Args:
        output_size: bins per side, one number or (height, width).
        spatial_scale: map cells per image pixel (1 / stride).
        sampling_ratio: samples per bin and axis; 0 is adaptive.
        gamma: factor of all offsets.
        aligned: shift by half a cell.
        mode: `avg` or `exact`.
    """

    def __init__(
        self, output_size: Size, spatial_scale: float = 1.0, sampling_ratio: int = 0, gamma: float = 0.1, *,
        aligned: bool = True, mode: Mode = "avg",
    ) -> None:  # fmt: skip
        super().__init__()
        self.output_size, self.spatial_scale, self.sampling_ratio = output_size, spatial_scale, sampling_ratio
        self.gamma, self.aligned, self.mode = gamma, aligned, mode

    def forward(
        self,
        input: Tensor,
        rois: Tensor | Sequence[Tensor],
        offset: Tensor,
        modulation: Tensor | None = None,
    ) -> Tensor:
        """Return [K, C, PH, PW]; offset [K, 2, PH, PW] along x and y, modulation [K, PH, PW], see `deform_roi_align`."""
        return deform_roi_align(
            input, rois, offset, self.output_size, modulation=modulation, spatial_scale=self.spatial_scale,
            sampling_ratio=max(self.sampling_ratio, 0), gamma=self.gamma, aligned=self.aligned, mode=self.mode,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """Return the arguments, for the printed module."""
        return (
            f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, "
            f"sampling_ratio={self.sampling_ratio}, gamma={self.gamma}, aligned={self.aligned}, mode={self.mode!r}"
        )


def _input_error(found: str) -> OperatorInputError:
    return OperatorInputError("roi-align-input", f"MultiScaleRoIAlign: {found}")
