"""Time random reads of images from files of about 20 GB against one group per image, alone and in DataLoader workers.

    python benchmarks/reader.py [--images 20000] [--reads 2000] [--json benchmarks/results/reader.json]

Both files are laid out but not filled (sparse), so that the access path counts and not the disk: 20 boxes of 256 x 7 x 7
float32 per image. The group-per-image reader is the usual one: it opens the file once per process, then reads
`file[name]["features"][:]`.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from roialign_cli import FeatureFile
from roialign_cli.arrays import PackedNames
from roialign_cli.store.layout import Layout, create_file
from roialign_cli.types import BoxTable, Plan

BOXES, SHAPE = 20, (256, 7, 7)


def make(folder: Path, images: int) -> tuple[Path, Path]:
    ours, groups = folder / "ours.h5", folder / "groups.h5"
    names = tuple(f"{i:08}.jpg" for i in range(images))
    table = BoxTable(
        PackedNames.from_strings(names), np.arange(images + 1) * BOXES, np.zeros((images * BOXES, 4), np.float32)
    )
    plan = Plan(table, np.full((images, 2), 480), {}, 0, 0, 0)
    from roialign_cli.store import layout

    layout._reserve = lambda *_: None  # sparse
    create_file(ours, plan, Layout({"fpn": SHAPE}, "float32", False, {"config": "{}"}))
    with h5py.File(ours, "r+") as file:
        file["images/status"][:] = 1
    with h5py.File(groups, "w", libver="latest") as file:
        for name in names:
            group = file.create_group(name)
            group.create_dataset("features", (BOXES, *SHAPE), np.float32)
            group.create_dataset("boxes", (BOXES, 4), np.float32)
    return ours, groups


class Groups(Dataset[Any]):
    """Read a group per image, as one would by hand."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self.path, self.names, self.file = path, names, None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "file": None}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if self.file is None:
            self.file = h5py.File(self.path, "r")
        group = self.file[self.names[index]]
        return {"features": torch.from_numpy(group["features"][:]), "boxes": torch.from_numpy(group["boxes"][:])}


def read_all(dataset: Dataset[Any], order: list[int], workers: int, context: str | None) -> Callable[[], None]:
    def run() -> None:
        loader = DataLoader(dataset, None, sampler=order, num_workers=workers, multiprocessing_context=context)
        assert sum(len(item["boxes"]) for item in loader) == BOXES * len(order)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=20000)
    parser.add_argument("--reads", type=int, default=2000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    order = np.random.default_rng(0).permutation(options.images)[: options.reads].tolist()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        ours, groups = make(Path(name), options.images)
        with FeatureFile(ours) as file:
            datasets = {"group per image": Groups(groups, file.names), "ours": file.as_dataset()}

            def mapped() -> None:
                for i in order:
                    _ = file[file.names[i]].mapped

            def copied() -> None:
                for i in order:
                    _ = file[file.names[i]].features

            def by_group() -> None:
                with h5py.File(groups, "r") as opened:
                    for i in order:
                        _ = opened[file.names[i]]["features"][:]

            cases: list[tuple[str, dict[str, Callable[[], None]]]] = [
                ("FeatureFile, mapped", {"group per image": by_group, "ours": mapped}),
                ("FeatureFile, read", {"group per image": by_group, "ours": copied}),
            ]
            for workers, context in ((0, None), (2, "fork"), (2, "spawn")):
                title = f"DataLoader, {workers} workers" + (f", {context}" if context else "")
                cases.append((title, {k: read_all(d, order, workers, context) for k, d in datasets.items()}))
            for title, actions in cases:
                times: dict[str, list[float]] = {key: [] for key in actions}
                for run in range(options.runs + 1):
                    for key, action in actions.items():
                        begin = time.perf_counter()
                        action()
                        if run:
                            times[key].append(time.perf_counter() - begin)
                medians = {key: statistics.median(values) * 1e6 / options.reads for key, values in times.items()}
                rows.append({"case": title, **medians})
                ratio = medians["group per image"] / medians["ours"]
                text = f"group per image {medians['group per image']:.0f} us, ours {medians['ours']:.0f}"
                print(f"{title}: {text} ({ratio:.1f}x)", flush=True)
    machine = {"date": time.strftime("%Y-%m-%d"), "processor": platform.processor() or platform.machine()}
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "microseconds": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
