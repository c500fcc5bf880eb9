"""Test that hints are promises: following one on the input that gave it succeeds, or meets another, later problem.

Every hint in the code that names an option has a case here, or a reason why it cannot be followed in a test.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.commands import Run
from helpers.sample_data import ROOT
from PIL import Image

QUICK = "-c quickstart"
# Command, the option with its value that its hint names, and how to follow the hint: the command with what the user adds.
CASES = {
    "xywh": ("extract im xywh.json -c quickstart -o f.h5", "--box-units xywh", "{command} {hint}"),
    "outside": ("extract im outside.json -c quickstart -o f.h5", "--allow-outside", "{command} {hint}"),
    "swapped axes": ("boxes im yxyx.json", "--box-units yxyx", "{command} {hint}"),
    "yolo pixels": ("boxes im pixels", '--columns "label x1 y1 x2 y2"', "{command} {hint}"),
    "yolo polygons in pixels": ("boxes im polygons", "--box-units cxcywh", "{command} {hint}"),
    "ambiguous text": ("boxes im ambiguous", '--columns "label score x1 y1 x2 y2"', "{command} {hint}"),
    "text without columns": (
        "boxes im scores --boxes-format text", '--columns "label score x1 y1 x2 y2"', "{command} {hint}",
    ),
    "unknown columns": (
        "boxes im unknown.csv", "--columns image=File,x1=Left,y1=Top,x2=Right,y2=Bottom", "{command} --columns image=Bild",
    ),
    "two columns": ("boxes im twice.csv", "--columns x1=NAME", "{command} --columns x1=X1"),
    "no mask": ("boxes im boxes.json --region mask", "--region-missing box", "{command} --region-missing box"),
    "no boxes": ("boxes im", "--whole-image", "{command} {hint}"),
    "no boxes, grid": ("boxes im", "--grid 3x3", "{command} --grid 3x3"),
    "format": ("boxes im broken.json", "--boxes-format", "{command} --boxes-format csv"),
    "box head": ("extract im boxes.json --backbone gabor --head box -o f.h5", "--backbone fasterrcnn_resnet50_fpn",
                 "{command} {hint} --weights random --resize 64"),
    "c5 head": ("extract im boxes.json --backbone alexnet --weights random --head c5 -o f.h5", "--backbone resnet101",
                "{command} {hint} --resize 64"),
    "c5 head of another kind": ("extract im boxes.json --backbone gabor --head c5 -o f.h5", "--backbone resnet101",
                                "{command} {hint} --weights random --resize 64"),
    "centers": (f"extract im boxes.json {QUICK} --no-aligned --centers measured -o f.h5", "--aligned", "{command} {hint}"),
    "no boxes to extract": ("extract im -c quickstart -o f.h5", "--grid 3x3", "{command} --grid 3x3"),
    "detect": ("extract im --backbone gabor --detect -o f.h5", "--backbone fasterrcnn_resnet50_fpn",
               "{command} {hint} --weights random --resize 64"),
    "nms": ("extract im --nms 0.4 --backbone retinanet_resnet50_fpn --weights random --resize 64 -o f.h5", "--detect",
            "{command} {hint}"),
    "fuse": (f"extract im boxes.json {QUICK} --fuse sum -o f.h5", "--levels all", "{command} {hint}"),
    "same layer": (
        "extract im boxes.json --backbone squeezenet1_0 --weights random --layers features,features.12 -o f.h5",
        "--layers features", "{command} {hint}",
    ),
    "no such layer": ("extract im boxes.json --backbone resnet18 --weights random --layers q -o f.h5",
                      "roialign backbones resnet18", "backbones resnet18"),
    "no such backbone": ("backbones qqqqqq", "roialign backbones", "backbones"),
    "no weights": ("extract im boxes.json --backbone resnet18 -o f.h5", "-c quickstart",
                   "extract im boxes.json -c quickstart -o f.h5"),
    "stdout": (f"extract im boxes.json {QUICK} -o -", "-o features.h5", "{command} {hint}"),
    "no output": (f"extract im boxes.json {QUICK}", "roialign extract images/ boxes.json -o features.h5", "{command} -o f.h5"),
    "other output": (f"extract im boxes.json {QUICK} --output-size 2 -o there.h5", "--overwrite", "{command} {hint}"),
    "existing boxes": ("boxes im boxes.json --write native.json", "--overwrite", "{command} {hint}"),
    "existing ablation": (f"ablate im boxes.json {QUICK} -o ab --vary sampling-ratio=1", "--overwrite", "{command} {hint}"),
    "existing export": ("export there.h5 -o npz", "--overwrite", "{command} {hint}"),
    "export ids": ("export there.h5 -o ids --image-id int", "--image-id stem", "{command} {hint}"),
    "vary": ("extract im boxes.json -c vary.yaml -o f.h5", "roialign ablate", "ablate im boxes.json -c vary.yaml -o vary"),
}  # fmt: skip
# Hints that cannot be followed here, by what their text contains.
NOT_FOLLOWED = {
    "--debug": "shows a traceback, and mends nothing",
    "--weights PATH": "needs a file that the user downloads",
    "pass --layers": "no model of torchvision gives it",
    "--kernel torchvision": "needs a kernel that fails the self-check",
    "extract it again": "tests of `verify` damage files",
    "same extract command resumes": "tests of resuming do",
    "--processes if nodes": "needs a cluster that grows",
    "--engine local": "needs a worker of Ray that fails",
    "choose another --to": "two images that collide; `tests/unit/export` has them",
    "--centers assumed": "needs a model without gradients; `tests/unit/backbones/test_centers.py` has one",
    "--device cpu": "needs a device that our kernel does not serve",
    "--on-nonfinite keep": "needs a model with NaN; `tests/integration/test_extract.py` has one",
    "made from: --images": "needs an image that is missing; `tests/integration/test_recompute.py` has one",
    "--precision float32": "needs a model with NaN; `tests/unit/ablation/test_ablation.py` has one",
    "--detect is for extract": "needs a configuration with detect; `tests/integration/test_detect.py` has one",
    "or --detect": "the other way than to leave out the box file",
    "to detect again": "the same as --overwrite, which is followed",
    "--strict": "needs a file of another version; `tests/integration/test_resume.py` has one",
    "use --dtype float16": "needs a full disk",
    "wait for that run": "needs a run at the same time",
    "--shard": "tests of merging do",
    "--allow-links": "tests of links do",
    "move it away": "the tests of exports and merges do",
    "choose a shorter -o": "no option mends it",
    "--image-id name": "the default",
    "choose another -o": "the same as --overwrite, which is followed",
}


@pytest.fixture
def place(tmp_path: Path, roialign: Run) -> Path:
    """Make a folder with inputs of many mistakes."""
    (tmp_path / "im").mkdir()
    for name in ("cat", "dog"):
        Image.new("RGB", (100, 80), "gray").save(tmp_path / "im" / f"{name}.jpg")
    (tmp_path / "boxes.json").write_text(json.dumps({"cat.jpg": [[10, 20, 50, 60]], "dog.jpg": [[1, 2, 30, 40]]}))
    for name, box in (("xywh", [60, 50, 20, 10]), ("outside", [-50, -50, 300, 300]), ("yxyx", [20, 75, 60, 95])):
        (tmp_path / f"{name}.json").write_text(json.dumps({"cat.jpg": [box]}))
    (tmp_path / "broken.json").write_text("image,x1,y1,x2,y2\ncat.jpg,1,2,3,4\n")
    lines = {
        "pixels": "0 10 20 50 60", "polygons": "0 10 20 50 60 10 60", "ambiguous": "0 0.9 10 20 30 40",
        "scores": "0 0.9 10 20 30 40",
    }  # fmt: skip
    for name, line in lines.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "cat.txt").write_text(line + "\n")
    (tmp_path / "unknown.csv").write_text("Bild,Left,Top,Right,Bottom\ncat.jpg,1,2,3,4\n")
    (tmp_path / "twice.csv").write_text("image,x1,X1,y1,x2,y2\ncat.jpg,1,1,2,3,4\n")
    (tmp_path / "vary.yaml").write_text("backbone: gabor\nvary: {sampling_ratio: [1]}\n")
    (tmp_path / "native.json").touch()
    (tmp_path / "ab").mkdir()
    (tmp_path / "ab" / "ablation.csv").touch()
    assert roialign(*shlex.split(f"extract im boxes.json {QUICK} -o there.h5"), cwd=tmp_path).returncode == 0
    assert roialign(*shlex.split("export there.h5 -o npz"), cwd=tmp_path).returncode == 0
    return tmp_path


def reference(text: str) -> str:
    found = re.search(r"error\[([a-z-]+)\]", text)
    return found[1] if found else ""


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_hint_that_is_followed_helps(name: str, place: Path, roialign: Run) -> None:
    command, hint, follow = CASES[name]
    env = {"TORCH_HOME": str(place)} if name == "no weights" else {}
    before = roialign(*shlex.split(command), cwd=place, env=env)
    assert before.returncode != 0
    shown = before.stderr.partition("hint: ")[2]
    assert hint in shown, before.stderr
    after = roialign(*shlex.split(follow.format(command=command, hint=hint)), cwd=place)
    assert after.returncode == 0 or reference(after.stderr) != reference(before.stderr), after.stderr


def hints() -> Iterator[str]:
    """Yield every hint in the code that names an option or a command, with {} for what is computed."""
    for path in sorted((ROOT / "roialign_cli").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            found: ast.expr | None = None
            if isinstance(node, ast.Call) and len(node.args) >= 3 and ast.unparse(node.func).endswith("rror"):
                found = node.args[2]
            elif isinstance(node, ast.Assign) and any(ast.unparse(target) == "hint" for target in node.targets):
                found = node.value
            for part in ast.walk(found) if found is not None else ():
                if isinstance(part, ast.JoinedStr):
                    text = "".join(piece.value if isinstance(piece, ast.Constant) else "{}" for piece in part.values)  # type: ignore[misc]
                elif isinstance(part, ast.Constant) and isinstance(part.value, str):
                    text = part.value
                else:
                    continue
                if re.search(r"(^|\s)(--[a-z]|-[co] )|roialign [a-z]", text):
                    yield text


def test_every_hint_is_followed_or_says_why_not() -> None:
    found = list(hints())
    assert len(found) > 30
    followed = [hint for _, hint, _ in CASES.values()]
    for text in found:
        pieces = [piece for piece in re.split(r"\{\}", text) if re.search(r"--[a-z]|-[co] |roialign ", piece)]
        words = [word for piece in pieces for word in re.findall(r"--[a-z-]+|-[co] \w+|roialign [a-z]+", piece)]
        known = any(word in hint for word in words for hint in followed) or any(text_ in text for text_ in NOT_FOLLOWED)
        assert known, text
