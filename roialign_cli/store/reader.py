"""Read a feature file by image name; features are memory-mapped, nothing is copied until it is used."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt

from roialign_cli.errors import OutputError
from roialign_cli.store.parts import Array, StackedArray, open_parts
from roialign_cli.store.schema import DONE, STATUS_NAMES, features_path

if TYPE_CHECKING:
    from pandas import DataFrame

    from roialign_cli.store.datasets import ImageDataset, RowDataset


@dataclass(frozen=True)
class Regions:
    """What a file holds of one image; L boxes, all arrays in the order of the box file.

    features [L, C, PH, PW] (or [L, C] if reduced), a mapping from layer to such arrays where several layers are tapped;
    boxes [L, 4] in pixels of the original, upright image; size (height, width).
    """

    name: str
    features: Array | Mapping[str, Array]
    boxes: Array
    size: tuple[int, int]
    labels: Array | None = None
    scores: Array | None = None
    ids: Array | None = None
    levels: Array | None = None

    def __len__(self) -> int:
        return len(self.boxes)


class FeatureFile(Mapping[str, Regions]):
    """A feature file as a mapping from image name to `Regions`, in the order of the box file.

    The path may be a pattern, `features-*-of-0016.h5`, or a list: all shards of a run are read as one file. With `allow_links`
    a file that links others may name some outside of its own folder.

    Raises OutputError for files that are no feature files, and for images that have no features (yet).
    """

    def __init__(self, path: str | Path | Sequence[Path], *, allow_links: bool = False) -> None:
        self._opened, self._allow_links = path, allow_links
        if isinstance(path, str | Path):
            self.path = Path(path)
            self.parts = open_parts(self.path, allow_links=allow_links)
        else:
            self.path = path[0].parent
            self.parts = open_parts(path)
        self.extents = self.parts[0].extents
        self.attributes = self.parts[0].attributes
        self.layers = self.parts[0].layers
        self.names = [name.decode("utf-8", "surrogateescape") for name in np.asarray(self._map("images/name")).tolist()]
        self.offset: Array = self._map("images/offset")
        if len(self.parts) > 1:  # each counts from 0
            counts = np.concatenate([np.diff(part.map("images/offset")) for part in self.parts])
            self.offset = np.concatenate([[0], np.cumsum(counts)])
            if len(self._index) < len(self.names):
                raise OutputError("shards-differ", f"{self.path}: expected each image in one file, found one in two")
        self.sizes = self._map("images/size")

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that made the file."""
        settings: dict[str, Any] = json.loads(self.attributes["config"])
        return settings

    @property
    def status(self) -> npt.NDArray[np.uint8]:
        """[M] 0 pending, 1 done, 2 failed; as the file says now."""
        return np.array(self._map("images/status"))

    @property
    def done_names(self) -> list[str]:
        """The images that have features, in the order of the file."""
        return [name for name, status in zip(self.names, self.status.tolist(), strict=True) if status == DONE]

    @property
    def done_rows(self) -> npt.NDArray[np.int64]:
        """The rows of those images, ascending."""
        return np.flatnonzero(np.repeat(self.status == DONE, np.diff(self.offset)))

    @property
    def errors(self) -> dict[str, str]:
        """Why images failed, by name."""
        ledger = self._map("images/error")
        failed = np.flatnonzero(self.status == STATUS_NAMES.index("failed"))
        return {self.names[i]: ledger[i].decode("utf-8", "replace") for i in failed.tolist()}

    @property
    def notes(self) -> dict[str, str]:
        """What is odd about the features of images that are done, by name: values that are not finite, or were cut."""
        ledger, status = np.array(self._map("images/error")), self.status
        return {self.names[i]: ledger[i].decode() for i in np.flatnonzero((status == DONE) & (ledger != b"")).tolist()}

    def dataset(self, name: str) -> Array:
        """A whole dataset by its path in the file, memory-mapped and read-only; of several files, see `Stack`."""
        return self._map(name)

    def features(self, layer: str | None = None) -> Array:
        """All rows of a layer [N, C, PH, PW], memory-mapped; the layer may be left out where there is only one.

        Of several files they come as a `Stack`: rows, slices and arrays of rows can be taken from it, and np.array of all.
        """
        if layer is None and len(self.layers) > 1:
            raise OutputError("layer-unknown", f"{self.path}: expected one of the layers {', '.join(self.layers)}")
        return self._map(features_path(layer or self.layers[0], len(self.layers)))

    def rows(self, name: str) -> slice:
        """Return the rows of an image."""
        return self.rows_of(self._index[name])

    def rows_of(self, image: int) -> slice:
        """Return the rows of an image by its place in the file."""
        return slice(int(self.offset[image]), int(self.offset[image + 1]))

    def __getitem__(self, name: str) -> Regions:
        i = self._index[name]
        status = int(self._map("images/status")[i])
        if status != DONE:
            reason = self.errors.get(name, "the run has not come to it; the same extract command goes on")
            raise OutputError("image-not-done", f'{self.path}: "{name}": {STATUS_NAMES[status]}: {reason}')
        rows = self.rows(name)
        columns = {key: self._map(key)[rows] for key in ("labels", "scores", "ids", "levels") if key in self.extents}
        for key, values in columns.items():
            if values.dtype.kind == "S":
                columns[key] = np.char.decode(values, "utf-8")
        by_layer = {layer: self.features(layer)[rows] for layer in self.layers}
        height, width = self.sizes[i].tolist()
        return Regions(
            name=name,
            features=by_layer if len(self.layers) > 1 else by_layer[self.layers[0]],
            boxes=self._map("boxes")[rows],
            size=(height, width),
            **columns,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def as_dataset(self) -> ImageDataset:
        """A torch dataset over the images that are done; safe with fork and spawn workers, see `collate`."""
        from roialign_cli.store.datasets import ImageDataset

        return ImageDataset(FeatureFile(self._opened, allow_links=self._allow_links))

    def as_row_dataset(self) -> RowDataset:
        """A torch dataset over the boxes of the images that are done."""
        from roialign_cli.store.datasets import RowDataset

        return RowDataset(FeatureFile(self._opened, allow_links=self._allow_links))

    def to_pandas(self) -> DataFrame:
        """A row per box, all but its features: image, status, x1, y1, x2, y2, label, score, id, level; needs pandas."""
        import pandas

        owner = np.repeat(np.arange(len(self.names)), np.diff(self.offset))
        columns: dict[str, Any] = {
            "image": np.array(self.names, object)[owner],
            "status": np.array(STATUS_NAMES, object)[self.status[owner]],
        }
        boxes = np.array(self._map("boxes"))
        columns |= {name: boxes[:, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))}
        for name in ("labels", "scores", "ids", "levels"):
            if name in self.extents:
                values = np.array(self._map(name))
                columns[name[:-1]] = np.char.decode(values, "utf-8") if values.dtype.kind == "S" else values
        return pandas.DataFrame(columns)

    def __reduce__(self) -> tuple[Any, ...]:  # to another process goes the path, not what is mapped
        return partial(FeatureFile, allow_links=self._allow_links), (self._opened,)

    def close(self) -> None:
        """Let go of the mapped file; arrays already taken from it stay valid."""
        for part in self.parts:
            part.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _map(self, name: str) -> Array:
        if len(self.parts) == 1:
            return self.parts[0].map(name)
        return cast("Array", StackedArray([part.map(name) for part in self.parts]))
