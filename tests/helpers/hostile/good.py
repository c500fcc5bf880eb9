"""Make the good files that hostile ones start from, each with another that it could be merged with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from helpers.hostile.draft import Case, Draft
from roialign_cli import extract
from roialign_cli.store.merge import link

SHARDS = ("f-0001-of-0002.h5", "f-0002-of-0002.h5")


@dataclass(frozen=True)
class Goods:
    """A folder with images, box file, and the files of runs over them."""

    folder: Path

    def place(self, case: Case, folder: Path) -> tuple[Path, Path]:
        """Write the file of a case and what it needs into an empty folder; return it and a file to merge it with."""
        file, other = (folder / name for name in (SHARDS if case.base == "shards" else ("f.h5", "other.h5")))
        if case.base == "shards":
            draft = Draft.read(self.folder / SHARDS[0], file)
            shutil.copy(self.folder / SHARDS[1], other)
        elif case.base == "linked":
            for name in ("plain.h5", "other.h5"):
                shutil.copy(self.folder / name, folder)
            draft = Draft.read(self.folder / "linked.h5", file)
            draft.datasets["features"] = linked_features
        else:
            draft, beside = (
                Draft.read(self.folder / source, target) for source, target in (("plain.h5", file), ("other.h5", other))
            )
            KINDS[case.base](draft)
            KINDS[case.base](beside)
            beside.write()
        case.change(draft)
        draft.write()
        return file, other

    def arguments(self, case: Case, file: Path) -> list[str]:
        """Return the command that continues the file."""
        run = ["extract", str(self.folder / "im"), str(self.folder / "boxes.json"), "-c", "quickstart"]
        output, more = (file.with_name("f.h5"), ["--shard", "1/2"]) if case.base == "shards" else (file, [])
        return [*run, "--output-size", "2", "--batch-size", "2", "-o", str(output), *more]


def make_goods(folder: Path) -> Goods:
    """Run `extract` over a few small images with labels, scores and ids, one of them without boxes."""
    run = {"config_name": "quickstart", "output_size": 2, "batch_size": 2}
    for images, boxes, output in (("im", "boxes.json", "plain.h5"), ("im2", "boxes2.json", "other.h5")):
        make_images(folder, images, boxes)
        extract(folder / images, folder / boxes, folder / output, **run)
    for number in (1, 2):
        extract(folder / "im", folder / "boxes.json", folder / "f.h5", shard=f"{number}/2", **run)
    link([folder / "plain.h5", folder / "other.h5"], folder / "linked.h5")
    return Goods(folder)


def make_images(folder: Path, images: str, boxes: str) -> None:
    """Write a folder of noise and its box file."""
    rng, table = np.random.default_rng(0), {}
    for i, count in enumerate((2, 0, 3, 1, 2, 2)):
        name = f"{images}-{i}.png" if i else f"sub/{images}-{i}.png"
        (folder / images / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / images / name)
        corner = rng.uniform(0, 20, (count, 2))
        table[name] = {
            "boxes": np.hstack([corner, corner + rng.uniform(5, 20, (count, 2))]).round(1).tolist(),
            "labels": [f"label {j}" for j in range(count)],
            "scores": rng.uniform(0, 1, count).round(3).tolist(),
            "ids": [10 * i + j for j in range(count)],
        }
    (folder / boxes).write_text(json.dumps(table))


def linked_features(file: h5py.File, name: str, sources: tuple[str, ...] = ("plain.h5", "other.h5")) -> None:
    """Make the features of a linked file: ten rows of each of two files."""
    virtual = h5py.VirtualLayout((10 * len(sources), 32, 2, 2), "f4")
    for i, source in enumerate(sources):
        virtual[10 * i : 10 * i + 10] = h5py.VirtualSource(source, name, (10, 32, 2, 2), "f4")
    file.create_virtual_dataset(name, virtual)


def set_config(draft: Draft, **changes: object) -> None:
    """Change settings in the configuration of a file."""
    draft.attributes["config"] = json.dumps({**json.loads(draft.attributes["config"]), **changes})


def two_layers(draft: Draft) -> None:
    """Make it a file of the layers `one` and `two`."""
    features = draft.array("features")
    del draft.datasets["features"]
    draft.datasets.update({"features/one": features, "features/two": features[:, :16] + 1})
    draft.attributes.update(layers='["one", "two"]', strides='{"one": [4], "two": [4]}')
    set_config(draft, layers=["one", "two"])


def pyramid(draft: Draft) -> None:
    """Make it a file of a pyramid of two levels."""
    draft.datasets["levels"] = (np.arange(len(draft.array("boxes"))) % 2).astype(np.uint8)
    draft.attributes["strides"] = '{"gabor": [4, 8]}'


def half(draft: Draft) -> None:
    """Make it a file of float16."""
    draft.datasets["features"] = draft.array("features").astype(np.float16)
    set_config(draft, dtype="float16")


def reduced(draft: Draft) -> None:
    """Make it a file of a vector per box."""
    draft.datasets["features"] = draft.array("features").mean((2, 3))
    set_config(draft, reduce="mean")


def of_regions(draft: Draft, kind: str, **tables: Callable[[int], np.ndarray]) -> None:
    """Make it a file of regions that are not boxes; `tables` are made by their number of rows."""
    rows = len(draft.array("boxes"))
    draft.datasets.update({name: make(rows).astype(np.float32) for name, make in tables.items()})
    draft.attributes["format_version"] = 2
    set_config(draft, region=kind)


def rotated(draft: Draft) -> None:
    """Make it a file of rotated boxes."""
    of_regions(draft, "rotated", rotated=lambda n: np.full((n, 5), 9), area=lambda n: np.full(n, 81))


def masks(draft: Draft) -> None:
    """Make it a file of masks."""
    of_regions(draft, "mask", coverage=lambda n: np.full((n, 2, 2), 0.5), area=lambda n: np.full(n, 50))


def points(draft: Draft) -> None:
    """Make it a file of three points a region."""
    draft.datasets["features"] = draft.array("features").reshape(10, 32, 4).transpose(0, 2, 1)[:, :3]
    of_regions(draft, "points", points=lambda n: np.ones((n, 3, 3)))


KINDS: dict[str, Callable[[Draft], object]] = {
    "plain": lambda draft: None, "two layers": two_layers, "pyramid": pyramid, "float16": half, "reduced": reduced,
    "rotated": rotated, "masks": masks, "points": points,
}  # fmt: skip
