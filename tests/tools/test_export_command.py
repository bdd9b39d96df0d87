"""`gem-lite export`, and the example that runs its file without PyTorch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small import tracing

import gem_lite
from gem_lite.tools.cli import main

pytestmark = tracing

ROOT = Path(__file__).parents[2]
SHALLOW = ["--gem-depth", "2"]  # traced sooner
FORMAT = ["--format", "maps"]
PICTURE = str(ROOT / "weights" / "demo.png")


@pytest.fixture(scope="module")
def model(weights: Path) -> list[str]:
    """The arguments that name the small random model."""
    return ["--model", "small", "--pretrained", str(weights)]


# Packages that a program around an exported file does not have.
WITHOUT_TORCH = """
import runpy, sys
for name in ("torch", "gem_lite", "onnx", "einops", "safetensors"):
    sys.modules[name] = None
program, *sys.argv = sys.argv[1:]
sys.argv.insert(0, program)
runpy.run_path(program)
"""


def test_the_example_gives_the_same_pictures(
    model: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An image of 240 x 320 pixels, so that heights and widths cannot be taken for each other."""
    monkeypatch.chdir(tmp_path)
    words = ["fish", "drum"]
    Image.open(PICTURE).convert("RGB").resize((320, 240)).save("picture.png")
    size = ["--size", "64"]  # the model's own, which heatmap takes by itself
    assert main(["export", "maps.onnx", *model, *SHALLOW, *size, "-p", *words, "--json"]) == 0
    out, err = capsys.readouterr()
    said = json.loads(out)
    assert said["output"] == "maps.onnx" and said["words"] == words and err == ""
    assert said["bytes"] == Path("maps.onnx").stat().st_size
    program = str(ROOT / "examples" / "run_exported.py")
    command = [sys.executable, "-c", WITHOUT_TORCH, program, "maps.onnx", "picture.png", "theirs"]
    subprocess.run(command, check=True)
    assert main(["heatmap", "picture.png", *model, *SHALLOW, *FORMAT, "-p", *words]) == 0
    theirs = sorted(Path("theirs").glob("*.png"))
    ours = {path.stem.split("-")[-1]: path for path in Path().glob("heatmaps/maps/picture/*.png")}
    assert [path.stem for path in theirs] == sorted(words) and len(ours) == 2
    for path in theirs:
        a, b = (np.asarray(Image.open(each), dtype=int) for each in (path, ours[path.stem]))
        assert a.shape == b.shape == (240, 320)
        assert np.abs(a - b).max() <= 1 and (a == b).mean() >= 0.999
        assert np.ptp(a) == 255


def test_what_is_said(model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "labels.pt2"
    arguments = ["export", str(path), *model, "-p", "fish", "drum|drum kit", "--outputs", "labels"]
    assert main([*arguments, "--size", "64", "96", "--gem-depth", "2"]) == 0
    out, _ = capsys.readouterr()
    assert out.startswith(f"{path}: ") and "labels of 2 words, pictures of 64 x 96 (h x w)" in out


NEW_WORDS = """
import json, sys
for name in ("torch", "safetensors", "einops", "PIL", "onnx"):
    sys.modules[name] = None
import numpy, onnxruntime
from gem_lite.tokenizer import Tokenizer
session = onnxruntime.InferenceSession("text.onnx", providers=["CPUExecutionProvider"])
about = json.loads(session.get_modelmeta().custom_metadata_map["gem_lite"])
tokenizer = Tokenizer(vocab_size=about["vocab"], context_length=about["context"])
for word in sys.argv[1:]:
    text = tokenizer.encode(about["templates"][0].replace("{}", word))
    tokens = numpy.array([[tokenizer.start_id, *text, tokenizer.end_id]])
    print(json.dumps(session.run(None, {"tokens": tokens})[0][0].tolist()))
"""


def test_new_words_without_torch(
    model: list[str], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text tower's file and our tokenizer, which needs ftfy and regex only."""
    monkeypatch.chdir(tmp_path)
    assert main(["export", "text.onnx", *model, "--outputs", "text"]) == 0
    words = ["fish", "a very big drum"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", NEW_WORDS, *words]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    theirs = torch.tensor([json.loads(line) for line in done.stdout.splitlines()])
    with torch.no_grad():
        ours = gem_lite.create_gem_model("small", weights).encode_text(words)[0]
    assert theirs.shape == ours.shape
    assert (theirs - ours).abs().max() <= 1e-4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.jit"], "ends neither in .pt2 nor in .onnx"),
        (["x.pt2", "--outputs", "maps"], "outputs is 'maps', which needs words"),
        (["x.pt2", "-p", "a", "--size", "1", "2", "3"], "--size has 3 numbers"),
        (["x.pt2", "-p", "a", "--size", "2"], "at least one patch"),
        (["x.pt2", "-p", "a", "--background", "wall"], "for 'labels'"),
        (["none/x.pt2"], "no folder none"),
        (["x.pt2", "-p", "a", "--method", "legrad"], "method 'legrad' (of any size) cannot be"),
    ],
)
def test_mistakes(
    arguments: list[str],
    message: str,
    model: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", *arguments, *model]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and len(err.splitlines()) == 1, err
    assert not list(tmp_path.iterdir())
