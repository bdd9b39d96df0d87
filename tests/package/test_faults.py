"""A full disk, a killed process, a folder that cannot be written: what was there is still whole."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import gem_lite as gem
from gem_lite.tools.cli import main

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits and signals of POSIX")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    values = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python(code: str, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Files may grow to so many bytes, which writing meets as it meets a full disk.
FULL = """
import contextlib, io, json, resource, sys
from gem_lite.tools.cli import main
from gem_lite.tools import progress
progress.FIRST_LINE = progress.FIRST_STEP = float("inf")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for arguments in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        code = main(arguments)
    print(json.dumps([code, errors.getvalue()]))
"""


def test_full_disk(folder: Path, weights: Path) -> None:
    picture = ["a.png", "--prompts", "cat", "--pretrained", str(weights), "--output"]
    convert = ["--model", "small", "--pretrained", "x", "--source", str(weights), "--output"]
    commands = {
        "heat/a.png": ["heatmap", *picture, "heat"],
        "seg/overlay/a.png": ["segment", *picture, "seg"],
        "convert/x.safetensors": ["convert", *convert, "convert/x.safetensors"],
        "demo/demo.png": ["demo", "--output", "demo/demo.png"],
    }
    for output, command in commands.items():
        (folder / output.partition("/")[0]).mkdir()
        assert main(command) == 0, command
    before = contents(folder)
    done = python(FULL, json.dumps([*commands.values()]), cwd=folder)
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
    assert len(answers) == len(commands)
    after = contents(folder)
    assert set(after) == set(before)
    for (output, command), (code, errors) in zip(commands.items(), answers, strict=True):
        assert code == 2, (command, errors)
        (line,) = errors.splitlines()
        assert line.startswith("gem-lite: ") and "large" in line.lower()
        assert len(before[output]) > 4096 and after[output] == before[output]
        assert main(command) == 0
    assert contents(folder) == before


# Says when the new file is half made, and waits to be killed.
KILLED = """
import sys, time
import gem_lite.checkpoints.convert
def stop(*arguments):
    print("half", flush=True)
    time.sleep(60)
gem_lite.checkpoints.convert._features_error = stop
from gem_lite.tools.cli import main
main(sys.argv[1:])
"""


def test_a_killed_conversion(folder: Path, weights: Path) -> None:
    arguments = ["convert", "--model", "small", "--pretrained", "x", "--source", str(weights)]
    arguments += ["--output", "x.safetensors"]
    (folder / "x.safetensors").write_bytes(b"what was there")
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    assert (folder / "x.safetensors").read_bytes() == b"what was there"
    assert main(arguments) == 0
    assert gem.create_gem_model("small", folder / "x.safetensors")


# Stops at one of three places, says so, and waits to be killed.
KILLED_EVALUATION = """
import sys, time
from gem_lite.tools.evaluation import evaluate, report, run
from gem_lite.tools.cli import main

place, calls = sys.argv[1], []

def stop(*arguments, **options):
    print("half", flush=True)
    time.sleep(60)

def saving(file, **entries):
    calls.append(None)
    if len(calls) == 3:  # the third picture's saving
        file.write(b"PK half of it")
        file.flush()
        stop()
    savez(file, **entries)

def task(*arguments, **options):
    whole = pixel_task(*arguments, **options)
    def score(index, loaded):
        calls.append(None)
        return stop() if len(calls) == 4 else whole.score(index, loaded)
    return run.Task(whole.names, whole.shape, whole.load, score)

if place == "saving":
    savez, run.np.savez_compressed = run.np.savez_compressed, saving
elif place == "scoring":
    pixel_task, evaluate.pixel_task = evaluate.pixel_task, task
else:
    report.write_json = stop
main(sys.argv[2:])
"""


def evaluated(out: Path) -> dict[str, Any]:
    """What an evaluation wrote, but for its speed."""
    result = json.loads((out / "result.json").read_text())
    return result | {"csv": (out / "classes.csv").read_text()}


@pytest.mark.parametrize(
    ("place", "kept"), [("scoring", 3), ("saving", 2), ("reporting", 6)], ids=str
)
def test_a_killed_evaluation(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str], place: str, kept: int
) -> None:
    """An earlier result stays whole; the same command goes on and ends with the same numbers."""
    random = np.random.default_rng(1)
    for name, shape, top in (("images", (40, 50, 3), 256), ("labels", (40, 50), 3)):
        (folder / name).mkdir()
        for index in range(6):
            values = random.integers(0, top, shape, dtype=np.uint8)
            Image.fromarray(values).save(folder / name / f"{index}.png")
    (folder / "names.txt").write_text("cat\ndog\n")
    arguments = ["evaluate", "--dataset", "folder", "--root", ".", "--protocol", "gem"]
    arguments += ["--square", "40", "--model", "small", "--pretrained", str(weights)]
    arguments += ["--save-every", "0", "--output"]
    assert main([*arguments, "whole"]) == 0
    assert main([*arguments, "out", "--scale", "20"]) == 0  # an earlier, different evaluation
    earlier = evaluated(folder / "out")
    before = contents(folder / "out")
    assert earlier["counts"] != evaluated(folder / "whole")["counts"]
    with subprocess.Popen(
        [sys.executable, "-c", KILLED_EVALUATION, place, *arguments, "out"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "half\n"
        process.send_signal(signal.SIGKILL)
    after = contents(folder / "out")
    assert after["result.json"] == before["result.json"]
    # No table of classes rather than that of another evaluation, and no piece of a file.
    assert after.get("classes.csv") == (None if place == "reporting" else before["classes.csv"])
    if sys.platform == "linux":
        assert set(after) <= {"result.json", "classes.csv", "speed.json", "partial-0.npz"}
    capsys.readouterr()
    assert main([*arguments, "out"]) == 0
    assert f"{kept} of 6 pictures" in capsys.readouterr().err
    assert evaluated(folder / "out") == evaluated(folder / "whole")
    assert not list((folder / "out").glob("partial*"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_that_cannot_be_written(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "closed").mkdir(mode=0o500)
    for command in ("heatmap", "segment"):
        options = ["a.png", "--prompts", "cat", "--pretrained", str(weights)]
        assert main([command, *options, "--output", "closed"]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert os.listdir(folder / "closed") == []


def test_a_folder_that_cannot_be_made(folder: Path, weights: Path) -> None:
    """As root too: /proc takes no files from anybody."""
    if not Path("/proc/self").is_dir():
        pytest.skip("no /proc here")
    options = ["a.png", "--prompts", "cat", "--pretrained", str(weights)]
    assert main(["heatmap", *options, "--output", "/proc/self/out"]) == 2
    assert main(["demo", "--output", "/proc/self/demo.png"]) == 2
