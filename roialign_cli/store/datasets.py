"""Read feature files as torch datasets, over images or over boxes.

A `file` is a FeatureFile, which is not imported here because it imports this module. Another process gets the path and maps
the file again; a forked process reads the same map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from roialign_cli.store.schema import COLUMNS

Item = dict[str, Any]


class ImageDataset(Dataset[Item]):
    """Give the images that are done, in the order of the file.

    An item is a dict: name, features [L, C, PH, PW] (by layer if there are several), boxes [L, 4], size, and labels, scores,
    ids, levels, rotated, points, coverage, area if the file has them, see `Regions`. Strings are lists; everything else is a
    tensor with memory of its own.
    """

    def __init__(self, file: Any) -> None:
        self.file = file
        self.names = file.done_names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Item:
        return _item(self.file[self.names[index]])


class RowDataset(Dataset[Item]):
    """Give the boxes of the images that are done, one by one.

    An item is a dict: name, features [C, PH, PW] (by layer if there are several), box [4], and label, score, id, level,
    rotated, points, coverage, area if the file has them, see `Regions`.
    """

    def __init__(self, file: Any) -> None:
        self.file = file
        self.rows = file.done_rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Item:
        file, row = self.file, int(self.rows[index])
        layers = {layer: _tensor(file.features(layer)[row]) for layer in file.layers}
        image = int(np.searchsorted(file.offset, row, side="right")) - 1
        item: Item = {
            "name": file.names[image],
            "features": layers if len(layers) > 1 else layers[file.layers[0]],
            "box": _tensor(file.dataset("boxes")[row]),
        }
        for column, name in COLUMNS.items():
            if column in file.extents:
                value = file.dataset(column)[row]
                if value.ndim:
                    item[name] = _tensor(value)
                else:
                    item[name] = value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value.item()
        return item


def collate(items: Sequence[Item]) -> Item:
    """Join images with different numbers of boxes into one batch, for `DataLoader(collate_fn=...)`.

    Tensors [L_i, ...] are concatenated along the boxes; `count` [n] is the number of boxes of each image and `image` [sum] the
    index of the image in the batch that a box belongs to. Names and strings become lists, sizes [n, 2].
    """
    counts = torch.tensor([len(item["boxes"]) for item in items])
    batch: Item = {
        "name": [item["name"] for item in items],
        "size": torch.tensor([item["size"] for item in items]),
        "count": counts,
        "image": torch.repeat_interleave(torch.arange(len(items)), counts),
    }
    for key in items[0]:
        if key not in batch:
            batch[key] = _join([item[key] for item in items])
    return batch


def _join(values: Sequence[Any]) -> Any:
    """Join one entry of all items: mappings by key, tensors along the boxes, lists one after another."""
    if isinstance(values[0], Mapping):
        return {name: _join([value[name] for value in values]) for name in values[0]}
    return torch.cat(list(values)) if isinstance(values[0], Tensor) else [one for value in values for one in value]


def _item(regions: Any) -> Item:
    """Return the regions of one image as an item."""
    features = regions.features
    item: Item = {
        "name": regions.name,
        "features": {layer: torch.from_numpy(rows) for layer, rows in features.items()}
        if isinstance(features, Mapping)
        else torch.from_numpy(features),
        "boxes": torch.from_numpy(regions.boxes),
        "size": regions.size,
    }
    for name in COLUMNS:
        values = getattr(regions, name)
        if values is not None:
            item[name] = values.tolist() if values.dtype.kind == "U" else torch.from_numpy(values)
    return item


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    """Return a copy, since a tensor can be written and a map cannot."""
    return torch.from_numpy(np.array(values))
