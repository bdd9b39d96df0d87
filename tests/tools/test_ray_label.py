"""examples/ray_label.py: the same bytes as one process, also where a worker is killed; resumes."""

import io
import os
import runpy
import secrets
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
parquet = pytest.importorskip("pyarrow.parquet", reason="pip install '.[ray]'")
pytest.importorskip("ray", reason="pip install '.[ray]'")
MODEL = ["--model", "tiny-emoji", "--pretrained", "v2", "--words", "fish", "drum", "elephant"]
SHARDS, EACH = 5, 12
TOKEN = secrets.token_hex(32)


def picture(seed: int) -> bytes:
    """A part of the demo picture, encoded."""
    with Image.open(ROOT / "weights" / "demo.png") as file:
        whole = file.convert("RGB")
    rng = np.random.default_rng(seed)
    side = int(rng.integers(80, 160))
    left, top = (int(rng.integers(0, extent - side)) for extent in whole.size)
    stream = io.BytesIO()
    whole.crop((left, top, left + side, top + side)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """WebDataset shards; one picture among them cannot be read."""
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(SHARDS):
        with tarfile.open(folder / f"{shard:03}.tar", "w") as archive:
            for index in range(EACH):
                content = picture(10 * shard + index) if (shard, index) != (2, 3) else b"no picture"
                for ending, data in ((".png", content), (".cls", b"1")):
                    member = tarfile.TarInfo(f"{shard:03}{index:03}{ending}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))
    return folder


def command(source: Path, output: Path, *options: str) -> list[str]:
    program = str(ROOT / "examples" / "ray_label.py")
    return [sys.executable, program, str(source), "--output", str(output), *MODEL, *options]


def environment(**more: str) -> dict[str, str]:
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    quiet |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}  # of the cluster below
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **quiet, **more}


def run(source: Path, output: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    """The program as a user starts it."""
    return subprocess.run(
        command(source, output, *options),
        check=False,
        capture_output=True,
        text=True,
        env=environment(**more),
    )


def run_here(source: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, which has imported PyTorch already; without Ray."""
    arguments = command(source, output, "--workers", "0", *options)[1:]
    threads = torch.get_num_threads()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
    ):
        patch.setattr(sys, "argv", arguments)
        patch.setattr(sys, "path", sys.path.copy())
        with pytest.raises(SystemExit) as end:
            runpy.run_path(arguments[0], run_name="__main__")
    torch.set_num_threads(threads)
    return subprocess.CompletedProcess(arguments, end.value.code, out.getvalue(), err.getvalue())


HEAD = """
import sys, ray
print(ray.init(num_cpus=2, include_dashboard=False).address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a running Ray, which takes longer to start than all that it does here."""
    with subprocess.Popen(
        [sys.executable, "-c", HEAD],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert ":" in address, "Ray has not started"
        yield address


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def alone(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes without Ray."""
    output = tmp_path_factory.mktemp("alone")
    done = run(shards, output, "--workers", "0")
    assert done.returncode == 1, done.stderr  # one picture failed
    assert f"002: {EACH} pictures, 1 failed" in done.stdout
    return output


def test_rows(alone: Path) -> None:
    table = parquet.read_table(alone / "002.parquet").to_pylist()
    assert [row["key"] for row in table] == [f"002{index:03}" for index in range(EACH)]
    assert [bool(row["error"]) for row in table] == [index == 3 for index in range(EACH)]
    rows = [row for path in alone.glob("*.parquet") for row in parquet.read_table(path).to_pylist()]
    assert any('"counts"' in row["coco"] for row in rows)


def workers() -> list[int]:
    """Process numbers of Ray's workers that hold our class."""
    shown = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True)
    lines = [line.split(None, 1) for line in shown.stdout.splitlines()]
    return [int(pid) for pid, command in lines if command.startswith("ray::MapWorker")]


@pytest.mark.skipif(shutil.which("ps") is None, reason="finds the worker with ps")
def test_two_workers_one_killed(cluster: str, shards: Path, alone: Path, tmp_path: Path) -> None:
    """Killed when the first shard is done; its work is done again, and the bytes are the same."""
    output = tmp_path / "output"
    options = ["--workers", "2", "--threads", "1"]
    process = subprocess.Popen(
        command(shards, output, *options),
        stdout=subprocess.PIPE,
        text=True,
        env=environment(RAY_ADDRESS=cluster),
    )
    deadline = time.monotonic() + 240
    while not (victims := workers()) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert victims, "no worker was started"
    while not [*output.glob("*.parquet")] and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(workers()[0], signal.SIGKILL)
    assert len([*output.glob("*.parquet")]) < SHARDS, "killed after the end"
    shown, _ = process.communicate(timeout=240)
    assert process.returncode == 1 and shown.count("pictures,") == SHARDS, shown
    assert contents(output) == contents(alone)


def test_goes_on_where_it_stopped(shards: Path, alone: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    for path in alone.iterdir():
        if path.name != "001.parquet":
            (output / path.name).write_bytes(path.read_bytes())
    done = run_here(shards, output)
    assert done.returncode == 0 and "5 shards, 4 done before" in done.stdout
    assert contents(output) == contents(alone)
    other = run_here(shards, output, "--size", "96")
    assert other.returncode == 2 and "give another --output" in other.stderr
    assert other.stderr.count("\n") == 1


def test_folders_and_parquet_give_the_same_annotations(alone: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    (tmp_path / "photos" / "in").mkdir(parents=True)
    encoded = [picture(index) for index in range(EACH)]
    for index, data in enumerate(encoded):
        (tmp_path / "photos" / "in" / f"{index:02}.png").write_bytes(data)
    (tmp_path / "tables").mkdir()
    column = pa.array([{"bytes": data, "path": None} for data in encoded])
    parquet.write_table(pa.table({"image": column}), tmp_path / "tables" / "0.parquet")
    for name, output in (("photos", "pictures-000000"), ("tables", "0")):
        done = run_here(tmp_path / name, tmp_path / f"{name}-out")
        assert done.returncode == 0, done.stderr
        rows = parquet.read_table(tmp_path / f"{name}-out" / f"{output}.parquet").to_pylist()
        expected = parquet.read_table(alone / "000.parquet").to_pylist()
        assert [row["coco"] for row in rows] == [row["coco"] for row in expected]


@pytest.mark.parametrize("content", [None, b"", b"no archive"])
def test_what_cannot_be_read(content: bytes | None, tmp_path: Path) -> None:
    """No source: exit 2. A shard that is no archive: reported, exit 1, and no file for it."""
    (tmp_path / "in").mkdir()
    if content is not None:
        (tmp_path / "in" / "a.tar").write_bytes(content)
    done = run_here(tmp_path / "in", tmp_path / "out")
    assert done.returncode == (2 if content is None else 1), (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr and not [*tmp_path.rglob("*.parquet*")]


def test_an_unknown_model(shards: Path, tmp_path: Path) -> None:
    check_unknown(run_here(shards, tmp_path / "out", "--model", "nonsense"), tmp_path)


def test_what_no_worker_can_do(shards: Path, tmp_path: Path) -> None:
    """A worker of a Ray of its own says so, and the program ends, although other shards wait."""
    options = ["--workers", "1", "--model", "nonsense"]
    check_unknown(run(shards, tmp_path / "out", *options, RAY_ADDRESS="local"), tmp_path)


def check_unknown(done: subprocess.CompletedProcess[str], folder: Path) -> None:
    # Not the last line: Ray may still write about a worker that another test has killed.
    lines = [line for line in done.stderr.splitlines() if "ray_label: " in line]
    assert done.returncode == 2 and "unknown model 'nonsense'" in lines[-1]
    assert not [*(folder / "out").rglob("*.parquet*")]
