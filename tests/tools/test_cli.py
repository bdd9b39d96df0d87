"""The command line: what it writes and prints, and one line with exit code 2 for a mistake."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gem_lite as gem
from gem_lite.method.model import GEMNetwork
from gem_lite.pictures.overlays import contact_sheet
from gem_lite.pictures.sheets import word_tiles
from gem_lite.tools.cli import COMMANDS, main
from gem_lite.tools.commands import models

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command runs: three pictures in `photos/`, and a file that is none."""
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name, (h, w) in {"a.png": (40, 60), "b.jpg": (50, 30), "c.GIF": (40, 40)}.items():
        pixels = random.integers(0, 256, (h, w, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "notes.txt").write_text("no picture")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(weights: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run `heatmap` with the small model: exit code, stdout, stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        code = main(["heatmap", *arguments, "--model", "small", "--pretrained", str(weights)])
        return code, *capsys.readouterr()

    return call


Run = Callable[..., tuple[int, str, str]]


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


# ---- heatmap


def test_files_and_folders(folder: Path, run: Run) -> None:
    code, out, err = run("photos", "photos/a.png", "--prompts", "cat", "remote control")
    assert (code, err) == (0, "")
    written = ["heatmaps/a.png", "heatmaps/b.png", "heatmaps/c.png"]
    assert out.splitlines() == [str(Path(name)) for name in written]
    assert sorted(os.listdir("heatmaps")) == ["a.png", "b.png", "c.png"]
    assert size_of(Path("heatmaps/b.png"))[0] == 2 * (30 + 8) + 8


def test_a_sheet_is_what_the_library_draws(folder: Path, run: Run, weights: Path) -> None:
    words = ["cat", "dog", "tree", "sofa", "sun"]
    for name, plain, size, own in (
        *(("gem", False, 64, False), ("clip", True, 64, False)),
        *(("large", False, 96, False), ("own", False, 64, True)),
    ):
        extra = (["--plain"] if plain else []) + (["--size", "96"] if size == 96 else [])
        extra += ["--own-scale"] if own else []
        assert run("photos/a.png", "--prompts", *words, "--output", name, *extra)[0] == 0
        model, transform = gem.create_model_and_transforms("small", weights)
        if size == 96:
            transform = gem.get_gem_img_transform(96, transform.mean, transform.std)
        picture = Image.open("photos/a.png")
        with torch.no_grad():
            image = transform(picture)[None]
            maps = model(image, words, True if own else "common", return_ori=plain)[0]
            present = model.presence(image, words, return_ori=plain)[0].tolist()
        expected = contact_sheet(word_tiles(picture, words, maps, present), columns=4)
        with Image.open(folder / name / "a.png") as sheet:
            assert sheet.size == expected.size
            difference = np.abs(np.asarray(sheet).astype(int) - np.asarray(expected))
        assert difference.max() <= 1


def test_segment_adds_a_picture(folder: Path, run: Run) -> None:
    assert run("photos/a.png", "--prompts", "cat", "dog", "--output", "two")[0] == 0
    assert run("photos/a.png", "--prompts", "cat", "dog", "--output", "three", "--segment")[0] == 0
    assert size_of(Path("two/a.png"))[0] == 2 * (60 + 8) + 8
    assert size_of(Path("three/a.png"))[0] >= 3 * (60 + 8) + 8


def test_an_input_is_not_overwritten(folder: Path, run: Run) -> None:
    before = Path("photos/a.png").read_bytes()
    code, out, err = run("photos/b.jpg", "photos/a.png", "--prompts", "cat", "--output", "photos")
    assert code == 2 and out == ""
    assert "a.png" in err and "--output" in err and len(err.splitlines()) == 1
    assert Path("photos/a.png").read_bytes() == before
    assert sorted(os.listdir("photos")) == ["a.png", "b.jpg", "c.GIF", "notes.txt"]


def test_output_may_lie_deep(folder: Path, run: Run) -> None:
    code, out, _ = run("photos/a.png", "--prompts", "cat", "--output", "x/y/z")
    assert code == 0 and out.split() == [str(Path("x/y/z/a.png"))]


BAD_INPUTS: dict[str, tuple[list[str], str]] = {
    "no such file": (["none.png", "--prompts", "cat"], "no picture at none.png"),
    "a name of two lines": (["no\nne.png", "--prompts", "cat"], "no picture at no ne.png"),
    "a pattern that fits nothing": (["photos/*.bmp", "--prompts", "cat"], "no pictures match"),
    "an empty folder": (["empty", "--prompts", "cat"], "no pictures in the folder empty"),
    "an empty word": (["photos/a.png", "--prompts", "cat", " "], "--prompts has an empty word"),
    "a template without its place": (
        ["photos/a.png", "--prompts", "cat", "--template", "a photo"],
        "has no {} where the word goes",
    ),
    "output is a file": (
        ["photos/a.png", "--prompts", "cat", "--output", "photos/b.jpg"],
        "b.jpg is a file; give the name of a folder",
    ),
    "output below a file": (
        ["photos/a.png", "--prompts", "cat", "--output", "photos/b.jpg/x"],
        "b.jpg",
    ),
    "size 0": (["photos/a.png", "--prompts", "cat", "--size", "0"], "size is 0; expected at least"),
    "size below a patch": (
        ["photos/a.png", "--prompts", "cat", "--size", "5"],
        "expected at least one patch, 8 x 8",
    ),
    "a device without numbers": (
        ["photos/a.png", "--prompts", "cat", "--device", "meta"],
        "device is 'meta', which this PyTorch cannot use",
    ),
    "a device that is not built in": (
        ["photos/a.png", "--prompts", "cat", "--device", "xla"],
        "device is 'xla', which this PyTorch cannot use",
    ),
    "device": (
        ["photos/a.png", "--prompts", "cat", "--device", "tpu"],
        "device is 'tpu'; expected 'cpu'",
    ),
    "no words": (["photos/a.png"], "there are no words to look for; give --prompts"),
    "no inputs": (["--prompts", "cat"], "there are no inputs; give a picture or a folder"),
    "no file of words": (["photos/a.png", "--prompts-file", "none.txt"], "none.txt"),
    "batch": (["photos/a.png", "-p", "cat", "--batch", "0"], "--batch is 0; expected at least 1"),
    "many to standard output": (["photos", "-p", "cat", "-o", "-"], "--output - takes one picture"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUTS.values(), ids=BAD_INPUTS)
def test_mistakes(arguments: list[str], message: str, folder: Path, run: Run) -> None:
    (folder / "empty").mkdir()
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith("gem-lite: ") and message in err, err
    assert len(err.splitlines()) == 1
    assert not Path("heatmaps").exists() or os.listdir("heatmaps") == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "ViT-B/61"], "unknown model 'ViT-B/61'; nearest known models: 'ViT-B/16'"),
        (["--pretrained", "opanai"], "unknown pretrained weights 'opanai'"),
        (["--pretrained", "none.safetensors"], "no checkpoint at none.safetensors"),
        (["--model", "ViT-H/14-quickgelu", "--pretrained", "metaclip_altogether"], "plain GELU"),
    ],
)
def test_unknown_models(
    arguments: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["heatmap", "photos/a.png", "--prompts", "cat", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and len(err.splitlines()) == 1


def test_no_weights_offline(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error of a fetch is one line too, and names the url."""
    monkeypatch.setenv("GEM_LITE_MIRROR", "http://127.0.0.1:9/mirror")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    arguments = ["heatmap", "photos/a.png", "--prompts", "cat", "--model", "ViT-L/14-336"]
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and "http://127.0.0.1:9/mirror/ViT-L-14-336px.pt" in err
    assert len(err.splitlines()) == 1


# ---- the other commands


def test_models(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [tuple(line.split()[:2]) for line in lines if line.startswith("  ")]
    assert rows == gem.available_models()
    assert "ViT-B/16: 150 million parameters, photographs" in lines
    assert "tiny-emoji: 5 million parameters, drawings only" in lines
    for line in lines:
        assert ("(no commercial use)" in line) == ("-NC-" in line)
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    assert main(["models", "--local"]) == 0
    local = capsys.readouterr().out.splitlines()
    assert any(line.startswith("  tiny-emoji ") for line in local)
    if not any(line.startswith("ViT") for line in local):
        assert local[0].startswith("no model for photographs is on this machine; gem-lite models")
    assert main(["models", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["tag"]) for row in listed] == gem.available_models()
    for row in listed:
        assert row["file"] is None or Path(row["file"]).stat().st_size == row["bytes"]
        assert (row["commercial_use"] is False) == (row["licence"] == "CC-BY-NC-4.0")
        assert row["knows"] == ("drawings" if row["name"] == "tiny-emoji" else "photographs")


def test_parameters_of_models() -> None:
    """The sum of sizes is that of the network; the model in the box has a number of its own."""
    for name, config in gem.ARCHITECTURES.items():
        with torch.device("meta"):
            network = GEMNetwork(config, gem.GEMConfig())
        count = sum(each.numel() for each in network.parameters())
        assert models.parameters(name) == count / 1e6, name
    tiny = gem.create_gem_model("tiny-emoji", "v1")
    count = sum(each.numel() for each in tiny.parameters())
    assert models.parameters("tiny-emoji") == pytest.approx(count / 1e6, abs=0.05)


def test_models_fetch(
    folder: Path,
    weights: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Says where the file is; what is here already is not fetched again."""
    (folder / "here").mkdir()
    shutil.copy(weights, folder / "here" / "ViT-B-16-openai.safetensors")
    monkeypatch.setenv("GEM_LITE_WEIGHTS", str(folder / "here"))
    assert main(["models", "--fetch", "ViT-B/16"]) == 0
    assert capsys.readouterr().out.startswith(f"{folder / 'here' / 'ViT-B-16-openai.safetensors'}:")
    assert main(["models", "--fetch", "ViT-B/61"]) == 2
    assert "nearest known models" in capsys.readouterr().err


def test_convert_names_what_it_wrote(
    folder: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(weights, "source.safetensors")
    arguments = ["convert", "--model", "small", "--pretrained", "mine"]
    arguments += ["--source", "source.safetensors", "--output", "out.safetensors"]
    assert main([*arguments, "--dtype", "fp16"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("out.safetensors: ") and "quick_gelu" in out and err == ""
    assert (
        gem.create_gem_model("small", "out.safetensors").network.config.activation == "quick_gelu"
    )
    assert main([*arguments[:-4], "--source", "none.pt"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and "none.pt" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["paint"],
        ["heatmap", "a.png", "--prompts"],
        ["heatmap", "a.png", "--prompts", "cat", "--size", "big"],
        ["heatmap", "a.png", "--prompts", "cat", "--colour"],
        ["convert", "--model", "ViT-B/16"],
        ["convert", "--model", "ViT-B/16", "--pretrained", "openai", "--dtype", "fp8"],
        ["models", "all"],
    ],
    ids=" ".join,
)
def test_arguments_that_do_not_parse(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(arguments)
    out, err = capsys.readouterr()
    assert left.value.code == 2 and out == ""
    assert err.startswith("gem-lite") and len(err.splitlines()) == 1, err


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: gem-lite {command}") and "\nexamples:\n" in out


def test_the_overview_and_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["--help"], ["-h"]):
        assert main(arguments) == 0
        out, err = capsys.readouterr()
        assert out.startswith("usage: gem-lite COMMAND") and err == ""
        for name, module in COMMANDS.items():
            assert f"  {name} " in out and module.HELP in out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"gem-lite {gem.__version__}\n"
    with pytest.raises(SystemExit):
        main(["segmnt"])
    assert "'segmnt' is not a command; nearest: 'segment'" in capsys.readouterr().err


# ---- from a shell


def shell(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_as_a_module(folder: Path, weights: Path) -> None:
    arguments = ["heatmap", "photos/a.png", "--prompts", "cat"]
    model = ["--model", "small", "--pretrained", str(weights)]
    done = shell("-m", "gem_lite", *arguments, *model, cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [str(Path("heatmaps/a.png"))]
    done = shell("-m", "gem_lite", *arguments, "--model", "none", cwd=folder)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")


def in_a_shell(command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["GEM"] = f"{sys.executable} -m gem_lite"
    return subprocess.run(
        ["sh", "-c", command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@posix
def test_a_closed_pipe_is_no_traceback(folder: Path) -> None:
    done = in_a_shell("$GEM models | head -n 1", folder)
    assert done.stderr == "" and len(done.stdout.splitlines()) == 1


@posix
def test_closed_and_full_outputs(folder: Path) -> None:
    done = in_a_shell("$GEM models >&-", folder)
    assert done.returncode == 2 and "standard output is closed" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    done = in_a_shell("$GEM models 2>&-", folder)
    assert done.returncode == 0 and "tiny-emoji" in done.stdout
    assert in_a_shell("$GEM heatmap none.png -p cat 2>&-", folder).returncode == 2
    if Path("/dev/full").exists():
        done = in_a_shell("$GEM models >/dev/full", folder)
        assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    done = in_a_shell("$GEM heatmap '~nosuchuser/a.png' -p cat -o ~nosuchuser", folder)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1


@posix
def test_mistakes_need_no_torch(folder: Path) -> None:
    """None of these waits for PyTorch: told at once, and so are help and the version."""
    calls = (
        ["--version"],
        ["paint"],
        ["heatmap", "--help"],
        ["segment", "photos/a.png", "--colour"],
        ["segment", "photos/a.png", "-p", "cat", "--stride", "8"],
        ["heatmap", "none.png", "-p", "cat"],
        ["heatmap", "photos/c.GIF", "-p", "cat", "--model", "ViT-B/61"],
        ["models"],
    )
    code = "import sys; from gem_lite.tools.cli import main\n"
    code += f"for arguments in {calls!r}:\n"
    code += "    try: main(arguments)\n    except SystemExit: pass\n"
    code += "    loaded = {'torch', 'PIL.Image'} & set(sys.modules)\n"
    code += "    if loaded: sys.exit(f'LOADED {loaded} BY {arguments}')\n"
    done = shell("-c", code, cwd=folder)
    assert done.returncode == 0, done.stderr


@posix
def test_sigterm_is_told(folder: Path, weights: Path) -> None:
    for index in range(60):
        shutil.copy("photos/b.jpg", f"photos/b{index}.jpg")
    arguments = ["heatmap", "photos", "--prompts", "cat", "--pretrained", str(weights)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-m", "gem_lite", *arguments],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
        _, err = process.communicate()
    assert process.returncode == 143 and len(err.splitlines()) == 1 and "SIGTERM" in err
    assert not list(Path("heatmaps").glob(".*"))
