"""Read a feature file by image name; features are memory-mapped and not read until they are used."""

from __future__ import annotations

import json
from collections.abc import ItemsView, Iterable, Iterator, Mapping, Sequence, ValuesView
from functools import cached_property, partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
import numpy.typing as npt

from roialign_cli.arrays import decode_text
from roialign_cli.errors import OutputError
from roialign_cli.store.parts import Array, StackedArray, open_parts
from roialign_cli.store.regions import Regions
from roialign_cli.store.schema import COLUMNS, DONE, STATUS_NAMES, features_path

if TYPE_CHECKING:
    from pandas import DataFrame

    from roialign_cli.store.create import Column, Features
    from roialign_cli.store.datasets import ImageDataset, RowDataset


class FeatureFile(Mapping[str, Regions]):
    """Read a feature file as a mapping from image name to `Regions`, in the order of the box file.

    An image may also be given by its index: `f[0]`, `f[-1]`. Keys, iteration and `len` cover all images; `values()` and
    `items()` cover only those that are done, since the others have no features.

    Args:
        path: a file; or a pattern such as `features-*-of-0016.h5` or a list of paths, which are read as one file.
        allow_links: let a file that links others name files outside of its own folder.

    Raises:
        OutputError: a path is not a feature file; when indexing, an image has no features (yet).
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
        self.offset: Array = self._map("images/offset")
        if len(self.parts) > 1:  # the offsets of each part count from 0
            counts = np.concatenate([np.diff(part.map("images/offset")) for part in self.parts])
            self.offset = np.concatenate([[0], np.cumsum(counts)])
            if len(self._index) < len(self.names):
                raise OutputError("shards-differ", f"{self.path}: expected each image in one file, found one in two")
        self.sizes = self._map("images/size")

    @classmethod
    def create(
        cls,
        path: str | Path,
        boxes: Mapping[str, npt.ArrayLike],
        features: Mapping[str, Features] | Iterable[tuple[str, Features]],
        *,
        sizes: Mapping[str, tuple[int, int]],
        labels: Column | None = None,
        scores: Column | None = None,
        ids: Column | None = None,
        attributes: Mapping[str, str] | None = None,
        overwrite: bool = False,
    ) -> FeatureFile:
        """Write features of your own to a file in this format, and open it. It appears at `path` when it is complete.

        Args:
            path: file to write.
            boxes: boxes [L, 4] of each image by its name, (x1, y1, x2, y2) in pixels of the upright image.
            features: features [L, C, PH, PW] or [L, C] of each image, float32 or float16, arrays or tensors; by name, or
                pairs of name and features in any order, such as those of a generator, of which one is in memory at a time.
                With several layers, a mapping from layer to features. Images without boxes may be left out.
            sizes: (height, width) in pixels of each image by its name.
            labels: a list with a value per box for each image by its name.
            scores: the same form as labels.
            ids: the same form as labels.
            attributes: texts to store with the file, such as {"backbone": "my model"}.
            overwrite: replace a file that is there.

        Raises:
            InputError: the arguments do not fit together; the message names the image.
            OutputError: the file is there already, or cannot be written.
        """
        from roialign_cli.store.create import create

        columns = {"labels": labels, "scores": scores, "ids": ids}
        create(Path(path), boxes, features, sizes, columns, attributes or {}, overwrite=overwrite)
        return cls(path)

    @cached_property
    def names(self) -> list[str]:
        """All image names, in the order of the file."""
        return [name.decode("utf-8", "surrogateescape") for name in np.asarray(self._map("images/name")).tolist()]

    @property
    def boxes(self) -> Array:
        """All boxes [N, 4] in pixels of the original images, memory-mapped; `offset` says which belong to which image."""
        return self._map("boxes")

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that made the file, by name."""
        settings: dict[str, Any] = json.loads(self.attributes["config"])
        return settings

    @property
    def status(self) -> npt.NDArray[np.uint8]:
        """Status of each image [M] as the file says now: 0 pending, 1 done, 2 failed."""
        return np.array(self._map("images/status"))

    @property
    def done_names(self) -> list[str]:
        """Names of the images that have features, in the order of the file."""
        return [name for name, status in zip(self.names, self.status.tolist(), strict=True) if status == DONE]

    @property
    def done_rows(self) -> npt.NDArray[np.int64]:
        """Rows of the images that have features, ascending."""
        return np.flatnonzero(np.repeat(self.status == DONE, np.diff(self.offset)))

    @property
    def errors(self) -> dict[str, str]:
        """Reasons of failed images, by name."""
        ledger = self._map("images/error")
        failed = np.flatnonzero(self.status == STATUS_NAMES.index("failed"))
        return {self.names[i]: ledger[i].decode("utf-8", "replace") for i in failed.tolist()}

    @property
    def notes(self) -> dict[str, str]:
        """Notes on images that are done, by name: values that are not finite or were clipped."""
        ledger, status = np.array(self._map("images/error")), self.status
        noted = np.flatnonzero((status == DONE) & (ledger != b""))
        return {self.names[i]: ledger[i].decode("utf-8", "replace") for i in noted.tolist()}

    def dataset(self, name: str) -> Array:
        """Return a whole dataset by its path in the file, memory-mapped and read-only; several files give a `StackedArray`."""
        return self._map(name)

    def features(self, layer: str | None = None) -> Array:
        """Return all rows of a layer [N, C, PH, PW], memory-mapped; `layer` may be left out if there is only one.

        Several files give a `StackedArray`, which takes rows, slices and arrays of rows, and converts with np.array.
        """
        if layer is None and len(self.layers) > 1:
            raise OutputError("layer-unknown", f"{self.path}: expected one of the layers {', '.join(self.layers)}")
        return self._map(features_path(layer or self.layers[0], len(self.layers)))

    def rows(self, name: str) -> slice:
        """Return the rows of an image."""
        return self.rows_of(self._index[name])

    def rows_of(self, image: int) -> slice:
        """Return the rows of an image by its index in the file."""
        return slice(int(self.offset[image]), int(self.offset[image + 1]))

    def __getitem__(self, key: str | int) -> Regions:
        i = self._index[key] if isinstance(key, str) else range(len(self))[key]
        image = self.names[i]
        status = int(self._map("images/status")[i])
        if status != DONE:
            reason = self.errors.get(image, "the run has not reached it; the same extract command resumes")
            raise OutputError("image-not-done", f'{self.path}: "{image}": {STATUS_NAMES[status]}: {reason}')
        rows = self.rows_of(i)
        columns = {name: decode_text(np.array(self._map(name)[rows])) for name in COLUMNS if name in self.extents}
        height, width = self.sizes[i].tolist()
        return Regions(
            name=image,
            mapped={layer: self.features(layer)[rows] for layer in self.layers},
            boxes=np.array(self._map("boxes")[rows]),
            size=(height, width),
            **columns,
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return sum(part.images for part in self.parts)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def __repr__(self) -> str:
        counts = np.bincount(self.status, minlength=len(STATUS_NAMES)).tolist()
        images = ", ".join(f"{count} {name}" for name, count in zip(STATUS_NAMES, counts, strict=False) if count)
        layers = ", ".join(f"{layer} {list(self.features(layer).shape)}" for layer in self.layers)
        return f"<FeatureFile {self.path}: {len(self)} images ({images or 'none'}), features {layers}>"

    def values(self) -> ValuesView[Regions]:
        """Return the regions of the images that are done."""
        return ValuesView(_DoneImages(self))

    def items(self) -> ItemsView[str, Regions]:
        """Return (name, regions) of the images that are done."""
        return ItemsView(_DoneImages(self))

    def as_dataset(self) -> ImageDataset:
        """Return a torch dataset over the images that are done; safe with fork and spawn workers, see `collate`."""
        from roialign_cli.store.datasets import ImageDataset

        return ImageDataset(FeatureFile(self._opened, allow_links=self._allow_links))

    def as_row_dataset(self) -> RowDataset:
        """Return a torch dataset over the boxes of the images that are done."""
        from roialign_cli.store.datasets import RowDataset

        return RowDataset(FeatureFile(self._opened, allow_links=self._allow_links))

    def to_pandas(self) -> DataFrame:
        """Return a row per box without features: image, status, x1, y1, x2, y2, label, score, id, level; needs pandas.

        Of regions that are not boxes also rotated, points, coverage, area; those of several numbers are arrays.
        """
        import pandas

        owner = np.repeat(np.arange(len(self.names)), np.diff(self.offset))
        columns: dict[str, Any] = {
            "image": np.array(self.names, object)[owner],
            "status": np.array(STATUS_NAMES, object)[self.status[owner]],
        }
        boxes = np.array(self._map("boxes"))
        columns |= {name: boxes[:, i] for i, name in enumerate(("x1", "y1", "x2", "y2"))}
        for name, singular in COLUMNS.items():
            if name in self.extents:
                values = decode_text(np.array(self._map(name)))
                columns[singular] = values if values.ndim == 1 else list(values)
        return pandas.DataFrame(columns)

    def __reduce__(self) -> tuple[Any, ...]:  # another process gets the path, not the maps
        return partial(FeatureFile, allow_links=self._allow_links), (self._opened,)

    def close(self) -> None:
        """Release the mapped file; arrays taken from it stay valid."""
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


class _DoneImages(Mapping[str, Regions]):
    """View a feature file as a mapping of the images that are done."""

    def __init__(self, file: FeatureFile) -> None:
        self._file = file
        self._names = file.done_names

    def __getitem__(self, name: str) -> Regions:
        return self._file[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
