"""What all commands share: inputs, skipped files, JSON, default model, examples, interruption."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import small_model, tracing

import gem_lite as gem
from gem_lite.checkpoints.known import default_file_name, find_file, find_row
from gem_lite.inference import Call
from gem_lite.method.methods.gem import GEMConfig
from gem_lite.tools import cli
from gem_lite.tools import progress as progress_module
from gem_lite.tools.cli import COMMANDS, main
from gem_lite.tools.commands import export, vendor
from gem_lite.tools.commands import model as model_options
from gem_lite.tools.commands.console import one_line, say, tell
from gem_lite.tools.demo import demo_picture
from gem_lite.tools.progress import FIRST_LINE, FIRST_STEP, Progress

ROOT = Path(__file__).parents[2]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands run: pictures, one of them cut short, and a text called .png."""
    random = np.random.default_rng(0)
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    for name in ("a.png", "b.jpg", "more/c.webp", ".hidden.png"):
        pixels = random.integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photos / name)
    (photos / "cut.png").write_bytes((photos / "a.png").read_bytes()[:900])
    (photos / "text.png").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(weights: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(command: str, *arguments: str) -> tuple[int, str, str]:
        code = main([command, *arguments, "--pretrained", str(weights)])
        return code, *capsys.readouterr()

    return call


# ---- inputs


@pytest.mark.parametrize("command", ["heatmap", "segment"])
def test_bad_files_are_told_and_the_rest_is_done(folder: Path, run: Run, command: str) -> None:
    code, out, err = run(command, "photos", "none.png", "--prompts", "cat", "--output", "out")
    assert code == 1
    assert out.split() == [str(Path("out/a.png")), str(Path("out/b.png"))]
    lines = err.splitlines()
    assert lines[0] == "gem-lite: no picture at none.png"
    assert re.match(r"gem-lite: photos.cut\.png cannot be read as a picture \(.+\)$", lines[1])
    assert re.match(r"gem-lite: photos.text\.png is not a picture that Pillow can read$", lines[2])
    assert lines[3] == "gem-lite: 3 of 5 inputs failed" and len(lines) == 4
    assert set(os.listdir("out")) - {"overlay"} == {"a.png", "b.png"}
    if command == "segment":
        assert set(os.listdir("out/overlay")) == {"a.png", "b.png"}


def test_all_fail(folder: Path, run: Run) -> None:
    code, out, err = run("heatmap", "photos/text.png", "--prompts", "cat")
    assert (code, out) == (1, "") and len(err.splitlines()) == 1


def test_a_picture_that_is_too_much_for_the_model_is_skipped(
    folder: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (20_000, 10)).save("photos/a-long.png")
    code, out, err = run(
        "heatmap", "photos/a-long.png", "photos/a.png", "--prompts", "cat", "--size", "64"
    )
    assert code == 1 and out.split() == [str(Path("heatmaps/a.png"))]
    assert "a-long.png: 20000 x 10 pixels at a short side of 64 pixels is too large" in err

    # Memory that runs out, as torch says it.
    real = Call.images

    def greedy(self: Call, images: torch.Tensor) -> torch.Tensor:
        if len(images) > 1 or images.shape[-1] == 72:  # a.png's at --size 48
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return real(self, images)

    monkeypatch.setattr(Call, "images", greedy)
    Image.new("RGB", (40, 40)).save("photos/square.png")
    Image.new("RGB", (40, 40)).save("photos/square-2.png")
    pictures = ["photos/a.png", "photos/square.png", "photos/square-2.png"]
    # A batch that is too much is tried one by one.
    code, out, err = run("heatmap", *pictures, "--prompts", "cat", "--size", "48", "--batch", "2")
    assert code == 1 and f"{Path('photos/a.png')}: DefaultCPUAllocator" in err
    assert out.split() == ["heatmaps/square.png", "heatmaps/square-2.png"]


def test_an_orientation_is_honoured(folder: Path, run: Run) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = Image.open("photos/a.png")
    picture.save("turned.png", exif=exif)
    picture.transpose(Image.Transpose.ROTATE_270).save("upright.png")
    for command in ("heatmap", "segment"):
        assert (
            run(command, "turned.png", "upright.png", "--prompts", "cat", "--output", command)[0]
            == 0
        )
        turned, upright = (Image.open(f"{command}/{name}.png") for name in ("turned", "upright"))
        assert turned.size == upright.size
        assert np.array_equal(np.asarray(turned), np.asarray(upright))
    assert Image.open("segment/turned.png").size == (40, 60)


# ---- what a program reads


def test_json_of_heatmap(folder: Path, run: Run, weights: Path) -> None:
    arguments = ["photos/a.png", "photos/text.png", "--prompts", "cat", "dog", "--json", "--arrays"]
    code, out, _ = run("heatmap", *arguments)
    assert code == 1
    first, second = map(json.loads, out.splitlines())
    assert second == {
        "input": str(Path("photos/text.png")),
        "error": f"{Path('photos/text.png')} is not a picture that Pillow can read",
    }
    model, transform = gem.create_model_and_transforms("small", weights)
    with torch.no_grad():
        maps = model(transform(Image.open("photos/a.png"))[None], ["cat", "dog"], False)[0]
    with np.load(first["arrays"]) as arrays:
        assert arrays["prompts"].tolist() == ["cat", "dog"]
        np.testing.assert_allclose(arrays["maps"], maps.numpy(), atol=1e-6)
    for figures, cosines in zip(first["prompts"], maps, strict=True):
        assert figures["highest_cosine"] == pytest.approx(float(cosines.max()), abs=2e-6)
        row, column = divmod(int(cosines.argmax()), 64)
        at = figures["highest_at"]
        assert (at["x"], at["y"]) == (int((column + 0.5) * 60 / 64), int((row + 0.5) * 40 / 64))
    assert Path(first["output"]).is_file()


def test_segment_writes_the_labels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Pixels of the picture are 0 = background and k + 1 = class k, at the picture's size."""
    picture, _ = demo_picture()
    picture.resize((120, 90)).save("demo.png")
    words = ["fish", "goldfish", "drum", "elephant", "background", "wall"]
    arguments = ["demo.png", "--prompts", "fish|goldfish", "drum", "elephant"]
    arguments += ["--background", "background", "wall", "--scale", "30", "--json"]
    assert main(["segment", *arguments, "--model", "tiny-emoji", "--device", "cpu"]) == 0
    entry = json.loads(capsys.readouterr().out)
    written = Image.open(entry["output"])
    assert (written.mode, written.size) == ("P", (120, 90))
    labels = np.asarray(written)
    model, transform = gem.create_model_and_transforms("tiny-emoji", "v2")
    with torch.no_grad():
        cosines = model(transform(Image.open("demo.png"))[None], words, normalize=False)
        cosines = torch.nn.functional.interpolate(cosines, (90, 120), mode="bilinear")[0].numpy()
    scores = np.stack([np.maximum(cosines[0], cosines[1]), *cosines[2:]])
    best = scores.argmax(axis=0)
    expected = np.where(best < 3, best + 1, 0)
    assert (labels == expected).mean() > 0.999 and len(np.unique(expected)) >= 3
    assert [each["name"] for each in entry["classes"]] == ["background", "fish", "drum", "elephant"]
    for each in entry["classes"]:
        assert each["share"] == pytest.approx((labels == each["label"]).mean(), abs=1e-6)
    with Image.open(entry["overlay"]) as overlay:
        assert overlay.mode == "RGB" and overlay.height > 90


SEGMENT_MISTAKES = {
    "a stride alone": (["--stride", "8"], "without --window"),
    "a wide stride": (["--stride", "40", "--window", "32"], "larger than window"),
    "a small window": (["--window", "5"], "expected at least one patch"),
    "a window without pixels": (["--window", "0"], "--window is 0; expected at least 1"),
    "a window beyond memory": (["--size", "4096", "--window", "100000"], "--window is 100000"),
    "too many windows": (["--size", "20000", "--window", "64"], "windows, too many for memory"),
    "a size beyond memory": (["--size", "20000"], "a short side of 20000 pixels is too large"),
    "a format": (["--format", "tiff"], "invalid choice: 'tiff'"),
    "background": (["--background", " "], "--background has an empty word"),
    "threshold": (["--threshold", "1.5"], "expected a probability"),
    "scale": (["--scale", "-1"], "expected a number above 0"),
    "a template": (["--template", "no place"], "has no {} where the word goes"),
}


@pytest.mark.parametrize(("options", "message"), SEGMENT_MISTAKES.values(), ids=SEGMENT_MISTAKES)
def test_mistakes_of_segment(
    folder: Path, run: Run, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code, out, err = run("segment", "photos/a.png", "--prompts", "cat", *options)
    except SystemExit as left:
        code, (out, err) = left.code, capsys.readouterr()
    assert (code, out) == (2, "") and message in err and len(err.splitlines()) == 1


def test_segment_with_more_classes_than_a_palette_has(folder: Path, run: Run) -> None:
    names = [f"thing {index}" for index in range(300)]
    assert run("segment", "photos/a.png", "--prompts", *names)[0] == 0
    with Image.open("segments/a.png") as picture:
        assert picture.mode.startswith("I") and np.asarray(picture).max() <= 300


def test_segment_with_windows(folder: Path, run: Run) -> None:
    assert run("segment", "photos/a.png", "--prompts", "cat", "--window", "32")[0] == 0


# ---- the model


def test_the_default_model(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    args = model_options.argparse.Namespace(model=None, pretrained=None)
    here = folder / "weights"
    here.mkdir()
    monkeypatch.setenv("GEM_LITE_WEIGHTS", str(here))
    row = find_row("ViT-B/16", "openai")
    if find_file(row) is None:  # not on the machine that runs the test
        assert model_options.chosen_model(args) == ("tiny-emoji", "v2")
        warning, advice = capsys.readouterr().err.splitlines()
        assert "WARNING: tiny-emoji v2" in warning and "drawings only" in warning
        assert "gem-lite models --fetch ViT-B/16" in advice and "--model" in advice
        assert (
            f"put ViT-B-16.pt, carried over by hand, into {folder / 'cache' / 'gem_lite'}" in advice
        )
    (here / default_file_name(row)).touch()
    assert model_options.chosen_model(args) == ("ViT-B/16", "openai")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ViT-B/16 openai" in line


def test_a_file_says_its_model(folder: Path, run: Run, weights: Path) -> None:
    code, _, err = run("heatmap", "photos/a.png", "--prompts", "cat")  # no --model
    assert (code, err) == (0, "")


def test_device_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = model_options.chosen_device
    for cuda, mps, expected in ((1, 1, "cuda"), (1, 0, "cuda"), (0, 1, "mps"), (0, 0, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=cuda: bool(there))
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda there=mps: bool(there))
        assert chosen("auto") == expected
        assert (chosen("cuda:1"), chosen("1")) == ("cuda:1", "cuda:1")
        if cuda or mps:
            assert chosen("gpu") == expected
        if mps:
            assert chosen("mps") == "mps"
        else:
            with pytest.raises(ValueError, match="finds no card of Apple's"):
                chosen("mps")
    with pytest.raises(ValueError, match="finds neither CUDA nor MPS"):
        chosen("gpu")


# ---- help


def examples(name: str) -> list[str]:
    text = cli.example_lines(COMMANDS[name].EXAMPLES)
    return [line.strip() for line in text.splitlines() if line.startswith("  ")]


# They fetch, serve until they are stopped (test_app.py), or need a data set (test_evaluate.py).
NOT_RUN = (
    "convert --model ViT-B/16 --pretrained openai",
    "models --fetch ViT-B/16",
    "app",
    "app --port 0 --open",
    "evaluate --dataset voc21 --root VOCdevkit --protocol clearclip",
    "evaluate --dataset folder --root photos --protocol gem --limit 100",
)


@pytest.mark.parametrize("line", [line for name in COMMANDS for line in examples(name)])
def test_examples_of_the_help_run(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    program, *arguments = shlex.split(line)
    assert program == "gem-lite"
    if " ".join(arguments) in NOT_RUN:
        assert cli.command_parser(arguments[0]).parse_intermixed_args(arguments[1:])
        return
    if arguments[0] == "export":
        if tracing.args[0]:
            pytest.skip(tracing.kwargs["reason"])
        # Traced sooner; test_export_command.py exports a model that these lines may name.
        shallow = small_model(GEMConfig(blocks=1, iters=1), layers=1)
        monkeypatch.setattr(export, "load_model", lambda args: (shallow, None))
    if arguments[0] == "vendor":  # it imports the copy; so do those of test_vendoring.py
        monkeypatch.setattr(vendor, "check", lambda copy, part: None)
    if "bench-quality" in arguments:
        arguments[arguments.index("--count") + 1] = "2"
    arguments = [str(ROOT / each) if (ROOT / each).is_file() else each for each in arguments]
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 0, capsys.readouterr().err


# ---- what is said


def test_one_line() -> None:
    assert one_line("a\nb\t c\x1b[31m\x00") == "a b c\ufffd[31m\ufffd"
    long = one_line("begin " + "x" * 1_000_000 + " end")
    assert len(long) < 420 and long.startswith("begin ") and long.endswith(" end")


def test_output_wipes_the_line_of_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(8, "pictures")
    progress.show(0, "a.png")
    say("output")
    tell("a message")
    out, err = capsys.readouterr()
    assert out == "output\n" and re.fullmatch(r"0/8 [^\r]*\r +\rgem-lite: a message\n", err)


def test_a_file_name_cannot_write_to_the_terminal(folder: Path, run: Run) -> None:
    code, _, err = run("heatmap", "\x1b]0;title\x07.png", "--prompts", "cat")
    assert code == 2 and "\x1b" not in err and "\x07" not in err


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes")
def test_a_file_name_that_is_no_text(folder: Path, run: Run) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (folder / name).write_bytes((folder / "photos" / "a.png").read_bytes())
    code, out, err = run("heatmap", name, "--prompts", "cat", "--json")
    assert (code, err) == (0, "")
    assert Path(json.loads(out)["output"]).is_file()
    code, out, _ = run("heatmap", name, "--prompts", "cat")
    assert code == 0 and out.strip() == str(Path("heatmaps/caf?.png"))


def test_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Plain lines, at most one in ten seconds, where standard error is no terminal."""
    monkeypatch.setattr(progress_module, "FIRST_LINE", FIRST_LINE)
    clock = iter([0.0, 1.0, 11.0, 12.0, 22.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    progress = Progress(8, "pictures")
    for done in range(4):
        progress.show(done, f"{done}.png")
    progress.clear()
    assert capsys.readouterr().err.splitlines() == [
        "gem-lite: 1/8 pictures, 1 min 17 s left: 1.png",
        "gem-lite: 3/8 pictures, 37 s left: 3.png",
    ]


def test_progress_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter([0.0, 1.0, 1.05, 100.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress(8, "pictures")
    for done in range(1, 4):
        progress.show(done, "x" * 100)
    progress.clear()
    parts = [part for part in capsys.readouterr().err.split("\r") if part.strip()]
    assert [part[:12] for part in parts] == ["1/8 pictures", "3/8 pictures"]
    assert all(len(part) < 80 for part in parts)


def test_progress_of_steps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unlike steps: no time left is told, and none waits for ten seconds."""
    monkeypatch.setattr(progress_module, "FIRST_STEP", FIRST_STEP)
    clock = iter([0.0, 0.0, 2.5, 3.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    progress = Progress(4, "steps", even=False)
    for done, step in enumerate(("reading", "checking", "writing")):
        progress.show(done, step)
    assert capsys.readouterr().err.splitlines() == ["gem-lite: 1/4 steps: checking"]


def test_progress_of_a_conversion(
    folder: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["convert", "--model", "small", "--pretrained", "x", "--source", str(weights)]
    arguments += ["--output", "x.safetensors", "--json"]
    steps = ["reading", "checking names and hash", "writing x.safetensors", "comparing features"]
    monkeypatch.setattr(progress_module, "FIRST_STEP", 0.0)
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    lines = [f"gem-lite: {done}/4 steps: {step}" for done, step in enumerate(steps)]
    assert [line.replace(f" {weights}", "") for line in err.splitlines()] == lines
    assert json.loads(out)["output"] == "x.safetensors"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main([*arguments, "--source", "photos/text.png"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("0/4 steps: reading photos/text.png\r")
    assert "\n" not in err.rpartition("\r")[0]  # the line is wiped before the mistake is told


# ---- bench-quality


def test_quality_as_json_and_its_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench-quality", "--count", "2", "--seed", "3"]
    assert main(arguments) == 0
    table, err = capsys.readouterr()
    assert err == ""
    monkeypatch.setattr(progress_module, "FIRST_LINE", 0.0)
    assert main([*arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if " collages" in line]
    # Two styles of drawings, each scored by GEM, by plain CLIP and on single things.
    assert [line.split()[1] for line in lines] == [
        f"{done}/12" for done in (0, 2, 4, 6, 6, 8, 10, 12)
    ]
    assert lines[1].endswith("trained styles") and lines[-1].endswith("unseen style")
    found = json.loads(out)
    assert (found["model"], found["count"], found["seed"]) == ("tiny-emoji", 2, 3)
    assert found["gem"]["blocks"] == 5
    rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert list(found["figures"]) == rows[0][1:]
    for place, column in enumerate(found["figures"].values(), start=1):
        cells = {f"{100 * value:.1f}" for value in column.values()}
        assert cells == {row[place] for row in rows[1:]}


# ---- interruption


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_ctrl_c_leaves_no_half_file(folder: Path, weights: Path) -> None:
    """Interrupted while it writes; what is there is whole, and the next run succeeds."""
    picture = Image.fromarray(
        np.random.default_rng(1).integers(0, 256, (300, 400, 3), dtype=np.uint8)
    )
    (folder / "many").mkdir()
    picture.save(folder / "one.png")
    for index in range(150):
        shutil.copyfile(folder / "one.png", folder / "many" / f"{index:03d}.png")
    # A shell starts what runs in its background, these tests perhaps, with Ctrl-C ignored.
    program = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        " from gem_lite.tools.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", program, "heatmap", "many", "--prompts", "cat"]
    command += ["--pretrained", str(weights)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command,
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()  # the first one is written, the second in the making
        process.send_signal(signal.SIGINT)
        process.communicate()
        assert process.returncode == 130
    written = sorted((folder / "heatmaps").iterdir())
    assert 1 <= len(written) < 150
    for path in written:
        assert not path.name.startswith("."), path
        Image.open(path).load()
