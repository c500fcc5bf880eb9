"""Test that an export to a full disk reports it and leaves nothing, and that a finished export is whole."""

from __future__ import annotations

import errno
import filecmp
import random
from pathlib import Path

import pytest

from faults.data import TABLE, Data
from faults.runs import FAIL, FULL, Arm, Runs

LEFT_OUT = 7  # the images that failed
FORMS = ["npz", "pt", "tsv", "h5-groups", "h5", "parquet", "lmdb"]


def same(one: Path, other: Path) -> bool:
    if one.is_file():
        return one.read_bytes() == other.read_bytes()
    names = [path.name for path in one.iterdir()]
    return filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("form", FORMS)
def test_an_export_is_whole_or_nothing(form: str, runs: Runs, one_layer: Data, tmp_path: Path) -> None:
    if form in ("parquet", "lmdb"):
        pytest.importorskip({"parquet": "pyarrow"}.get(form, form))
    command = ["export", str(one_layer.whole), "--to", form, "-o"]
    output, line = tmp_path / "exported", TABLE["ENOSPC in an export"]
    assert runs([*command, str(tmp_path / "right")]).code == LEFT_OUT
    assert runs([*command, str(output)], Arm("exported", 0)).code == LEFT_OUT
    calls = runs.calls
    assert same(output, tmp_path / "right")
    assert calls > 3
    random_calls = random.Random(0).sample(range(1, calls + 1), min(40 if FULL else 4, calls))
    for call in sorted(random_calls):
        ended = runs([*command, str(output), "--overwrite"], Arm("exported", call, FAIL, errno.ENOSPC))
        line.runs += 1
        line.hangs += ended.hung
        assert "Traceback" not in ended.log, (call, ended.log)
        line.files += 1
        if ended.code == LEFT_OUT:
            line.wrong_rows += not same(output, tmp_path / "right")
        else:
            assert "error[output" in ended.log, (call, ended.log)
            assert not output.exists() or same(output, tmp_path / "right"), call
        assert not output.with_name("exported.partial").exists(), call
        assert line.harmless, (call, ended)
