"""Files that were changed: noticed once on each machine, whatever its cache folder is like."""

import hashlib
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from layouts import NAME, SMALL, header_of, state_of, write_open_clip
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import gem_lite
from gem_lite.checkpoints import known, ours, records
from gem_lite.checkpoints.fetch import FetchError
from gem_lite.checkpoints.known import fetch_source
from gem_lite.checkpoints.ours import load, write
from gem_lite.checkpoints.table import PRETRAINED, Pretrained
from gem_lite.checkpoints.verify import verify_all
from gem_lite.method.config import ARCHITECTURES

ROOT = Path(__file__).parents[2]
STATE = state_of()
SHIPPED = ROOT / "weights" / "tiny-emoji-v1.safetensors"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return tmp_path / "xdg" / "gem_lite"


@pytest.fixture
def file(tmp_path: Path, cache: Path) -> Path:
    write(tmp_path / "ours.safetensors", STATE, header_of())
    return tmp_path / "ours.safetensors"


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that a file's tensors are hashed."""
    calls: list[int] = []
    digest = ours.tensors_digest

    def count(*arguments: Any) -> str:
        calls.append(1)
        return digest(*arguments)

    monkeypatch.setattr(ours, "tensors_digest", count)
    return calls


def flip(path: Path, at: int = -7) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


# ----------------------------------------------------------------------- our own files


def loaders(path: Path) -> list[Any]:
    return [lambda: load(path), lambda: gem_lite.create_gem_model(NAME, path)]


def test_a_changed_tensor(file: Path) -> None:
    flip(file)
    for action in loaders(file):
        with pytest.raises(ValueError, match=r"ours\.safetensors was changed after it was written"):
            action()


def test_a_changed_header(file: Path) -> None:
    """The activation is in the header: another one is silently wrong."""
    content = file.read_bytes()
    assert content.count(rb"\"activation\": \"quick_gelu\"") == 1
    changed = content.replace(rb"\"quick_gelu\"", rb"\"gelu\"      ")
    file.write_bytes(changed)
    for action in loaders(file):
        with pytest.raises(ValueError, match="was changed after it was written"):
            action()


def test_it_is_checked_once(file: Path, hashed: list[int], cache: Path) -> None:
    for _ in range(3):
        for action in loaders(file):
            action()
    assert len(hashed) == 1
    entries = json.loads((cache / "records.json").read_text())["checked"]
    assert list(entries) == [str(file)]


@pytest.mark.parametrize("change", ["tensor", "tensor and time", "copy", "rename"])
def test_it_is_checked_again_when_it_was_touched(
    file: Path, hashed: list[int], change: str
) -> None:
    load(file)
    before = file.stat()
    if change == "copy":
        shutil.copyfile(file, file.with_name("b"))
        os.replace(file.with_name("b"), file)
    elif change == "rename":
        file = file.rename(file.with_name("c.safetensors"))
    else:
        flip(file)
    if change == "tensor and time":
        os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    if change.startswith("tensor"):
        with pytest.raises(ValueError, match="was changed"):
            load(file)
    else:
        load(file)
    assert len(hashed) == 2


def test_time_that_goes_back(file: Path, hashed: list[int]) -> None:
    for seconds in (2_000_000_000, 0, 1_000_000_000):
        os.utime(file, (seconds, seconds))
        load(file)
        load(file)
    assert len(hashed) == 3


def test_a_file_without_a_digest(file: Path) -> None:
    """Files of earlier versions load by their path."""
    with safe_open(file, framework="pt") as opened:
        metadata = {"gem_lite": opened.metadata()["gem_lite"]}
    save_file(STATE, file, metadata=metadata)
    load(file)


def test_the_digest_does_not_depend_on_the_order(file: Path) -> None:
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(dict(sorted(load_file(file).items(), reverse=True)), file, metadata=metadata)
    load(file)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_digest_of_every_dtype(file: Path, dtype: torch.dtype) -> None:
    write(file, {name: tensor.to(dtype) for name, tensor in STATE.items()}, header_of())
    load(file)
    flip(file, -1)
    with pytest.raises(ValueError, match="was changed"):
        load(file)


def test_mmap_off(file: Path) -> None:
    """What is overwritten or cut short later does not reach the model."""
    network, _ = load(file, mmap=False)
    with file.open("r+b") as opened:
        opened.truncate(8)
    assert all(torch.equal(network.state_dict()[name], STATE[name]) for name in STATE)


# ------------------------------------------------------------------------ the cache folder


@pytest.mark.parametrize("kind", ["a file", "a link to nowhere", "no folder to make"])
def test_a_cache_that_cannot_be_written(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[int], kind: str
) -> None:
    place = tmp_path / "place"
    if kind == "a file":
        place.write_text("in the way")
    elif kind == "a link to nowhere":
        place.symlink_to(tmp_path / "nowhere" / "nothing")
    else:
        place = Path("/proc/self/x" if Path("/proc/self").is_dir() else "/dev/null/x")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    load(file)
    load(file)
    assert len(hashed) == 2
    flip(file)
    with pytest.raises(ValueError, match="was changed"):
        load(file)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root writes anywhere")
def test_a_cache_that_is_read_only(file: Path, cache: Path, hashed: list[int]) -> None:
    cache.mkdir(parents=True, mode=0o500)
    load(file)
    load(file)
    assert len(hashed) == 2


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"checked": 5}', b'{"checked": {"x": 1}}', b"\xff", b"[" * 200_000],
)
def test_records_that_are_damaged(
    file: Path, cache: Path, hashed: list[int], content: bytes
) -> None:
    cache.mkdir(parents=True)
    (cache / "records.json").write_bytes(content)
    load(file)
    load(file)
    assert len(hashed) == 1


def test_records_do_not_grow_for_ever(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "MOST", 3)
    for index in range(5):
        assert records.first_digest(f"source {index}", "a") == "a"
    entries = json.loads((cache / "records.json").read_text())["sources"]
    assert list(entries) == ["source 2", "source 3", "source 4"]


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
from gem_lite.checkpoints.ours import load
load(sys.argv[1])
print("loaded")
"""


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_a_full_disk(file: Path, cache: Path) -> None:
    done = python(FULL, str(file))
    assert (done.returncode, done.stdout) == (0, "loaded\n"), done.stderr
    assert not list(cache.glob("*.tmp")) and not (cache / "records.json").exists()


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


# ------------------------------------------------------------------------- the shipped file


def test_the_shipped_file_is_the_tables() -> None:
    shipped = [row for row in PRETRAINED if row.url is None]
    assert {row.tag for row in shipped} == {"v1", "v2"}
    for row in shipped:
        file = SHIPPED.with_name(f"tiny-emoji-{row.tag}.safetensors")
        assert row.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_changed_shipped_file(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even one whose own digest was written anew."""
    monkeypatch.setenv("GEM_LITE_WEIGHTS", str(tmp_path))
    path = tmp_path / SHIPPED.name
    shutil.copyfile(SHIPPED, path)
    model = gem_lite.create_gem_model("tiny-emoji", "v1")
    with torch.no_grad():
        model.network.visual.proj.mul_(-1)
    gem_lite.save(model, path)
    with pytest.raises(ValueError, match=r"v1\.safetensors is not the file that ships with"):
        gem_lite.create_gem_model("tiny-emoji", "v1")
    gem_lite.create_gem_model("tiny-emoji", path)  # by its path it is the user's own
    verdicts = {verdict.row.tag: verdict for verdict in verify_all()}
    assert verdicts["v1"].fits is False and str(path) in verdicts["v1"].reason


def test_verify_all(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, hashed: list[int]
) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr(known, "search_folders", lambda cache_dir=None: [folder])
    assert list(verify_all()) == []
    write(folder / "ViT-B-32-openai.safetensors", STATE, header_of())
    write(folder / "ViT-L-14-openai.safetensors", STATE, header_of())
    flip(folder / "ViT-L-14-openai.safetensors")
    (folder / "ViT-B-16.pt").write_bytes(b"not the published one")
    (folder / "CLIP-ViT-B-16-laion2B-s34B-b88K-open_clip_model.safetensors").write_bytes(b"x")
    (folder / "ViT-L-14-336-openai.safetensors").write_bytes(b"damaged")
    shutil.copyfile(SHIPPED, folder / SHIPPED.name)
    for _ in range(2):  # whatever is remembered, all is read
        verdicts = {(verdict.row.model, verdict.row.tag): verdict for verdict in verify_all()}
        fits = {pair: verdict.fits for pair, verdict in verdicts.items()}
        assert fits == {
            ("ViT-B/32", "openai"): True,
            ("ViT-L/14", "openai"): False,
            ("ViT-B/16", "openai"): False,
            ("ViT-B/16", "laion2b_s34b_b88k"): None,
            ("ViT-L/14-336", "openai"): False,
            ("tiny-emoji", "v1"): True,
        }
    assert len(hashed) == 2 + 2 * 2  # two were written, and each of them checked twice
    for (model, _), verdict in verdicts.items():
        assert verdict.path.parent == folder and verdict.reason, model


# -------------------------------------------------------------------------- trust on first use


class Server(http.server.ThreadingHTTPServer):
    """Gives one file to everybody, after so many seconds."""

    delay = 0.0

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = content
        self.requests = 0
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        time.sleep(self.server.delay)
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    content = write_open_clip(STATE, tmp_path / "published.safetensors").read_bytes()
    with Server(content) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.mark.parametrize("tag", ["laion2b_s34b_b88k", "dfn2b"])
def test_a_source_that_gives_another_file_later(server: Server, cache: Path, tag: str) -> None:
    row = known.known_row("ViT-B/16", tag)
    path = fetch_source(row, mirror=server.url)
    path.unlink()
    assert fetch_source(row, mirror=server.url) == path
    path.unlink()
    server.content += b"more"
    with pytest.raises(FetchError, match=r"was fetched before, with SHA-256 .*records\.json"):
        fetch_source(row, mirror=server.url)
    assert not path.exists()
    (cache / "records.json").unlink()
    assert fetch_source(row, mirror=server.url) == path


def test_what_has_a_hash_is_not_recorded(server: Server, cache: Path) -> None:
    digest = hashlib.sha256(server.content).hexdigest()
    row = Pretrained(
        name="ViT-B/32",
        tag="x",
        activation="gelu",
        url="https://example.org/x.safetensors",
        sha256=digest,
        licence="MIT",
        source="here",
    )
    fetch_source(row, mirror=server.url)
    assert not (cache / "records.json").exists()


CONVERTS = """
import sys
import gem_lite
from gem_lite.method.config import ARCHITECTURES
sys.path.insert(0, sys.argv[1])
from layouts import SMALL
ARCHITECTURES["ViT-B/16"] = SMALL
model = gem_lite.create_gem_model("ViT-B/16", "laion2b_s34b_b88k", mirror=sys.argv[2])
print(model.header.verified)
"""


def test_two_processes_convert_once(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.delay = 0.3  # so that the second asks while the first one fetches
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", CONVERTS, str(ROOT / "tests"), server.url],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [out for out, _ in outputs] == ["unverified\n"] * 2, outputs
    assert server.requests == 1
    names = sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")
    assert names == ["ViT-B-16-laion2b_s34b_b88k.safetensors", "records.json"]
    # A converted file of the cache that was changed since is named.
    monkeypatch.setitem(ARCHITECTURES, "ViT-B/16", SMALL)
    converted = cache / names[0]
    flip(converted)
    with pytest.raises(ValueError, match=rf"{converted.name} was changed after"):
        gem_lite.create_gem_model("ViT-B/16", "laion2b_s34b_b88k")
    save_file(STATE, converted, metadata={"gem_lite": header_of(model="ViT-B/16").to_json()})
    with pytest.raises(ValueError, match=r"written without a digest|gelu"):
        gem_lite.create_gem_model("ViT-B/16", "laion2b_s34b_b88k")
