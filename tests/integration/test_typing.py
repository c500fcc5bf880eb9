"""Type-check a user's program against the public names, as a user of `mypy --strict` does."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.sample_data import ROOT

PROGRAM = """
from pathlib import Path
from typing import assert_type

import torch
from torch.utils.data import DataLoader

import roialign_cli
from roialign_cli import FeatureFile, assign_levels, collate, extract, roi_align

assert_type(roialign_cli.__version__, str)

summary = extract("images", Path("boxes.json"), "f.h5", config="quickstart", batch_size=4, should_stop=lambda: False)
assert_type(summary.done, int)
assert_type(summary.failures, dict[str, str])

with FeatureFile("f.h5") as file:
    assert_type(file, FeatureFile)
    assert_type(file.done_names, list[str])
    assert_type(len(file["cat.jpg"]), int)
    assert_type(file["cat.jpg"].size, tuple[int, int])
    batches = DataLoader(file.as_dataset(), batch_size=2, collate_fn=collate)
    for batch in batches:
        print(batch["features"].shape)

maps, rois = torch.rand(1, 8, 16, 16), torch.tensor([[0, 0, 0, 64, 64.0]])
assert_type(roi_align(maps, rois, 7, spatial_scale=1 / 4, sampling_ratio=2, mode="avg"), torch.Tensor)
levels = assign_levels(rois[:, 1:], (4, 8))
assert_type(levels, torch.Tensor)
assert_type(roi_align([maps, maps], rois, (3, 5), spatial_scale=[1 / 4, 1 / 8], levels=levels, reduce="mean"), torch.Tensor)
"""

MISTAKES = {  # lines after the program, and the error that mypy finds in each
    'roi_align("maps", rois, 7)': "arg-type",
    'roi_align(maps, rois, 7, mode="median")': "arg-type",
    "assign_levels(rois)": "call-arg",
    'extract("images", "boxes.json")': "call-arg",
    'extract("images", "boxes.json", "f.h5", overwrite="yes")': "arg-type",
    'FeatureFile("f.h5").feature()': "attr-defined",
    "summary.images_done": "attr-defined",
}


@pytest.mark.slow
def test_a_user_s_program_is_checked_strictly(tmp_path: Path) -> None:
    """One run of mypy reads all of torch's types, so one program holds what is right and what is wrong."""
    assert (ROOT / "roialign_cli" / "py.typed").is_file()
    program = PROGRAM.lstrip() + "".join(f"{line}\n" for line in MISTAKES)
    (tmp_path / "program.py").write_text(program)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--follow-imports=silent", "program.py"]
    done = subprocess.run(
        [*command, "--cache-dir", str(tmp_path / "cache"), "--no-error-summary"],
        check=False, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)},
    )  # fmt: skip
    first = PROGRAM.lstrip().count("\n") + 1
    expected = [(first + i, code) for i, code in enumerate(MISTAKES.values())]
    lines = [line for line in done.stdout.splitlines() if ": error: " in line]
    found = [(int(line.split(":")[1]), line.rpartition("[")[2].rstrip("]")) for line in lines]
    assert found == expected, done.stdout + done.stderr
