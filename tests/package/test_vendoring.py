"""Copies under another name and installed wheels work, with nothing around them but the core.

Each runs in a Python of its own that finds no other package.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import gem_lite
from gem_lite.tools.cli import main
from gem_lite.tools.commands import vendor as command

ROOT = Path(__file__).parents[2]

CORE = ["torch", "safetensors", "PIL", "numpy", "einops", "ftfy", "regex"]
# What the core packages themselves ask for.
THEIRS = [
    "filelock",
    "fsspec",
    "jinja2",
    "markupsafe",
    "mpmath",
    "networkx",
    "sympy",
    "torchgen",
    "typing_extensions",
    "wcwidth",
]

# Arguments: folder, name of the package, packages that there are.
GUARD = """
import sys
from importlib.machinery import BuiltinImporter, FrozenImporter, PathFinder

folder, name, *allowed = sys.argv[1:]
allowed = {*allowed, *sys.stdlib_module_names, name}

class OnlyAllowed:
    '''Finds what is allowed; to everything else it is as if it were not installed.'''

    def find_spec(self, module, path=None, target=None):
        top = module.split(".")[0]
        if top in allowed or top.startswith("_sysconfigdata"):  # the latter is Python's own
            return PathFinder.find_spec(module, path, target)

sys.meta_path[:] = [BuiltinImporter, FrozenImporter, OnlyAllowed()]
sys.path.insert(0, folder)

import importlib
from pathlib import Path

gem = importlib.import_module(name)
assert Path(gem.__file__).parent == Path(folder, name), gem.__file__
cli = importlib.import_module(name + ".tools.cli")
"""

# Makes a small model from random weights, gets its maps, draws them, saves, loads, and names the
# file of the tokenizer.
USE = f"""{GUARD}
import os
import pickle
import tempfile
from dataclasses import replace

import torch
from PIL import Image

torch.set_num_threads(1)
known = gem.ARCHITECTURES["ViT-B/32"]
small = replace(
    known,
    embed=16,
    image=replace(known.image, size=32, patch=8, width=32, layers=2, heads=2, mlp_width=32),
    text=replace(known.text, width=32, layers=1, heads=2, mlp_width=32),
)
gem.ARCHITECTURES["ViT-B/32"] = small
words = ["cat", "remote control"]
with tempfile.TemporaryDirectory() as out:
    model = gem.create_gem_model("ViT-B/32", gem_depth=2)
    image = gem.get_gem_img_transform((32, 40))(Image.new("RGB", (50, 30), "teal"))[None]
    with torch.inference_mode():
        maps = model(image, words)
        assert maps.shape == (1, 2, 32, 40) and maps.isfinite().all()
        assert len(model.visualize(image, words, maps, save_path=out + "/maps")) == 2
        gem.save(model, out + "/mine.safetensors")
        again = gem.create_gem_model("ViT-B/32", out + "/mine.safetensors")
        assert torch.equal(again(image, words), maps)
        assert torch.equal(pickle.loads(pickle.dumps(again))(image, words), maps)
    assert gem.get_tokenizer("ViT-B/32")("a cat").tolist()[0][:4] == [49406, 320, 2368, 49407]
    assert cli.main(["models"]) == 0
    assert cli.main(["heatmap", out, "--prompts", "cat"]) == 2
print("merges:", importlib.import_module(name + ".tokenizer").find_merges())
if name != "gem_lite":
    assert "gem_lite" not in sys.modules
"""

# What needs no PyTorch, which takes a second to import.
TOKENIZE = f"""{GUARD}
tokenizer = importlib.import_module(name + ".tokenizer")
assert tokenizer.Tokenizer().encode("a cat") == [320, 2368]
assert cli.main(["models"]) == 0
print("merges:", tokenizer.find_merges())
assert not {{"torch", "gem_lite"}} & {{*sys.modules}}
"""


def use(folder: Path, name: str, code: str = USE) -> str:
    """Run it in an empty folder, without user packages and environment variables."""
    empty = folder.parent / "elsewhere"
    empty.mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": str(empty),
        "OMP_NUM_THREADS": "1",
        **{key: os.environ[key] for key in ("SYSTEMROOT", "TEMP") if key in os.environ},
    }
    done = subprocess.run(
        [sys.executable, "-I", "-B", "-c", code, str(folder), name, *CORE, *THEIRS],
        cwd=empty,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Only what a weight file's digest was, for the next load.
    assert {path.name for path in empty.iterdir()} <= {".cache"}
    assert code is not USE or "gem-lite: no pictures in the folder" in done.stderr
    return done.stdout


def copy_package(target: Path) -> None:
    shutil.copytree(ROOT / "gem_lite", target, ignore=shutil.ignore_patterns("__pycache__"))


def test_a_copy_under_another_name(tmp_path: Path) -> None:
    """By hand, the tokenizer's data beside it; `gem-lite vendor` puts them inside."""
    folder = tmp_path / "project"
    copy_package(folder / "vendored_gem")
    with pytest.raises(AssertionError, match=r"no merges file at .*tokenizer/ folder"):
        use(folder, "vendored_gem", TOKENIZE)
    shutil.copytree(ROOT / "tokenizer", folder / "tokenizer")
    merges = folder / "tokenizer" / "bpe_merges.txt.gz"
    assert f"merges: {merges}" in use(folder, "vendored_gem", TOKENIZE)


def test_the_guard_refuses(tmp_path: Path) -> None:
    """A copy that imports something else fails, so the tests above would notice."""
    folder = tmp_path / "project"
    copy_package(folder / "vendored_gem")
    shutil.copytree(ROOT / "tokenizer", folder / "tokenizer")
    init = folder / "vendored_gem" / "__init__.py"
    init.write_text("import pytest\n" + init.read_text())
    with pytest.raises(AssertionError, match="No module named 'pytest'"):
        use(folder, "vendored_gem")


# ---- gem-lite vendor

# With torch and einops alone: a small network from its parts, from pixels and tokens to maps.
TENSORS = """
import importlib, sys
folder, name = sys.argv[1:]
sys.path.insert(0, folder)
for unwanted in ("safetensors", "PIL", "ftfy", "regex", "gem_lite"):
    sys.modules[unwanted] = None
config, model, heatmap, gem = (
    importlib.import_module(f"{name}.{each}")
    for each in ("config", "model", "heatmap", "methods.gem")
)
import torch
torch.set_num_threads(1)
sizes = config.ModelConfig(
    embed=16,
    image=config.ImageConfig(size=32, patch=8, width=32, layers=2, heads=2, mlp_width=32),
    text=config.TextConfig(context=8, vocab=600, width=32, layers=1, heads=2, mlp_width=32),
    activation="gelu",
)
network = model.GEMNetwork(sizes, gem.GEMConfig(blocks=1)).eval()
model.initialize(network)
with torch.inference_mode():
    text = network.encode_text(torch.tensor([[598, 3, 599, 0, 0, 0, 0, 0]] * 2))
    features = network.encode_image(torch.randn(1, 3, 32, 40))
    maps = heatmap.heat_maps(features.gem[:, 1:], text, features.grid, (32, 40))
assert maps.shape == (1, 2, 32, 40) and maps.isfinite().all()
"""


def vendor(*arguments: str) -> int:
    return main(["vendor", *arguments])


@pytest.fixture(scope="module")
def method_copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the method alone, as `copied`; not to be written to."""
    folder = tmp_path_factory.mktemp("method")
    assert vendor(str(folder), "--part", "method", "--name", "copied") == 0
    return folder


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, bytes]]:
    """No copy is imported, which takes seconds; instead, what each would have been."""
    copies: list[dict[str, bytes]] = []
    monkeypatch.setattr(command, "check", lambda copy, part: copies.append(contents(copy)))
    return copies


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_method_alone(method_copy: Path) -> None:
    assert not list(method_copy.glob(".*")) and not list(method_copy.rglob("__pycache__"))
    command = [sys.executable, "-I", "-B", "-c", TENSORS, str(method_copy), "copied"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_model_and_its_record(tmp_path: Path, unchecked: list[dict[str, bytes]]) -> None:
    assert vendor(str(tmp_path / "deep" / "er"), "--name", "seen") == 0
    copy = tmp_path / "deep" / "er" / "seen"
    files = contents(copy)
    assert "factory.py" in files and not any(name.startswith("tools") for name in files)
    record = files["VENDOR.md"].decode()
    assert unchecked == [{name: data for name, data in files.items() if name != "VENDOR.md"}]
    for name, data in files.items():
        if name != "VENDOR.md":
            assert f"| `{name}` | `{hashlib.sha256(data).hexdigest()}` |" in record
    assert f"version: {gem_lite.__version__}" in record and "part: model" in record
    assert "MIT" in record and "--part model --name seen" in record
    code = "import seen; assert seen.get_tokenizer('ViT-B/16')('a')[0, 0] == 49406"
    code += "; assert all(hasattr(seen, name) for name in seen.__all__)"
    subprocess.run([sys.executable, "-B", "-c", code], cwd=copy.parent, check=True)


def test_all_of_it_works(tmp_path: Path) -> None:
    assert vendor(str(tmp_path / "one"), "--part", "all", "--name", "vendored_gem") == 0
    copy = tmp_path / "one" / "vendored_gem"
    assert f"merges: {copy / 'data' / 'tokenizer'}" in use(tmp_path / "one", "vendored_gem")


def test_a_later_run_shows_local_changes(
    method_copy: Path,
    tmp_path: Path,
    unchecked: list[dict[str, bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(tmp_path), "--part", "method", "--name", "copied"]
    copy = shutil.copytree(method_copy / "copied", tmp_path / "copied")
    shipped = contents(copy)
    assert vendor(str(tmp_path), "--name", "copied") == 0  # nothing was changed; the same part
    assert contents(copy) == shipped
    (copy / "attention.py").write_text("# ours\n" + (copy / "attention.py").read_text())
    (copy / "windows.py").unlink()
    (copy / "mine.py").write_text("A = 1\n")
    edited = contents(copy)
    capsys.readouterr()
    assert vendor(*arguments) == 1
    out, err = capsys.readouterr()
    assert "+# ours" in out and "-def window_maps(" in out and "mine.py" not in out
    assert out.count("+++ ") == 2 and "--force" in err and len(err.splitlines()) == 1
    assert contents(copy) == edited
    assert vendor(*arguments, "--force") == 0
    assert "+# ours" in capsys.readouterr().out
    assert contents(copy) == {**shipped, "mine.py": b"A = 1\n"}
    (again, forced), mine = unchecked, {"mine.py": b"A = 1\n"}
    assert {**again, "VENDOR.md": shipped["VENDOR.md"]} == shipped and forced == again | mine


def test_a_copy_that_cannot_be_imported_changes_nothing(
    method_copy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [str(tmp_path), "--part", "method", "--name", "copied"]
    shutil.copytree(method_copy / "copied", tmp_path / "copied")
    before = contents(tmp_path)
    broken = tmp_path.parent / f"{tmp_path.name}-broken.py"
    broken.write_text("import safetensors\n")
    real = command.part_files
    monkeypatch.setattr(command, "part_files", lambda part: {**real(part), "extra.py": broken})
    assert vendor(*arguments) == 2
    assert "cannot be imported" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["two words", "class", "json", "torch", "a/b", "", ".."])
def test_names_that_cannot_be_imported(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert vendor(str(tmp_path), "--name", name) == 2
    assert f"--name is {name!r}" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/hostname", "a/../../secret.txt"])
def test_a_record_that_names_files_outside(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A copy's VENDOR.md comes with somebody's repository; what it names is shown in a diff."""
    (tmp_path / "secret.txt").write_text("not for showing")
    (tmp_path / "gem_lite").mkdir()
    row = f"| `{name}` | `{'0' * 64}` |\n"
    (tmp_path / "gem_lite" / "VENDOR.md").write_text("--part method\n" + row)
    assert vendor(str(tmp_path)) == 2
    out, err = capsys.readouterr()
    assert "outside of the copy" in err and "not for showing" not in out + err


def test_a_folder_that_is_no_copy_is_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gem_lite").mkdir()
    (tmp_path / "gem_lite" / "mine.py").write_text("A = 1\n")
    assert vendor(str(tmp_path), "--force") == 2
    assert "has no VENDOR.md" in capsys.readouterr().err
    assert contents(tmp_path) == {"gem_lite/mine.py": b"A = 1\n"}


# ---- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, since setuptools writes into the folder it builds from."""
    pytest.importorskip("setuptools", minversion="69")
    pytest.importorskip("pip")
    source = tmp_path_factory.mktemp("source")
    for name in ("gem_lite", "tokenizer", "weights"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "examples" / "scenes", source / "examples" / "scenes")
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "convert_weights.py"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, source / name)
    # Large files that a user may keep in weights/ are not for the wheel.
    (source / "weights" / "ViT-B-16-openai.safetensors").write_bytes(b"large")
    out = tmp_path_factory.mktemp("wheel")
    code = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    python("-c", code, str(out), cwd=source)  # which is what pip calls
    (path,) = out.iterdir()
    return path


def python(*arguments: str, cwd: Path) -> None:
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_wheel_carries(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = next(name for name in names if name.endswith(".dist-info/METADATA"))
        lines = archive.read(metadata).decode().splitlines()
        entries = archive.read(metadata.replace("METADATA", "entry_points.txt")).decode()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gem_lite"}
    inside = [path for path in (ROOT / "gem_lite").rglob("*.*") if "__pycache__" not in path.parts]
    expected = {f"gem_lite/{path.relative_to(ROOT / 'gem_lite').as_posix()}" for path in inside}
    assert expected <= names
    assert {
        "gem_lite/py.typed",
        "gem_lite/data/tokenizer/bpe_merges.txt.gz",
        "gem_lite/data/tokenizer/README.md",
        "gem_lite/data/weights/README.md",
    } <= names
    shipped = [path.name for path in (ROOT / "weights").glob("tiny-emoji-*.safetensors")]
    assert {f"gem_lite/data/weights/{name}" for name in shipped} <= names
    assert not any("ViT-B-16" in name or "__pycache__" in name for name in names)
    assert not any("/tests/" in name or name.startswith("tests") for name in names)
    required = {
        line.split(":")[1].strip().split(">")[0]
        for line in lines
        if line.startswith("Requires-Dist") and "extra" not in line
    }
    assert required == {"torch", "safetensors", "pillow", "numpy", "einops", "ftfy", "regex"}
    assert "Requires-Python: >=3.10" in lines
    assert "gem-lite = gem_lite.tools.cli:main" in entries


def test_the_installed_wheel_works(wheel: Path, tmp_path: Path) -> None:
    """Its data lie in a folder of their own, where none has the name of a module."""
    folder = tmp_path / "site"
    options = ["--no-deps", "--no-index", "--no-cache-dir", "--no-compile", "--target", str(folder)]
    python("-m", "pip", "install", "-q", *options, str(wheel), cwd=tmp_path)
    merges = folder / "gem_lite" / "data" / "tokenizer" / "bpe_merges.txt.gz"
    assert f"merges: {merges}" in use(folder, "gem_lite")
    # From there `gem-lite vendor` takes the same files as from a checkout, part by part.
    code = "import json; from gem_lite.tools.commands.vendor import PARTS, _sha256, part_files"
    code += "; print(json.dumps([[[name, _sha256(path)] for name, path in part_files(part).items()]"
    code += " for part in PARTS]))"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    for part, files in zip(command.PARTS, json.loads(done.stdout), strict=True):
        ours = {name: command._sha256(path) for name, path in command.part_files(part).items()}
        assert dict(files) == ours
