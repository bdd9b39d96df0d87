"""A full disk, a killed process, a folder that cannot be written: what was there is still whole."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small import small_model

import gem_lite as gem
from gem_lite.cli import main

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(os.name != "posix", reason="limits and signals of POSIX")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    gem.save(small_model(), path)
    return path


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
import resource, sys
from gem_lite.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("command", ["heatmap", "segment", "convert", "demo"])
def test_full_disk(folder: Path, weights: Path, command: str) -> None:
    (folder / "out").mkdir()
    output = {"heatmap": "out/a.png", "segment": "out/a-overlay.png"}.get(command, "out/file.png")
    options = {
        "convert": ["--model", "small", "--pretrained", "x", "--source", str(weights)],
        "demo": [],
    }.get(command, ["a.png", "--prompts", "cat", "--pretrained", str(weights)])
    options += ["--output", "out" if command in ("heatmap", "segment") else output]
    assert main([command, *options]) == 0
    before = contents(folder)
    assert len(before[output]) > 4096
    done = python(FULL, command, *options, cwd=folder)
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("gem-lite: ") and "large" in line.lower()
    after = contents(folder)
    assert set(after) == set(before) and after[output] == before[output]
    assert main([command, *options]) == 0
    assert contents(folder) == before


# Says when the new file is half made, and waits to be killed.
KILLED = """
import sys, time
import gem_lite.convert
def stop(*arguments):
    print("half", flush=True)
    time.sleep(60)
gem_lite.convert._features_error = stop
from gem_lite.cli import main
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
