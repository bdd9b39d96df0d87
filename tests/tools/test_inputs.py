"""Where a command's pictures come from, what their outputs are called, and how many go at once."""

import argparse
import io
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode

from gem_lite import inference
from gem_lite.pictures.formats import FORMATS, MAP_FORMATS
from gem_lite.tools.cli import command_parser, main
from gem_lite.tools.commands import heatmap, pictures, segment
from gem_lite.tools.commands import inputs as module
from gem_lite.tools.commands.inputs import check_output, find_inputs
from gem_lite.tools.commands.words import chosen_words, split_words

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    random = np.random.default_rng(0)
    (tmp_path / "photos" / "more" / "deep").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "more/a.png", "more/deep/c.webp", ".hidden.png"):
        pixels = random.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(weights: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(command: str, *arguments: str) -> tuple[int, str, str]:
        code = main([command, *arguments, "--pretrained", str(weights)])
        return code, *capsys.readouterr()

    return call


def parsed(*arguments: str) -> argparse.Namespace:
    return command_parser("heatmap").parse_intermixed_args(arguments)


def names(*arguments: str) -> dict[str, str]:
    """Source -> name of the output."""
    found = find_inputs(parsed(*arguments, "-p", "cat"))
    return {Path(each.source).as_posix(): each.name for each in found.pictures}


# ---- names


def test_outputs_mirror_the_tree(folder: Path) -> None:
    assert names("photos") == {"photos/a.png": "a", "photos/b.jpg": "b"}
    deep = {"photos/more/a.png": "more/a", "photos/more/deep/c.webp": "more/deep/c"}
    assert names("photos", "--recursive") == {**names("photos"), **deep}
    assert names("photos/**/*") == {**names("photos"), **deep}
    assert names("photos/more/a.png", "photos/b.jpg") == {
        "photos/more/a.png": "a",
        "photos/b.jpg": "b",
    }
    assert names("photos", "--keep-ending") == {"photos/a.png": "a.png", "photos/b.jpg": "b.jpg"}


def test_a_name_does_not_depend_on_the_others(folder: Path, run: Run) -> None:
    for path in list((folder / "photos").rglob("*.*")):
        if path.suffix in (".png", ".jpg", ".webp") and not path.name.startswith("."):
            (alone,) = names(str(path.relative_to(folder))).values()
            among = names("photos", "--recursive")[path.relative_to(folder).as_posix()]
            assert among.rsplit("/", 1)[-1] == alone
    code, out, err = run("segment", "photos", "--recursive", "-p", "cat")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        str(Path("segments", name)) for name in ("a.png", "b.png", "more/a.png", "more/deep/c.png")
    ]


def test_a_file_before_a_pattern(folder: Path) -> None:
    (folder / "odd[1].png").write_bytes((folder / "photos" / "a.png").read_bytes())
    assert names("odd[1].png") == {"odd[1].png": "odd[1]"}


def test_a_list_of_inputs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["photos/more/a.png", "", "photos/b.jpg", str(folder / "photos" / "a.png")]
    (folder / "list.txt").write_text("\n".join(lines))
    expected = {lines[0]: "photos/more/a", lines[2]: "photos/b"}
    expected[Path(lines[3]).as_posix()] = Path(lines[3]).with_suffix("").as_posix().lstrip("/")
    assert names("--list", "list.txt") == expected
    monkeypatch.setattr(sys, "stdin", io.StringIO("photos/b.jpg\n"))
    assert names("--list", "-") == {"photos/b.jpg": "photos/b"}


def test_outputs_inside_the_input_are_no_inputs(folder: Path, run: Run) -> None:
    for _ in range(2):
        code, out, _ = run("heatmap", "photos", "--recursive", "-p", "cat", "-o", "photos/maps")
        assert code == 0 and len(out.splitlines()) == 4


def test_two_pictures_of_one_output(folder: Path, run: Run) -> None:
    Image.new("RGB", (20, 20)).save("photos/A.jpg")
    code, out, err = run("heatmap", "photos", "--prompts", "cat")
    assert (code, out) == (2, "") and not Path("heatmaps").exists()
    assert "A.jpg" in err and "a.png" in err and "--keep-ending" in err
    code, out, _ = run("heatmap", "photos", "--prompts", "cat", "--keep-ending")
    written = {"A.jpg.png", "a.png.png", "b.jpg.png"}
    assert code == 0 and {Path(line).name for line in out.splitlines()} == written


def test_a_picture_that_is_called_like_an_overlay(folder: Path, run: Run) -> None:
    for name in ("y.png", "y-overlay.png"):
        Image.new("RGB", (20, 20)).save(f"photos/more/{name}")
    code, _, err = run("segment", "photos/more", "--prompts", "cat")
    assert (code, err) == (0, "")
    expected = {"a.png", "y.png", "y-overlay.png"}
    assert set(os.listdir("segments")) == {*expected, "overlay"}
    assert set(os.listdir("segments/overlay")) == expected


def test_many_outputs_are_checked_quickly(tmp_path: Path) -> None:
    pairs = []
    for index in range(3000):
        source = module.Input(str(tmp_path / f"{index}.png"), str(index))
        (tmp_path / f"{index}.png").touch()
        pairs.append((source, tmp_path / "out" / f"{index}.png"))
    check_output(tmp_path / "out", pairs)
    with pytest.raises(ValueError, match="is one of the inputs"):
        check_output(tmp_path, [*pairs, (pairs[0][0], tmp_path / "7.png")])


# ---- words


def test_commas_in_prompts() -> None:
    assert split_words(["cat,dog", "tree"]) == ["cat", "dog", "tree"]
    assert split_words(["a red, round thing"]) == ["a red, round thing"]
    assert split_words(['"red,round",sun', 'cat, "a, b"']) == ["red,round", "sun", "cat", "a, b"]
    assert split_words(["tv|television,sofa"]) == ["tv|television", "sofa"]


def test_prompts_before_and_after_inputs(folder: Path) -> None:
    for arguments in (
        ["photos/a.png", "photos/b.jpg", "-p", "cat", "dog"],
        ["-p", "cat", "dog", "photos/a.png", "photos/b.jpg"],
        ["-p", "cat,dog", "-o", "x", "photos/a.png", "photos/b.jpg"],
        ["photos/a.png", "-p", "cat", "dog", "--size", "32", "photos/b.jpg"],
    ):
        args = parsed(*arguments)
        assert chosen_words(args) == ["cat", "dog"]
        assert args.inputs == ["photos/a.png", "photos/b.jpg"], arguments


def test_words_from_a_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("words.txt").write_text("\ufeffcat\n\n remote control, old \n", encoding="utf-8")
    args = parsed("photos", "--prompts-file", "words.txt")
    assert chosen_words(args) == ["cat", "remote control, old"]
    monkeypatch.setattr(sys, "stdin", io.StringIO("sun\n"))
    assert chosen_words(parsed("photos", "-p", "dog", "--prompts-file", "-")) == ["dog", "sun"]


# ---- standard input and output, addresses


def test_from_standard_input_to_standard_output(folder: Path, weights: Path, run: Run) -> None:
    program = [sys.executable, "-m", "gem_lite", "segment", "-", "-p", "cat", "-o", "-"]
    done = subprocess.run(
        [*program, "--pretrained", str(weights)],
        input=(folder / "photos" / "a.png").read_bytes(),
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert run("segment", "photos/a.png", "-p", "cat")[0] == 0
    with Image.open(io.BytesIO(done.stdout)) as ours, Image.open("segments/a.png") as file:
        assert np.array_equal(np.asarray(ours), np.asarray(file))


class _Pictures(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path.startswith("/a%20b.png"):
            body = Path("photos/a.png").read_bytes()
        elif self.path == "/large.png":
            body = bytes(module.MOST_BYTES + 1)
        elif self.path == "/away":
            self.send_response(302)
            self.send_header("Location", Path("photos/a.png").resolve().as_uri())
            self.end_headers()
            return
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def address(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(module, "MOST_BYTES", 100_000)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), _Pictures)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_pictures_from_addresses(address: str, run: Run) -> None:
    sources = [f"{address}/a%20b.png?size=2", f"{address}/large.png", f"{address}/none.png"]
    sources.append(f"{address}/away")
    code, out, err = run("heatmap", *sources, "--prompts", "cat", "--json")
    first, *failed = map(json.loads, out.splitlines())
    assert code == 1 and first["input"] == sources[0]
    assert Path(first["output"]) == Path("heatmaps/a_b.png")
    for entry, source, message in zip(
        failed, sources[1:], ("more than 0 MB", "404", "file://"), strict=True
    ):
        assert entry["input"] == source and source in entry["error"] and message in entry["error"]
    assert len(err.splitlines()) == 4


# ---- many


def test_existing_outputs_are_skipped(folder: Path, run: Run) -> None:
    arguments = ["photos", "--prompts", "cat", "--skip-existing"]
    for command, output in (("heatmap", "heatmaps"), ("segment", "segments")):
        assert len(run(command, *arguments)[1].splitlines()) == 2
        before = Path(output, "a.png").stat().st_mtime_ns
        Path(output, "b.png").unlink()
        code, out, err = run(command, *arguments)
        assert (code, out.split(), err) == (0, [str(Path(output, "b.png"))], "")
        assert run(command, *arguments) == (0, "", "")
        assert Path(output, "a.png").stat().st_mtime_ns == before
    # Of two formats both have to be there; COCO's file says which pictures it has.
    arguments += ["--format", "coco", "yolo"]
    assert len(run("segment", *arguments)[1].splitlines()) == 2
    assert run("segment", *arguments)[1] == ""
    Path("segments/yolo/a.txt").unlink()
    Image.new("RGB", (30, 30)).save("photos/new.png")
    assert len(run("segment", *arguments)[1].splitlines()) == 2
    stored = json.loads(Path("segments/coco.json").read_text())
    assert [image["file_name"] for image in stored["images"]] == ["a.png", "b.jpg", "new.png"]


def test_batches_change_no_result(folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of one size go together, neighbours of other sizes apart, results in order."""
    for index, side in enumerate((40, 40, 40, 50, 50, 40, 40)):
        pixels = np.random.default_rng(index).integers(0, 256, (side, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/more/{index}.png")
    (folder / "photos" / "more" / "5-cut.png").write_bytes(b"\x89PNG\r\n\x1a\n cut")
    sizes: list[int] = []
    real = inference.maps_and_presence

    def watched(model, images, *rest, **more):  # noqa: ANN001, ANN202
        sizes.append(len(images))
        return real(model, images, *rest, **more)

    monkeypatch.setattr(inference, "maps_and_presence", watched)
    results = {}
    for batch in ("1", "3"):
        sizes.clear()
        code, out, _ = run(
            *("heatmap", "photos/more", "-p", "cat", "dog", "--size", "32", "--arrays", "--json"),
            *("--batch", batch, "-o", batch),
        )
        assert code == 1
        entries = [json.loads(line) for line in out.splitlines()]
        order = [
            "0.png",
            "1.png",
            "2.png",
            "3.png",
            "4.png",
            "5-cut.png",
            "5.png",
            "6.png",
            "a.png",
        ]
        assert [Path(entry["input"]).name for entry in entries] == order
        results[batch] = [np.load(each["arrays"])["maps"] for each in entries if "arrays" in each]
        assert sizes == ([1] * 8 if batch == "1" else [3, 2, 2, 1])
    for one, other in zip(*results.values(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


def test_what_fails_while_writing_ends_the_command(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gem_lite.pictures.writers.replace_file", full)
    code, out, err = run("heatmap", "photos", "--prompts", "cat")
    assert (code, out) == (2, "") and "No space left" in err and len(err.splitlines()) == 1


def test_formats_that_need_a_folder(run: Run, folder: Path) -> None:
    """Nothing else is written in their place."""
    for command, kind in (("segment", "coco"), ("heatmap", "npz")):
        code, out, err = run(command, "photos/a.png", "-p", "cat", "--format", kind, "-o", "-")
        assert (code, out) == (2, "") and f"--format {kind} needs a folder" in err


def test_formats_of_both_commands(run: Run, folder: Path) -> None:
    """What `--format` takes is what there is, and each leaves its files; sheets are as before."""
    assert list(FORMATS) == list(segment.FORMATS) and list(MAP_FORMATS) == list(heatmap.FORMATS)
    words = ["-p", "cat", "remote control"]
    assert run("heatmap", "photos/a.png", *words, "-o", "alone")[0] == 0
    code, out, _ = run(
        *("heatmap", "photos/a.png", *words, "--format", *heatmap.FORMATS, "--arrays", "--json")
    )
    entry = json.loads(out)
    assert code == 0 and entry["output"] == entry["sheet"] == str(Path("heatmaps", "a.png"))
    assert entry["arrays"] == entry["npz"] == str(Path("heatmaps", "a.npz"))
    assert Path("heatmaps/a.png").read_bytes() == Path("alone/a.png").read_bytes()
    maps = np.load(entry["npz"])["maps"]
    for kind in ("overlays", "maps"):
        files = sorted(Path(entry[kind]).iterdir())
        assert [path.name for path in files] == ["01-cat.png", "02-remote_control.png"]
    with Image.open("heatmaps/maps/a/02-remote_control.png") as picture:
        grey = np.asarray(picture)
    assert grey.shape == (40, 60) and (grey.min(), grey.max()) == (0, 255)
    row, column = divmod(int(maps[1].argmax()), maps.shape[2])
    near = grey[row * 40 // maps.shape[1], column * 60 // maps.shape[2]]
    assert near > 200  # the place of the highest cosine is white
    code, out, _ = run("segment", "photos/a.png", *words, "--format", *segment.FORMATS, "--json")
    entry = json.loads(out)
    assert code == 0 and all(Path(entry[kind]).exists() for kind in segment.FORMATS)


def test_sheets_are_small_and_overlays_are_not(folder: Path, run: Run) -> None:
    Image.new("RGB", (900, 600)).save("photos/large.png")
    words = ("-p", "cat", "remote control", "--size", "32")
    assert run("heatmap", "photos/large.png", *words, "-o", "alone")[0] == 0
    asked = ("--format", "sheet", "overlays", "-o", "both")
    assert run("heatmap", "photos/large.png", *words, *asked)[0] == 0
    with Image.open("alone/large.png") as alone, Image.open("both/large.png") as both:
        assert 2 * 400 < alone.width < 1000 and 2 * 900 < both.width < 2000
    sizes = [Image.open(path).size for path in sorted(Path("both/overlays/large").iterdir())]
    assert len(sizes) == 2 and all(width == 900 for width, _ in sizes)


@pytest.mark.parametrize("name", ["heatmap", "segment"])
def test_threads_leave_pytorch_alone(
    name: str, folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What reads and writes computes nothing with PyTorch, which would start more threads there."""
    operators: set[str] = set()

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(
            self, operator: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            operators.add(operator.overloadpacket.__name__)
            return operator(*args, **(kwargs or {}))

    monkeypatch.setattr(
        pictures,
        "ThreadPoolExecutor",
        partial(ThreadPoolExecutor, initializer=lambda: Seen().__enter__()),
    )
    formats = heatmap.FORMATS if name == "heatmap" else segment.FORMATS
    done = run(name, "photos/a.png", "-p", "cat", "dog", "--format", *formats, "--json")
    assert done[0] == 0
    views = {"detach", "unbind", "select", "alias", "lift_fresh"}
    assert operators and operators <= views | {"to", "resolve_conj", "resolve_neg"}  # do nothing
