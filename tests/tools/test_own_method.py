"""A method of one's own: the example, a file by its path, a file in `methods/`; where it shows."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small import random_images, small_model

import gem_lite
from gem_lite.checkpoints.ours import read_header
from gem_lite.method.base import Method
from gem_lite.tools.cli import main
from gem_lite.tools.settings import asked_method, parsed_method

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "own_method.py"
MODEL = ["--model", "tiny-emoji", "--pretrained", "v1"]
Run = Callable[..., str]

# As a file of `methods/` is written.
INSIDE = '''
"""One of one's own."""
from dataclasses import dataclass
from typing import ClassVar
from ..base import Heads, Method, attend

@dataclass(frozen=True, kw_only=True)
class Values(Method):
    """Values: v-v attention in the last blocks."""

    name: ClassVar[str] = "values"
    paper: ClassVar[str] = "none yet"
    blocks: int = 3

    def attention(self, heads: Heads):
        """softmax(v v^T) v."""
        return attend(heads.v, heads.v, heads.v)
'''

# In a copy of the package with that file: everywhere that takes a method, and nothing registered.
EVERYWHERE = """
import json, sys
from pathlib import Path
import numpy as np
from PIL import Image
import gem_lite
from gem_lite.tools.app.engine import Engine
from gem_lite.tools.app.limits import Limits
from gem_lite.tools.app.question import read_question
from gem_lite.tools.demo import DEMO_PICTURES
from gem_lite.tools.cli import main

assert Path(gem_lite.__file__).parent.parent == Path.cwd()
assert "values" in [each.name for each in gem_lite.methods()]
model = gem_lite.create_gem_model("tiny-emoji", "v1", method="values", settings={"blocks": 2})
gem_lite.save(model, "saved.safetensors")
again = gem_lite.create_gem_model("tiny-emoji", "saved.safetensors")
assert again.method == model.method and again.header.method == "values"
options = ["--model", "tiny-emoji", "--pretrained", "v1", "--device", "cpu", "--method", "values"]
assert main(["bench-quality", "--count", "2", *options]) == 0
picture = str(Path("weights") / "demo.png")
assert main(["heatmap", picture, "-p", "fish", "--json", *options]) == 0
assert main(["segment", picture, "-p", "fish", "--json", *options, "--set", "blocks=2"]) == 0
for folder in ("images", "labels"):
    Path("data", folder).mkdir(parents=True)
Image.open(picture).convert("RGB").save("data/images/a.png")
Image.fromarray(np.ones((256, 256), np.uint8)).save("data/labels/a.png")
Path("data/names.txt").write_text("background\\nfish\\n")
assert main(["evaluate", "--dataset", "folder", "--root", "data", "--names", "data/names.txt",
             "--output", "result", "--protocol", "gem", "--square", "64", *options]) == 0
assert json.loads(Path("result/result.json").read_text())["method"] == "values"
engine = Engine("tiny-emoji", "v1", limits=Limits())
assert "values" in [each["name"] for each in engine.about()["methods"]]
asked = {"prompts": ["fish"], "example": DEMO_PICTURES[0], "methods": ["values", "gem"]}
asked["model"] = "tiny-emoji v1"
answer = engine.answer(read_question(asked, Limits()))
assert [each["name"] for each in answer["methods"]] == ["values", "gem"]
assert answer["methods"][0]["scores"] != answer["methods"][1]["scores"]
"""


def test_the_example_is_short() -> None:
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) <= 40


@torch.no_grad()
def test_the_example_as_an_object() -> None:
    method, settings = asked_method(f"{EXAMPLE}:blocks=2")
    assert isinstance(method, Method) and method.blocks == 2 and not settings
    model = small_model()
    other = model.with_method(method)
    images = random_images(2, 40, 48)
    assert not torch.allclose(other.encode_image(images).gem, model.encode_image(images).gem)
    # Its attention: softmax(s (q q^T + k k^T)).
    (state,) = model.network.block_states(images, [3])
    scores = state.q @ state.q.mT + state.k @ state.k.mT
    expected = (2 * scores / state.q.shape[-1] ** 0.5).softmax(dim=-1) @ state.v
    heads: Any = state
    torch.testing.assert_close(method.attention(heads), expected, rtol=0, atol=1e-5)
    made = gem_lite.create_gem_model("tiny-emoji", "v1", method=method)
    assert made(torch.zeros(1, 3, 64, 64), ["cat"]).shape == (1, 1, 64, 64)
    assert "method='own'" in repr(made)


def test_the_example_in_the_commands(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ["clip", str(EXAMPLE), f"{EXAMPLE}:blocks=1,sharpness=3"]
    assert main(["bench-quality", "--count", "2", "--json", *MODEL, "--method", *rows]) == 0
    found = json.loads(capsys.readouterr().out)["methods"]
    assert [row["name"] for row in found[:3]] == rows
    assert found[1]["miou"] != found[0]["miou"] and found[1]["miou"] != found[2]["miou"]
    shutil.copy(ROOT / "weights" / "demo.png", tmp_path / "demo.png")
    monkeypatch.chdir(tmp_path)
    heatmap = ["heatmap", "demo.png", "-p", "fish", "--json", "--device", "cpu", *MODEL]
    assert main([*heatmap, "--method", str(EXAMPLE), "--set", "blocks=4"]) == 0
    entry = json.loads(capsys.readouterr().out)
    assert entry["method"]["name"] == "own" and entry["method"]["blocks"] == 4


def test_the_method_is_in_results(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(ROOT / "weights" / "demo.png", tmp_path / "demo.png")
    monkeypatch.chdir(tmp_path)
    for command in ("heatmap", "segment"):
        base = [command, "demo.png", "-p", "fish", "--json", "--device", "cpu", *MODEL]
        assert main([*base, "--method", "naclip:std=3"]) == 0
        method = json.loads(capsys.readouterr().out)["method"]
        assert (method["name"], method["std"], method["residual"]) == ("naclip", 3, False)
        assert main([*base, "--skip-existing", "-o", "plain", "--plain"]) == 0
        assert json.loads(capsys.readouterr().out)["method"] == {"name": "clip"}


def test_files_that_are_no_method(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "wrong.py"
    base = ["bench-quality", "--count", "1", *MODEL, "--method"]
    for text, more, message in (
        (None, "", "there is no such file"),
        ("A = 1\n", "", "0 subclasses of Method; expected one"),
        (INSIDE, ":std=3", "'values' has no setting 'std'"),
        (INSIDE, ":blocks=-1", "blocks is -1; expected 0 or more"),
        (INSIDE, ":residual=3", "residual is 3; expected true or false"),
        ("import nothing_of_that_name\n", "", "No module named 'nothing_of_that_name'"),
        ("def broken(:\n", "", "wrong.py, line 1"),
        ("1 / 0\n", "", "division by zero"),
    ):
        if text is not None:
            path.write_text(text, encoding="utf-8")
        assert main([*base, f"{path}{more}"]) == 2, text
        err = capsys.readouterr().err
        assert message in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("naclip:std=" + "[" * 100_000, "[[["),
        ("naclip:std=1e-300", "std is 1e-300; expected a number in [0.0001, 10000]"),
        ("gem:inv_temp=1e308", "inverse temperature is 1e+308; expected a number in"),
        ("resclip:rcs=[2.0,1e300]", "rcs is 1e+300; expected"),
        ("sc_clip:at=[9,4,4,99],beta=0.3", "block 99"),
    ],
)
def test_settings_that_would_make_no_map(
    text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = str(ROOT / "weights" / "demo.png")
    assert main(["heatmap", picture, "-p", "fish", *MODEL, "--method", text]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line and len(line) < 1000


def test_lists_among_settings() -> None:
    name, settings = parsed_method("sc_clip:at=[9,4,4,10],beta=0.3,positions=bicubic")
    assert (name, settings["at"], settings["beta"]) == ("sc_clip", [9, 4, 4, 10], 0.3)


def test_a_file_never_runs_a_file(tmp_path: Path) -> None:
    """Only who types a command names code to run: no name in a file's header, no name of a call."""
    trap = tmp_path / "trap.py"
    trap.write_text("raise SystemExit('ran')\n", encoding="utf-8")
    for name in (str(trap), "trap.py", "../trap"):
        with pytest.raises(ValueError, match="unknown method"):
            gem_lite.create_gem_model("tiny-emoji", "v1", method=name)


def test_own_methods_are_not_in_headers(tmp_path: Path) -> None:
    """A name that only looks like one of ours would make a file that cannot be loaded."""
    path = tmp_path / "inside.py"
    path.write_text(INSIDE.replace('"values"', '"naclip"'), encoding="utf-8")
    method, _ = asked_method(str(path))
    assert isinstance(method, Method) and method.name == "naclip"
    model = gem_lite.create_gem_model("tiny-emoji", "v1", method=method)
    gem_lite.save(model, tmp_path / "a.safetensors")
    header = read_header(tmp_path / "a.safetensors")
    assert header is not None and header.method == "gem"
    other = gem_lite.create_gem_model("tiny-emoji", "v1", method="naclip", settings={"std": 3.0})
    gem_lite.save(other, tmp_path / "b.safetensors")
    header = read_header(tmp_path / "b.safetensors")
    assert header is not None and header.method == "naclip" and header.settings["std"] == 3.0
    again = gem_lite.create_gem_model("tiny-emoji", tmp_path / "b.safetensors")
    assert again.method == other.method


def test_a_file_in_the_folder_is_everywhere(tmp_path: Path) -> None:
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "gem_lite", tmp_path / "gem_lite", ignore=ignore)
    for folder in ("tokenizer", "weights", "examples/scenes"):
        (tmp_path / folder).parent.mkdir(exist_ok=True)
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "gem_lite" / "method" / "methods" / "values.py").write_text(INSIDE.lstrip())
    command = [sys.executable, "-c", EVERYWHERE]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| values | " in done.stdout and '"name": "values"' in done.stdout
