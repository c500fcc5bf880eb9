"""Make the data of the disturbed runs, run operations on it, and judge what they leave behind."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from helpers.feature_files import vouch
from PIL import Image

from faults.runs import Ended, Runs
from roialign_cli import FeatureFile
from roialign_cli.errors import OutputError
from roialign_cli.store.check import check
from roialign_cli.store.schema import COLUMNS, DONE

OPERATIONS = [
    "a run", "a resumed run", "a run with --overwrite", "a shard", "merge", "merge over older shards", "merge --link",
]  # fmt: skip
TWO_LAYERS = ("--backbone", "faults.two_layers:make_model", "--layers", "fine,coarse")
ONE_LAYER = ("--backbone", "faults.two_layers:make_model", "--layers", "fine", "--output-size", "3")
PYRAMID = (
    "--backbone", "fasterrcnn_mobilenet_v3_large_320_fpn", "--weights", "random", "--resize", "none", "--output-size", "1",
)  # fmt: skip


@dataclass
class Line:
    """Count in a line of the table the disturbed runs, the files read and the images decoded, and what went wrong."""

    runs: int = 0
    files: int = 0
    decodings: int = 0
    lost_rows: int = 0
    wrong_rows: int = 0
    unreadable: int = 0
    hangs: int = 0
    notes: set[str] = field(default_factory=set)

    @property
    def harmless(self) -> bool:
        return not (self.lost_rows or self.wrong_rows or self.unreadable or self.hangs)


TABLE: dict[str, Line] = defaultdict(Line)  # what the session did, by fault


def contents(path: Path) -> dict[str, Any]:
    """Return all data of a feature file and its attributes, except the time and the checksum of attributes."""
    found: dict[str, Any] = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item[()].tobytes()}) if isinstance(item, h5py.Dataset) else None
        )
        found |= {k: v for k, v in file.attrs.items() if k not in ("created", "attributes_crc32")}
    return found


@dataclass(frozen=True)
class Operation:
    """Describe something that writes a feature file: a command, the state that it meets, and the file that it must leave."""

    name: str
    command: Callable[[Path], list[str]]
    whole: Path
    code: int = 0
    before: Path | None = None  # a file that stands at the output already
    beside: Path | None = None  # the folder that the output must be in, if any
    called: str = "f.h5"  # the name of the output

    def output(self, folder: Path) -> Path:
        """Return where the output goes, in a folder if it may."""
        return (self.beside or folder) / self.called

    def prepare(self, output: Path) -> None:
        """Put what the operation meets in its place."""
        self.clear(output)
        if self.before is not None:
            shutil.copy(self.before, output)

    def clear(self, output: Path) -> None:
        """Remove what belongs to an output."""
        for path in output.parent.glob(output.name + "*"):
            path.unlink()

    def judge(self, output: Path, line: Line) -> None:
        """Count what is wrong with the output of a disturbed run: it must be readable, and right where it is marked done."""
        if not output.exists():
            line.unreadable += self.before is not None
            return
        line.files += 1
        if self.before is not None and output.read_bytes() == self.before.read_bytes():
            return
        try:
            with FeatureFile(output, allow_links=True) as file, FeatureFile(self.whole, allow_links=True) as whole:
                if problems := check(file).problems:
                    line.wrong_rows += 1
                    line.notes.update(problems)
                for name in file.done_names:
                    line.wrong_rows += not same_rows(file[name], whole[name])
        except OutputError as error:
            line.unreadable += 1
            line.notes.add(error.message)

    def judge_end(self, output: Path, ended: Ended, line: Line) -> None:
        """Count what is wrong after the same command has finished: the file must equal that of an undisturbed run."""
        line.hangs += ended.hung
        if ended.code != self.code:
            line.unreadable += 1
            line.notes.add(ended.log[-300:])
            return
        line.files += 1
        with FeatureFile(output, allow_links=True) as file, FeatureFile(self.whole, allow_links=True) as whole:
            line.lost_rows += len(whole.done_rows) - len(file.done_rows)
        line.wrong_rows += contents(output) != contents(self.whole)


def same_rows(found: Any, right: Any) -> bool:
    """Return whether two images hold the same, in every column and layer."""
    columns = ("boxes", *COLUMNS)
    pairs = [(getattr(found, name), getattr(right, name)) for name in columns]
    layers = [found.features, right.features]
    if isinstance(layers[0], dict):
        pairs += [(layers[0][name], layers[1][name]) for name in layers[1]]
    else:
        pairs.append((layers[0], layers[1]))
    return all((a is None and b is None) or np.array_equal(a, b) for a, b in pairs)


@dataclass(frozen=True)
class Data:
    """A small data set and how it is run over: images in `im`, boxes in `boxes.json`."""

    folder: Path
    images: int  # that can be read
    options: tuple[str, ...]
    code: int = 0  # of a run that ends by itself

    @property
    def whole(self) -> Path:
        """The file of an undisturbed run."""
        return self.folder / "whole.h5"

    def arguments(self, output: Path, *more: str) -> list[str]:
        """Return the command of a run, in batches of three, so that it has many of them."""
        run = ["extract", str(self.folder / "im"), str(self.folder / "boxes.json"), "-o", str(output)]
        return [*run, *self.options, "--batch-size", "3", *more]

    def fresh(self, *more: str) -> Operation:
        """Return a run that finds nothing at its output."""
        return Operation("a run", lambda output: self.arguments(output, *more), self.whole, self.code)

    def operations(self, runs: Runs) -> dict[str, Operation]:
        """Return everything that writes feature files, with what it meets; prepared by runs of their own."""
        shards = [self._shard(runs, number) for number in (1, 2)]
        merged, linked = self.folder / "merged.h5", self.folder / "linked.h5"
        merge = ["merge", *map(str, shards), "-o"]
        for command in ([*merge, str(merged)], [*merge, str(linked), "--link"]):
            assert runs(command).code == 0
        made = [
            self.fresh(),
            Operation("a resumed run", self.arguments, self.whole, self.code, before=self._begun()),
            Operation("a run with --overwrite", lambda output: self.arguments(output, "--overwrite"), self.whole, self.code,
                      before=self._other(runs)),
            Operation("a shard", lambda output: self.arguments(output.with_name("f.h5"), "--shard", "2/2"), shards[1],
                      self.code, called="f-0002-of-0002.h5"),
            Operation("merge", lambda output: [*merge, str(output)], merged),
            Operation("merge over older shards", lambda output: [*merge, str(output)], merged, before=self._older(merged)),
            Operation("merge --link", lambda output: [*merge, str(output), "--link", "--overwrite"], linked,
                      beside=self.folder),
        ]  # fmt: skip
        return {operation.name: operation for operation in made}

    def _shard(self, runs: Runs, number: int) -> Path:
        assert runs(self.arguments(self.folder / "part.h5", "--shard", f"{number}/2")).code in (0, self.code)
        return self.folder / f"part-{number:04}-of-0002.h5"

    def _begun(self) -> Path:
        """Make a file of which half is done, and the version of one image is another than that of its file."""
        path = self.folder / "begun.h5"
        shutil.copy(self.whole, path)
        with h5py.File(path, "r+") as file:
            status = file["images/status"][()]
            done = np.flatnonzero(status == DONE)
            for image in done[len(done) // 2 :].tolist():
                file["images/status"][image] = 0
            file["images/file_size"][done[1]] += 1
            vouch(file, int(done[1]))
        return path

    def _other(self, runs: Runs) -> Path:
        """Make the finished file of another configuration."""
        path = self.folder / "other.h5"
        assert runs(self.arguments(path, "--sampling-ratio", "1")).code == self.code
        return path

    def _older(self, merged: Path) -> Path:
        """Make a merged file whose first image has other features, as those of a shard that was made anew since."""
        path = self.folder / "older.h5"
        shutil.copy(merged, path)
        with h5py.File(path, "r+") as file:
            file["images/crc32"][0] += 1
            vouch(file, 0)
        return path


def make_data(folder: Path, images: int, runs: Runs) -> Data:
    """Make photos of noise in three sizes with a few boxes each, with labels, scores and ids; some that fail, some without.

    Two layers, float16, boxes clipped to their images.
    """
    rng = np.random.default_rng(0)
    table: dict[str, Any] = {}
    (folder / "im").mkdir(parents=True)
    for i in range(images):
        height, width = ((48, 64), (64, 48), (40, 40))[i % 3]
        Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).save(folder / "im" / f"{i}.jpg")
        corner = rng.uniform(-5, 30, (8, 2))
        boxes = np.hstack([corner, corner + rng.uniform(6, 40, (8, 2))]).round(1).tolist()
        table[f"{i}.jpg"] = described(boxes, i) if i % 5 else described([], i)
    (folder / "im" / "damaged.jpg").write_bytes((folder / "im" / "1.jpg").read_bytes()[:700])
    table["damaged.jpg"] = described([[0, 0, 20, 20]], 1)
    table["missing.jpg"] = described([[0, 0, 20, 20]], 2)
    (folder / "boxes.json").write_text(json.dumps(table))
    options = (*TWO_LAYERS, "--output-size", "3", "--dtype", "float16", "--clip")
    data = Data(folder, images, options, code=7)
    assert (ended := runs(data.arguments(data.whole))).code == data.code, ended
    return data


def described(boxes: list[list[float]], image: int) -> dict[str, Any]:
    """Return boxes with labels, scores and ids."""
    numbers = range(len(boxes))
    labels = [("cat", "Büro", "🦊")[(image + i) % 3] for i in numbers]
    return {
        "boxes": boxes,
        "labels": labels,
        "scores": [i / 10 for i in numbers],
        "ids": [f"{image}-{i}" for i in numbers],
    }


def with_options(data: Data, folder: Path, runs: Runs, options: tuple[str, ...]) -> Data:
    """Return the same images and boxes, run with other options."""
    shutil.copytree(data.folder / "im", folder / "im")
    shutil.copy(data.folder / "boxes.json", folder / "boxes.json")
    other = Data(folder, data.images, options, data.code)
    assert (ended := runs(other.arguments(other.whole))).code == other.code, ended
    return other
