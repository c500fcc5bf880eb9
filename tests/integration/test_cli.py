"""Test the command line as a new user meets it: help, messages, exit codes."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import commands
from helpers.commands import Run
from helpers.sample_data import ROOT, SAMPLE_BOXES, SAMPLE_IMAGES
from PIL import Image
from typer.main import get_command

from roialign_cli import FeatureFile
from roialign_cli.cli import app

COMMANDS = sorted(get_command(app).commands)


def test_help_needs_no_torch() -> None:
    script = """
import sys
from roialign_cli.__main__ import main
try:
    main()
except SystemExit as end:
    assert end.code in (0, None), end.code
heavy = {"torch", "torchvision", "numpy", "numba", "h5py", "PIL", "yaml"} & set(sys.modules)
assert not heavy, heavy
"""
    for arguments in (["--help"], ["--version"], ["extract", "--help"]):
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_an_example(command: str, roialign: Run) -> None:
    done = roialign(command, "--help")
    assert done.returncode == 0
    assert f"Example: roialign {command}" in done.stdout


def test_importing_the_package_is_cheap_and_complete() -> None:
    script = """
import sys, roialign_cli
assert not {"torch", "numpy"} & set(sys.modules)
for name in roialign_cli.__all__:
    assert getattr(roialign_cli, name)
"""
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(AttributeError, match="nonesuch"):
        _ = __import__("roialign_cli").nonesuch


def test_a_run_without_torchvision_s_models_does_not_import_them(tmp_path: Path) -> None:
    """Importing torchvision imports torch._dynamo: two seconds, more than everything else beside torch."""
    (tmp_path / "own.py").write_text("import torch\ndef make(): return torch.nn.AvgPool2d(16)\n")
    script = f"""
import sys
from roialign_cli import extract
for name, given in (("gabor", {{"config_name": "quickstart"}}), ("own", {{"backbone": "own:make", "resize": "64"}})):
    extract({str(SAMPLE_IMAGES)!r}, {str(SAMPLE_BOXES)!r}, f"{{name}}.h5", device="cpu", **given)
    loaded = {{"torchvision", "torch._dynamo", "matplotlib", "ray", "pandas"}} & set(sys.modules)
    assert not loaded, (name, loaded)
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Make the folder of somebody who tries things out."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "im").mkdir()
    for name in ("cat.jpg", "coffee.jpg"):
        (tmp_path / "im" / name).write_bytes((SAMPLE_IMAGES / name).read_bytes())
    (tmp_path / "corrupt").mkdir()
    (tmp_path / "corrupt" / "cat.jpg").write_bytes((SAMPLE_IMAGES / "cat.jpg").read_bytes()[:5000])
    (tmp_path / "corrupt" / "coffee.jpg").write_bytes((SAMPLE_IMAGES / "coffee.jpg").read_bytes())
    files = {
        "good": '{"cat.jpg": [[1, 2, 30, 40]], "coffee.jpg": [[5, 6, 70, 80]]}',
        "xywh": '{"cat.jpg": [[134, 84, 78, 64]]}',
        "nan": '{"cat.jpg": [[1, 2, NaN, 40]]}',
        "typo": '{"cta.jpg": [[1, 2, 30, 40]]}',
        "half": '{"cta.jpg": [[1, 2, 30, 40]], "cat.jpg": [[1, 2, 30, 40]]}',
        "broken": '{"cat.jpg": [[1, 2',
    }
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(content)
    return tmp_path


QUICK = ["-c", "quickstart"]
RANDOM = ["--backbone", "resnet18", "--weights", "random"]


@pytest.mark.parametrize(
    ("images", "boxes", "options", "code", "expected"),
    [
        ("im", "none.json", QUICK, 3, ["error[boxes-missing]: none.json"]),
        ("nowhere", "good.json", QUICK, 3, ["error[images-folder]: nowhere: expected a folder of images"]),
        ("empty", "good.json", QUICK, 3, ["error[images-empty]: empty: expected images, found none"]),
        ("im", "good.json", ["--backbone", "resnet19"], 4, ["error[backbone-unknown]", "did you mean resnet18"]),
        ("im", "good.json", [*RANDOM, "--layers", "layer5"], 4, ["layer1, layer2, layer3, layer4", "did you mean layer4"]),
        ("im", "xywh.json", QUICK, 3, ['error[box-outside-format]: xywh.json: "cat.jpg", box 0', "--box-units xywh"]),
        ("im", "nan.json", QUICK, 3, ['error[box-not-finite]: nan.json: "cat.jpg", box 0']),
        ("im", "typo.json", QUICK, 3, ['error[image-missing]: im: 1 of 1', 'the nearest name there is "cat.jpg"']),
        ("im", "half.json", QUICK, 7, ['failed: "cta.jpg": expected an image file, found nothing there']),
        ("im", "half.json", [*QUICK, "--on-error", "stop"], 3, ['error[image-missing]: im: 1 of 2']),
        ("corrupt", "good.json", QUICK, 7, ['failed: "cat.jpg": cannot be decoded: image file is truncated']),
        ("corrupt", "good.json", [*QUICK, "--on-error", "stop"], 3, ['error[image-unreadable]: "cat.jpg": cannot']),
        ("im", "broken.json", QUICK, 3, ["error[boxes-format]: broken.json: expected JSON"]),
        ("im", "good.json", [*QUICK, "-o", "none/f.h5"], 6, ["error[output-folder]: none/f.h5", "mkdir -p none"]),
        ("im", "good.json", [*QUICK, "-o", "/proc/f.h5"], 6, ["error[output-", "/proc/f.h5"]),
        ("im", "good.json", [*QUICK, "--device", "cuda:77"], 2, ["error[device-unknown]"]),
        ("im", "good.json", [*QUICK, "--mode", "mean"], 2, ["error[config-value]: mode: expected one of avg, max, exact"]),
        ("im", "good.json", [*QUICK, "--kernel", "cuda"], 5, ["error[kernel-device]", "found cpu", "use auto"]),
        ("im", "good.json", ["-c", "quikstart"], 2, ["error[config-missing]", "did you mean quickstart"]),
        ("im", "good.json", ["--sampling"], 2, ["No such option"]),
    ],
)  # fmt: skip
def test_mistakes(
    place: Path, roialign: Run, images: str, boxes: str, options: list[str], code: int, expected: list[str]
) -> None:
    done = roialign("extract", images, boxes, "-o", "f.h5", *options, cwd=place, env={"HOME": str(place)})
    assert done.returncode == code, done.stderr
    for text in expected:
        assert text in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert "\x1b" not in done.stderr + done.stdout


def test_offline_without_weights(place: Path, roialign: Run) -> None:
    env = {"TORCH_HOME": str(place), "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    done = roialign("extract", "im", "good.json", "-o", "f.h5", cwd=place, env=env)
    assert done.returncode == 4
    assert "-c quickstart" in done.stderr
    assert "--weights PATH" in done.stderr
    assert not (place / "f.h5").exists()


@pytest.mark.slow
def test_fetching_weights(place: Path, roialign: Run) -> None:
    env = {"TORCH_HOME": str(place), "https_proxy": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
    offline = roialign("weights", "fetch", "squeezenet1_1", env=env)
    assert offline.returncode == 4
    assert "not in the cache, and the download failed" in offline.stderr
    assert roialign("weights", "fetch", "squeezenet9", env=env).returncode == 4
    wrong = roialign("weights", "fetch", "squeezenet1_1", "--weights", "random", env=env)
    assert "expected one of IMAGENET1K_V1" in wrong.stderr
    script = "import torch, torchvision; torch.save(torchvision.models.squeezenet1_1().state_dict(), 'w.pth')"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=place)
    cached = place / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    cached.parent.mkdir(parents=True, exist_ok=True)
    (place / "w.pth").rename(cached)
    facts = json.loads(roialign("weights", "fetch", "squeezenet1_1", "--json", env=env).stdout)
    assert facts["path"] == str(cached)
    assert facts["bytes"] == cached.stat().st_size
    assert "IMAGENET1K_V1 (in the cache)" in roialign("backbones", "squeezenet1_1", env=env).stdout


def test_debug_shows_the_traceback(place: Path, roialign: Run) -> None:
    done = roialign("extract", "im", "nan.json", "-o", "f.h5", *QUICK, "--debug", cwd=place)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_the_demo(tmp_path: Path, roialign: Run) -> None:
    output = tmp_path / "features.h5"
    first = roialign("extract", SAMPLE_IMAGES, SAMPLE_BOXES, *QUICK, "-o", output)
    assert first.returncode == 0, first.stderr
    assert "5 done, 0 failed" in first.stdout
    again = roialign("extract", SAMPLE_IMAGES, SAMPLE_BOXES, *QUICK, "-o", output, "--json")
    assert again.returncode == 0
    assert json.loads(again.stdout)["already_finished"] is True
    other = roialign("extract", SAMPLE_IMAGES, SAMPLE_BOXES, *QUICK, "-o", output, "--mode", "max")
    assert other.returncode == 6
    assert "mode was avg, is max" in other.stderr
    shown = roialign("inspect", output)
    assert "[19, 32, 7, 7]" in shown.stdout
    facts = json.loads(roialign("inspect", output, "--json").stdout)
    assert facts["datasets"]["features"]["shape"] == [19, 32, 7, 7]
    assert facts["status"] == {"pending": 0, "done": 5, "failed": 0}
    assert facts["values"]["gabor"]["rows"] == 19
    assert facts["values"]["gabor"]["least"] < 0 < facts["values"]["gabor"]["greatest"]
    one = json.loads(roialign("inspect", output, "--image", "cat.jpg", "--json").stdout)
    assert one["boxes"][1] == [134, 84, 212, 148]
    assert one["label"] == ["cat", "eye", "eye", "nose"]
    assert "did you mean cat.jpg" in roialign("inspect", output, "--image", "ca.jpg").stderr
    assert roialign("verify", output).returncode == 0
    assert json.loads(roialign("verify", output, "--json").stdout)["done"] == 5


@pytest.mark.slow
def test_doctor_and_backbones(roialign: Run) -> None:
    report = roialign("doctor", "--json")
    assert report.returncode == 0, report.stderr
    checks = json.loads(report.stdout)["kernels"]
    assert len(checks) == 13
    assert all(check["passed"] and check["error"] >= 0 for check in checks)
    assert "resnet50" in roialign("backbones").stdout
    described = json.loads(roialign("backbones", "resnet18", "--json").stdout)
    assert described["layers"]["layer3"] == {"channels": 256, "stride": 16}
    assert described["parameters"] == 11_689_512
    assert roialign("backbones", "resnet19").returncode == 4


@pytest.mark.slow
def test_bench_measures_every_stage_and_draws(roialign: Run, tmp_path: Path) -> None:
    quick = ("--backbone", "gabor", "--images", "2", "--boxes", "5", "--runs", "1")
    done = roialign("bench", *quick, "--json", "--plot", tmp_path / "speed.png")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert [row["ours"] > 0 for row in result["operator_ms"]] == [True, True]
    speed = result["seconds_per_image"]
    assert list(speed["stages"]) == ["decode", "resize", "backbone", "RoI Align", "write"]
    assert all(seconds > 0 for seconds in speed["stages"].values())
    assert speed["whole"] > 0
    assert speed["script"] is None
    with Image.open(tmp_path / "speed.png") as picture:
        assert picture.size == (1050, 450)
    wrong = roialign("bench", *quick, "--plot", tmp_path / "speed.h5")
    assert wrong.returncode == 6
    assert "error[plot]" in wrong.stderr


def test_the_reference_is_current() -> None:
    text = (ROOT / "docs" / "reference" / "cli.md").read_text()
    sections = dict(re.findall(r"^## `roialign ([\w-]+)`\n(.*?)(?=^## |\Z)", text, re.M | re.S))
    assert sorted(sections) == COMMANDS, "run `make docs`"
    for name, command in get_command(app).commands.items():
        documented = set(
            re.findall(r"(?<![\w-])--[a-z][\w-]*", " ".join(re.findall(r"^\* `(.*?)`", sections[name], re.M)))
        )
        options = [option for one in (command, *getattr(command, "commands", {}).values()) for option in one.params]
        wanted = {flag for option in options for flag in [*option.opts, *option.secondary_opts] if flag[:2] == "--"}
        assert documented - {"--help"} == wanted - {"--help"}, f"{name}: run `make docs`"


@pytest.mark.slow
def test_the_tutorial_runs_as_it_stands(tmp_path: Path, roialign: Run) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text()
    commands = [line.split()[1:] for line in text.splitlines() if line.startswith("roialign ")]
    on_samples = [words for words in commands if "images/" not in words]
    assert len(on_samples) == 6
    (tmp_path / "sample_data").symlink_to(ROOT / "sample_data")
    for words in on_samples:
        done = roialign(*words, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        for line in done.stdout.splitlines():
            measured = re.match(r"(7x7.*?|RoI Pool.*?)\s+[\d.]+%", line)  # setting and error; times differ
            assert measured is None or measured[0] in text
    pages = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    for picture in (ROOT / "docs" / "pictures").iterdir():
        assert f"pictures/{picture.name}" in pages


ODD = os.fsdecode(b"\xff\xfe.jpg")  # a name that is no UTF-8
FORMULA = "$x^$.jpg"  # and one that would be, of a formula that is none


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make images and features whose names are not text; one image is missing."""
    if sys.platform != "linux":
        pytest.skip("file systems elsewhere take no such names")
    folder = tmp_path_factory.mktemp("odd")
    (folder / "im").mkdir()
    for name in (ODD, FORMULA):
        shutil.copy(SAMPLE_IMAGES / "cat.jpg", folder / "im" / name)
    names = [ODD, FORMULA, f"missing {ODD}"]
    (folder / "b.json").write_text(json.dumps({name: [[1, 2, 60, 70]] for name in names}))
    done = commands.run(["extract", "im", "b.json", "-o", "f.h5", *QUICK], {}, folder)
    assert done.returncode == 7, done.stderr
    return folder


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["inspect", "f.h5"], 0),
        (["inspect", "f.h5", "--image", ODD], 0),
        (["inspect", f"no {ODD}"], 6),
        (["boxes", "im", "b.json"], 7),
        pytest.param(["show", f"im/{ODD}", "b.json", "-o", "t.png", *QUICK], 0, marks=pytest.mark.slow),
        pytest.param(
            ["ablate", "im", "b.json", "-o", "ab", *QUICK, "--vary", "sampling-ratio=0,1"], 7, marks=pytest.mark.slow
        ),
    ],
    ids=["inspect", "inspect an image", "inspect nothing", "boxes", "show", "ablate"],
)
def test_names_that_are_no_text_are_printed(odd: Path, roialign: Run, arguments: list[str], code: int) -> None:
    done = roialign(*arguments, cwd=odd, env={"PYTHONIOENCODING": "utf-8:strict"})
    assert done.returncode == code, done.stderr
    assert "error[internal]" not in done.stderr


def test_names_are_drawn_as_they_are(odd: Path, roialign: Run) -> None:
    """A byte that is not text is drawn as a question mark, and dollars stay dollars."""
    done = roialign("show", "--from", "f.h5", "-o", "s.svg", cwd=odd)
    assert done.returncode == 0, done.stderr
    assert "\ufffd\ufffd.jpg 0" in (odd / "s.svg").read_text()
    assert f"{FORMULA} 0" in (odd / "s.svg").read_text()


FULL = Path("/dev/full")
COMMAND = [sys.executable, "-m", "roialign_cli"]


@pytest.mark.skipif(not FULL.exists(), reason="a device that is always full is Linux's")
@pytest.mark.parametrize("buffering", ["", "1"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["inspect", "f.h5"],
        ["inspect", "f.h5", "--json"],
        pytest.param(["extract", "im", "b.json", "-o", "f.h5", "--json", *QUICK], marks=pytest.mark.slow),
    ],
    ids=["help", "text", "json", "extract"],
)
def test_stdout_on_a_full_device(odd: Path, arguments: list[str], buffering: str) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            [*COMMAND, *arguments], check=False, stdout=full, stderr=subprocess.PIPE, text=True, cwd=odd,
            env={**os.environ, "PYTHONUNBUFFERED": buffering},
        )  # fmt: skip
    assert done.returncode == 6
    told = "error[output-write]: stdout: cannot be written: No space left on device\n"
    assert done.stderr.removeprefix("warning: 1 image cannot be read; recorded as failed\n") == told


@pytest.mark.skipif(not FULL.exists(), reason="a device that is always full is Linux's")
@pytest.mark.parametrize("buffering", ["", "1"])
@pytest.mark.parametrize(("boxes", "code"), [("nan", 3), pytest.param("half", 7, marks=pytest.mark.slow)])
def test_stderr_on_a_full_device_ends_nothing(place: Path, boxes: str, code: int, buffering: str) -> None:
    with FULL.open("w") as full:
        done = subprocess.run(
            [*COMMAND, "extract", "im", f"{boxes}.json", "-o", "f.h5", *QUICK], check=False,
            stdout=subprocess.PIPE, stderr=full, text=True, cwd=place,
            env={**os.environ, "PYTHONUNBUFFERED": buffering},
        )  # fmt: skip
    assert done.returncode == code
    assert "finished" in done.stdout or code == 3


def test_a_reader_that_goes_away_is_no_error() -> None:
    with subprocess.Popen([*COMMAND, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1


def catches(process: int, number: int) -> bool:
    """Return whether a process, which may have ended, catches a signal."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False
    caught = re.search(r"SigCgt:\s*(\w+)", status)
    return caught is not None and bool(int(caught[1], 16) >> (number - 1) & 1)


RUN = ["extract", str(SAMPLE_IMAGES), str(SAMPLE_BOXES), "-o", "f.h5", *QUICK]
SHOW = ["show", str(SAMPLE_IMAGES / "cat.jpg"), str(SAMPLE_BOXES), "-o", "s.png", *QUICK]


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux what signals a process catches")
@pytest.mark.parametrize(
    ("arguments", "seconds", "count"),
    [
        (["boxes", str(SAMPLE_IMAGES), str(SAMPLE_BOXES)], 0.4, 4),
        pytest.param(RUN, 2.5, 2, marks=pytest.mark.slow),
        pytest.param(["boxes", str(SAMPLE_IMAGES), str(SAMPLE_BOXES)], 0.5, 12, marks=pytest.mark.slow),
        pytest.param(SHOW, 2.5, 4, marks=pytest.mark.slow),
        pytest.param(RUN, 4.0, 6, marks=pytest.mark.slow),
    ],
    ids=["boxes", "extract", "boxes often", "show often", "extract often"],
)
def test_a_signal_at_any_instant(arguments: list[str], seconds: float, count: int, tmp_path: Path) -> None:
    """A signal at any time, also during imports, ends a command with 130 and without a traceback, unless it ended before."""
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) * count:
        with subprocess.Popen(
            [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - as a shell starts it
        ) as process:  # fmt: skip
            while process.poll() is None and not catches(process.pid, signal.SIGTERM):
                time.sleep(0.001)
            time.sleep(rng.uniform(0, seconds))
            process.send_signal(number)
            _, told = process.communicate(timeout=60)
        assert process.returncode in (130, 0), (seed, number, process.returncode, told)
        assert re.fullmatch(r"(stopping after the current batch; .*\n)?", told), (seed, number, told)
        (tmp_path / "f.h5").unlink(missing_ok=True)


@pytest.mark.skipif(os.name != "posix", reason="shells elsewhere start no jobs that ignore signals")
def test_a_job_that_ignores_signals_goes_on_ignoring_them() -> None:
    script = "import signal\nfrom roialign_cli.system.signals import Stop\nStop()\nprint(signal.getsignal(signal.SIGINT).name)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    assert done.stdout == "SIG_IGN\n"


def test_the_most_used_options_are_on_one_screen(roialign: Run) -> None:
    lines = roialign("extract", "--help", env={"COLUMNS": "80"}).stdout.splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("╭─ Options"))
    end = next(i for i, line in enumerate(lines) if i > first and line.startswith("╰"))
    assert end < 40
    for option in ("--output", "--config", "--backbone", "--weights", "--output-size", "--sampling-ratio", "--device"):
        assert any(option in line for line in lines[:end])


@pytest.mark.parametrize(
    ("line", "expected"),
    [("roialign ext", {"extract"}), ("roialign extract im -c quick", {"quickstart"}),
     ("roialign extract im --boxes-format coco", {"coco", "coco-results"}),
     ("roialign extract im --backbone resnet10", {"resnet101"})],
)  # fmt: skip
def test_bash_completes_commands_and_values(line: str, expected: set[str], roialign: Run) -> None:
    words = line.split()
    env = {"_ROIALIGN_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    assert set(roialign(env=env).stdout.split()) == expected


def test_options_come_from_variables_too(tmp_path: Path, roialign: Run) -> None:
    env = {"ROIALIGN_BACKBONE": "gabor", "ROIALIGN_OUTPUT_SIZE": "3", "ROIALIGN_OUTPUT": str(tmp_path / "f.h5")}
    done = roialign("extract", SAMPLE_IMAGES, SAMPLE_BOXES, "--output-size", "2", env=env)
    assert done.returncode == 0, done.stderr
    with FeatureFile(tmp_path / "f.h5") as file:
        assert file.features().shape[1:] == (32, 2, 2)  # the command line wins


def test_a_configuration_may_name_the_files(tmp_path: Path, roialign: Run) -> None:
    lines = (f"images: {SAMPLE_IMAGES}", f"boxes: {SAMPLE_BOXES}", f"output: {tmp_path / 'f.h5'}", "backbone: gabor")
    (tmp_path / "run.yaml").write_text("\n".join(lines))
    done = roialign("extract", "-c", tmp_path / "run.yaml")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "f.h5").exists()
    missing = roialign("extract", SAMPLE_IMAGES, SAMPLE_BOXES, "-c", "quickstart")
    assert missing.returncode == 2
    assert "error[usage]: extract: expected -o FILE" in missing.stderr


def test_quiet_and_json(tmp_path: Path, roialign: Run) -> None:
    arguments = ("extract", SAMPLE_IMAGES, SAMPLE_BOXES, "-c", "quickstart", "-o", tmp_path / "f.h5")
    done = roialign(*arguments, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert json.loads(roialign(*arguments, "--quiet", "--json").stdout)["already_finished"]
    done = roialign("extract", tmp_path / "none", SAMPLE_BOXES, "-o", tmp_path / "f.h5", "--json")
    error = json.loads(done.stderr)["error"]
    assert (done.returncode, error["reference"], error["exit_code"]) == (3, "images-folder", 3)
    assert roialign("extract", tmp_path / "none", SAMPLE_BOXES, "-o", tmp_path / "f.h5", "--quiet").stderr != ""


def test_the_version_names_torch_and_cuda(roialign: Run) -> None:
    import torch

    text = roialign("--version").stdout
    assert torch.__version__.split("+")[0] in text
    assert f"CUDA {torch.version.cuda or 'none'}" in text


def test_stdout_is_no_place_for_hdf5(roialign: Run) -> None:
    done = roialign("extract", SAMPLE_IMAGES, SAMPLE_BOXES, "-c", "quickstart", "-o", "-")
    assert done.returncode == 6
    assert "-o features.h5" in done.stderr


def test_a_sheet_of_one_image_counts_its_boxes(tmp_path: Path, roialign: Run) -> None:
    roialign("extract", SAMPLE_IMAGES, SAMPLE_BOXES, "-c", "quickstart", "-o", tmp_path / "f.h5")
    boxes = len(json.loads(SAMPLE_BOXES.read_text())["cat.jpg"]["boxes"])
    done = roialign("show", "--from", tmp_path / "f.h5", "cat.jpg", "-o", tmp_path / "sheet.png", "--json")
    assert json.loads(done.stdout)["boxes"] == boxes


def test_whole_image_and_a_box_file_do_not_go_together(tmp_path: Path, roialign: Run) -> None:
    done = roialign("extract", SAMPLE_IMAGES, SAMPLE_BOXES, "--whole-image", "-o", tmp_path / "f.h5")
    assert done.returncode == 2
    assert "--whole-image: expected no box file" in done.stderr
