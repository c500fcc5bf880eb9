"""Feature files as torch datasets, over images or over boxes.

A `file` here is a FeatureFile, which is not imported: it gives out these datasets. It goes to another process by its path, and
is mapped there anew; a forked one reads the same map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

Item = dict[str, Any]


class ImageDataset(Dataset[Item]):
    """Item i: name, features [L, C, PH, PW] (by layer where there are several), boxes [L, 4], size, labels, scores, ids.

    Of the images that are done, in the order of the file. Strings are lists; everything else is a tensor of its own memory.
    """

    def __init__(self, file: Any) -> None:
        self.file = file
        self.names = file.done_names

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Item:
        return _item(self.file[self.names[index]])


class RowDataset(Dataset[Item]):
    """Item i: name, features [C, PH, PW], box [4], and label, score, id where there are any: one box of the images done."""

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
        for column, name in (("labels", "label"), ("scores", "score"), ("ids", "id"), ("levels", "level")):
            if column in file.extents:
                value = file.dataset(column)[row]
                item[name] = value.decode("utf-8") if isinstance(value, bytes) else value.item()
        return item


def collate(items: Sequence[Item]) -> Item:
    """Images of different numbers of boxes as one batch, for `DataLoader(collate_fn=...)`.

    Tensors [L_i, ...] are joined along the boxes; `count` [n] says how many each image has and `image` [sum] which one of
    the batch a box belongs to. Names and strings become lists, sizes [n, 2].
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
    if isinstance(values[0], Mapping):
        return {name: _join([value[name] for value in values]) for name in values[0]}
    return torch.cat(list(values)) if isinstance(values[0], Tensor) else [one for value in values for one in value]


def _item(regions: Any) -> Item:
    features = regions.features
    item: Item = {
        "name": regions.name,
        "features": {k: _tensor(v) for k, v in features.items()}
        if isinstance(features, Mapping)
        else _tensor(features),
        "boxes": _tensor(regions.boxes),
        "size": regions.size,
    }
    for name in ("labels", "scores", "ids", "levels"):
        values = getattr(regions, name)
        if values is not None:
            item[name] = values.tolist() if values.dtype.kind == "U" else _tensor(values)
    return item


def _tensor(values: npt.NDArray[Any]) -> Tensor:
    """A copy: what is mapped cannot be written, and a tensor could be."""
    return torch.from_numpy(np.array(values))
