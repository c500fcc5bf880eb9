"""Install the wheel away from the checkout and run the demo from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from helpers.sample_data import ROOT, SAMPLE_BOXES, SAMPLE_IMAGES


@pytest.mark.slow
def test_the_wheel_runs_the_demo_from_another_folder(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {"roialign_cli/configs/quickstart.yaml", "roialign_cli/ops/cuda/roi_align.cu"} <= set(names)
    assert not any(name.startswith(("tests", "configs", "sample_data")) for name in names)
    venv.create(tmp_path / "venv", with_pip=True)
    binaries = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    site = subprocess.run(
        [binaries / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    # The dependencies of this environment, but not its editable install, which a .pth file of its own would bring.
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    subprocess.run(
        [binaries / "python", "-m", "pip", "install", "--no-deps", "--no-index", wheel], check=True, capture_output=True
    )
    where = [binaries / "python", "-c", "import roialign_cli; print(roialign_cli.__file__)"]
    assert str(tmp_path) in subprocess.run(where, check=True, capture_output=True, text=True, cwd=tmp_path).stdout
    demo = [binaries / "roialign", "extract", SAMPLE_IMAGES, SAMPLE_BOXES, "-c", "quickstart", "-o", "features.h5"]
    done = subprocess.run(demo, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    assert "5 done, 0 failed" in done.stdout
