"""Two nodes of Ray with addresses of their own, in network namespaces of this machine; needs root and Linux's `ip`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLE_BOXES, SAMPLE_IMAGES

from roialign_cli import FeatureFile, extract

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ADDRESSES = {"roialign-a": "10.77.91.1", "roialign-b": "10.77.91.2"}
PORT = 6391


def ip(*arguments: str, check: bool = True) -> int:
    return subprocess.run(["ip", *arguments], check=check, capture_output=True).returncode


def inside(node: str, *command: str | Path, hide: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command on a node; with a folder hidden from it and from what it starts."""
    arguments = ["ip", "netns", "exec", node, *map(str, command)]
    if hide is not None:
        script = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
        arguments = ["ip", "netns", "exec", node, "unshare", "-m", "sh", "-c", script, str(hide), *map(str, command)]
    environment = {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": os.environ["ROIALIGN_TEST_RAY"],
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    return subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=400, env=environment)


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Two namespaces with a cable between them; Ray's own files in a folder of a short name, as its sockets need."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("needs root and ip")
    one, other = ADDRESSES
    for node in ADDRESSES:
        ip("netns", "del", node, check=False)
    if ip("netns", "add", one, check=False) != 0:
        pytest.skip("may not make network namespaces")
    folder = tempfile.mkdtemp(prefix="ra", dir="/tmp")
    monkeypatch.setenv("ROIALIGN_TEST_RAY", folder)
    try:
        ip("netns", "add", other)
        ip("link", "add", "ra0", "netns", one, "type", "veth", "peer", "name", "ra1", "netns", other)
        for (node, address), device in zip(ADDRESSES.items(), ("ra0", "ra1"), strict=True):
            ip("-n", node, "addr", "add", f"{address}/24", "dev", device)
            for name in (device, "lo"):
                ip("-n", node, "link", "set", name, "up")
        yield
    finally:
        for node in ADDRESSES:
            pids = subprocess.run(
                ["ip", "netns", "pids", node], check=False, capture_output=True, text=True
            ).stdout.split()
            for pid in map(int, pids):  # only those of this Ray
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            ip("netns", "del", node, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def start(hide: Path | None = None) -> None:
    """Ray on both nodes; the second may not see a folder."""
    (one, first), (other, second) = ADDRESSES.items()
    common = ("--num-cpus", "1", "--disable-usage-stats")
    head = (
        "ray",
        "start",
        "--head",
        "--node-ip-address",
        first,
        "--port",
        str(PORT),
        "--include-dashboard=false",
        *common,
    )
    done = inside(one, *head)
    assert done.returncode == 0, done.stderr
    done = inside(
        other, "ray", "start", "--address", f"{first}:{PORT}", "--node-ip-address", second, *common, hide=hide
    )
    assert done.returncode == 0, done.stderr


def run(output: Path, images: Path = SAMPLE_IMAGES) -> subprocess.CompletedProcess[str]:
    (one, first), _ = ADDRESSES.items()
    command = [sys.executable, "-m", "roialign_cli", "extract", images, SAMPLE_BOXES, "-o", output, "-c", "quickstart"]
    cluster = ["--engine", "ray", "--address", f"{first}:{PORT}", "--num-shards", "4", "--json"]
    return inside(one, *command, *cluster)


def test_two_nodes(nodes: None, tmp_path: Path) -> None:
    start()
    done = run(tmp_path / "f.h5")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["done"] == 5
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "right.h5", config_name="quickstart")
    with FeatureFile(tmp_path / "f.h5") as file, FeatureFile(tmp_path / "right.h5") as right:
        assert file.names == right.names
        assert np.abs(file.features() - right.features()).max() <= 1e-6


def test_a_node_that_does_not_see_the_images(nodes: None, tmp_path: Path) -> None:
    shutil.copytree(SAMPLE_IMAGES, tmp_path / "hidden" / "im")
    start(hide=tmp_path / "hidden")
    done = run(tmp_path / "f.h5", tmp_path / "hidden" / "im")
    assert done.returncode == 6, done.stderr
    assert f"node {ADDRESSES['roialign-b']}: {tmp_path / 'hidden' / 'im'}: expected the folder of images" in done.stderr
    assert not list(tmp_path.glob("f.h5*"))
