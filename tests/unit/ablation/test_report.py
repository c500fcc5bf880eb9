"""Test the report in a real browser: it fetches nothing, has no errors, and is legible in light, dark, wide and narrow."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers.sample_data import SAMPLE_BOXES, SAMPLE_IMAGES
from PIL import Image

from roialign_cli.ablation.grid import make_grid
from roialign_cli.ablation.report.write import write_report
from roialign_cli.ablation.run import Ablation, ablate
from roialign_cli.config import load

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def ablation(tmp_path_factory: pytest.TempPathFactory) -> Ablation:
    """Ablate sample_data under a name that tries to inject HTML, with an image that fails."""
    folder = tmp_path_factory.mktemp("images")
    for path in SAMPLE_IMAGES.iterdir():
        shutil.copy(path, folder)
    boxes = json.loads(SAMPLE_BOXES.read_text())
    boxes["<script>alert('x')<b>.jpg"] = {"boxes": [[0, 0, 9, 9]], "labels": ["x"]}
    (folder / "boxes.json").write_text(json.dumps(boxes))
    settings = load("quickstart", {})
    variants = make_grid(
        settings, {"sampling_ratio": [0, 1, 2, 4], "op": ["roi_align", "roi_pool"], "aligned": [True, False]}
    )
    return ablate(folder, folder / "boxes.json", settings, variants)


@pytest.fixture(scope="module")
def page(ablation: Ablation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_report(ablation, folder)
    return folder / "report.html"


def test_the_page_stands_alone_and_trusts_no_name(page: Path) -> None:
    text = page.read_text()
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;b&gt;.jpg" in text
    links = re.findall(r"""(?:src|href|url)\s*[=(]\s*["']?([^"')\s>]+)""", text)
    assert all(link.startswith(("#", "data:")) for link in links), links
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links if link.startswith("#")} <= set(ids)


def browse(page: Path, *options: str, home: Path) -> subprocess.CompletedProcess[str]:
    assert BROWSER is not None
    fixed = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--user-data-dir={home}")
    return subprocess.run(
        [BROWSER, *fixed, "--enable-logging=stderr", *options, page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True, env={**os.environ, "HOME": str(home)},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_in_a_browser(page: Path, tmp_path: Path, width: int, scheme: str) -> None:
    picture = tmp_path / "page.png"
    log = tmp_path / "net.json"
    look = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    done = browse(
        page, f"--window-size={width},2000", look, f"--screenshot={picture}", f"--log-net-log={log}", home=tmp_path
    )
    assert "CONSOLE" not in done.stderr
    asked = set(re.findall(r'"url":"(https?|ftp|wss?)://([^"]+)"', log.read_text()))
    ours = {url for _, url in asked if not re.search(r"(google|gvt1|googleapis)\.com", url)}  # Chromium's own errands
    assert not ours, ours
    with Image.open(picture) as opened:
        pixels = np.asarray(opened.convert("L")).astype(int)
    paper = int(np.bincount(pixels.ravel()).argmax())
    assert paper < 50 if scheme == "dark" else paper > 230
    head = pixels[:200]
    ink = head.max() if scheme == "dark" else head.min()
    assert abs(int(ink) - paper) > 180  # of 255: the heading stands out
    # Axis labels and ticks of the plots, too: in each plot's area, much of the page's ink.
    assert (np.abs(pixels - paper) > 150).mean() > 0.01


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("width", [1280, 400])
def test_nothing_sticks_out(page: Path, tmp_path: Path, width: int) -> None:
    probe = """<script>
      const texts = [...document.querySelectorAll("svg text")].map(t => t.getBoundingClientRect().height);
      document.title = JSON.stringify([document.documentElement.scrollWidth, innerWidth, Math.min(...texts), texts.length]);
    </script>"""
    copy = tmp_path / "probe.html"
    copy.write_text(page.read_text().replace("</body>", f"{probe}</body>"))
    done = browse(copy, f"--window-size={width},2000", "--dump-dom", home=tmp_path)
    title = re.search(r"<title>(\[.*?\])</title>", done.stdout)
    assert title is not None
    wide, window, smallest, count = json.loads(title[1])
    assert wide <= window
    assert count > 40
    assert smallest > 6  # pixels: legible
