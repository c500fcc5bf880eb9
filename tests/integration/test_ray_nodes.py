"""Test two nodes of Ray in network namespaces of this machine, each with its own address; needs root and Linux's `ip`."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from helpers.feature_files import assert_same
from helpers.images import make_noise
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES

from roialign_cli import extract

pytest.importorskip("ray")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
A, B = "roialign-a", "roialign-b"
ADDRESSES = {A: "10.77.91.1", B: "10.77.91.2"}
PORT = 6391
COMMON = ("--num-cpus", "1", "--disable-usage-stats")


def ip(*arguments: str, check: bool = True) -> int:
    return subprocess.run(["ip", *arguments], check=check, capture_output=True).returncode


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "RAY_AUTH_MODE": "disabled",
        "RAY_TMPDIR": os.environ["ROIALIGN_TEST_RAY"],
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }


def inside(node: str, *command: str | Path, hide: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command on a node, with a folder hidden from it and its children."""
    arguments = ["ip", "netns", "exec", node, *map(str, command)]
    if hide is not None:
        script = 'mount -t tmpfs tmpfs "$0" && exec "$@"'
        arguments = ["ip", "netns", "exec", node, "unshare", "-m", "sh", "-c", script, str(hide), *map(str, command)]
    return subprocess.run(arguments, check=False, capture_output=True, text=True, timeout=400, env=environment())


def processes(node: str) -> dict[int, str]:
    """Return the processes of a node and their command lines."""
    found = {}
    pids = subprocess.run(["ip", "netns", "pids", node], check=False, capture_output=True, text=True).stdout.split()
    for pid in pids:
        with suppress(OSError):
            found[int(pid)] = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def kill(node: str) -> None:
    for pid in processes(node):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def wait_until(true: Callable[[], object], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it does not come to that"
        time.sleep(0.1)


def works(node: str) -> bool:
    """Return whether a worker fills a shard on the node."""
    return any(name.startswith("ray::_Worker.fill") for name in processes(node).values())


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Connect two namespaces by a cable; Ray's files go to a folder with a short name, because its sockets need that."""
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
            kill(node)
            ip("netns", "del", node, check=False)
        shutil.rmtree(folder, ignore_errors=True)


def start_head(*options: str) -> None:
    first = ADDRESSES[A]
    head = ("--head", "--node-ip-address", first, "--port", str(PORT), "--include-dashboard=false")
    done = inside(A, "ray", "start", *head, *COMMON, *options)
    assert done.returncode == 0, done.stderr


def join(*options: str, hide: Path | None = None) -> None:
    """Add the second node, from which a folder may be hidden."""
    where = ("--address", f"{ADDRESSES[A]}:{PORT}", "--node-ip-address", ADDRESSES[B])
    done = inside(B, "ray", "start", *where, *COMMON, *options, hide=hide)
    assert done.returncode == 0, done.stderr


def begin(output: Path, images: Path, boxes: Path, *options: str) -> subprocess.Popen[str]:
    """Start a run on the first node."""
    run = [sys.executable, "-m", "roialign_cli", "extract", images, boxes, "-o", output, *options, "--json"]
    cluster = ["--engine", "ray", "--address", f"{ADDRESSES[A]}:{PORT}"]
    command = ["ip", "netns", "exec", A, *map(str, run), *cluster]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment())


def end(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(timeout=400)
    return process.returncode, stdout, stderr


def test_two_nodes(nodes: None, tmp_path: Path) -> None:
    start_head()
    join()
    code, stdout, stderr = end(
        begin(tmp_path / "f.h5", SAMPLE_IMAGES, SAMPLE_BOXES, "-c", "quickstart", "--num-shards", "4")
    )
    assert code == 0, stderr
    assert json.loads(stdout)["done"] == 5
    extract(SAMPLE_IMAGES, SAMPLE_BOXES, tmp_path / "right.h5", config_name="quickstart")
    assert_same(tmp_path / "f.h5", tmp_path / "right.h5")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make some seconds of work for two nodes, and the file that one process writes."""
    folder = tmp_path_factory.mktemp("nodes")
    make_noise(folder, 240)
    extract(folder / "im", folder / "boxes.json", folder / "whole.h5", backbone="resnet18", weights="random")
    return folder


def begin_data(data: Path, output: Path, *options: str) -> subprocess.Popen[str]:
    return begin(output, data / "im", data / "boxes.json", "--backbone", "resnet18", "--weights", "random", *options)


def test_a_node_that_comes_later_works_too(nodes: None, data: Path, tmp_path: Path) -> None:
    start_head("--num-gpus", "1")  # which Ray does not look for: a number that it counts
    process = begin_data(data, tmp_path / "f.h5", "--gpus-per-worker", "1", "--processes", "2")
    wait_until(lambda: works(A))
    join("--num-gpus", "1")
    wait_until(lambda: works(B))
    code, _, stderr = end(process)
    assert code == 7, stderr
    assert "expected 1 for each of 2 workers, found 1 in all; the others start when Ray finds room" in stderr
    assert_same(tmp_path / "f.h5", data / "whole.h5")


def test_a_node_that_does_not_see_the_images(nodes: None, data: Path, tmp_path: Path) -> None:
    """The node joins later, or is there from the start."""
    hidden = tmp_path / "hidden"
    shutil.copytree(data, hidden)
    expected = f"{hidden / 'im'}: expected the images, found nothing there"
    start_head("--num-gpus", "1")
    process = begin_data(hidden, tmp_path / "f.h5", "--gpus-per-worker", "1", "--processes", "2")
    wait_until(lambda: works(A))
    join("--num-gpus", "1", hide=hidden)
    code, _, stderr = end(process)
    assert code == 6, stderr
    assert expected in stderr
    code, _, stderr = end(begin_data(hidden, tmp_path / "g.h5"))
    assert code == 6, stderr
    assert f"node {ADDRESSES[B]}: {expected}" in stderr
    assert not list(tmp_path.glob("g.h5*"))


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_a_node_is_lost(nodes: None, data: Path, tmp_path: Path, how: str) -> None:
    """The other node fills its shard; a node that is only cut off must not write at the same time."""
    start_head()
    join()
    process = begin_data(data, tmp_path / "f.h5", "--num-shards", "8")
    wait_until(lambda: works(B))
    if how == "killed":
        kill(B)
    else:
        ip("-n", B, "link", "set", "ra1", "down")
    code, _, stderr = end(process)
    assert code == 7, stderr
    assert_same(tmp_path / "f.h5", data / "whole.h5")
