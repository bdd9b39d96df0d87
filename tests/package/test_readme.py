"""The Python blocks of README and docs/ run, and what README names exists.

Every ```python block runs by itself, in a folder of its own that holds `weights/demo*`. A line
`<!-- test: skip (reason) -->` above a block says that it is only checked: its syntax, the names it
takes from the package, and the arguments of the calls.
"""

import ast
import inspect
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

import gem_lite

ROOT = Path(__file__).parents[2]


def readme() -> str:
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.is_file() else ""


class Block(NamedTuple):
    page: str
    line: int
    marker: str  # "run", or "skip (reason)"
    code: str


def python_blocks(page: Path) -> list[Block]:
    text = page.read_text(encoding="utf-8")
    pattern = re.compile(
        r"^(?:<!-- test: (?P<marker>.*?) -->\n+)?```python\n(?P<code>.*?)^```$", re.MULTILINE | re.S
    )
    return [
        Block(
            str(page.relative_to(ROOT)),
            text.count("\n", 0, match.start("code")) + 1,
            match["marker"] or "run",
            match["code"],
        )
        for match in pattern.finditer(text)
    ]


PAGES = [
    page for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))) if page.is_file()
]
BLOCKS = [block for page in PAGES for block in python_blocks(page)]
each_block = pytest.mark.parametrize("block", BLOCKS, ids=[f"{b.page}:{b.line}" for b in BLOCKS])


def test_there_are_blocks_and_most_of_them_run() -> None:
    assert (ROOT / "README.md").is_file()
    fences = sum(page.read_text(encoding="utf-8").count("```python\n") for page in PAGES)
    assert len(BLOCKS) == fences > 0
    markers = [block.marker for block in BLOCKS]
    skipped = [each for each in markers if each != "run" and "run by tests/" not in each]
    assert markers.count("run") >= 1 and len(skipped) * 2 <= len(markers)
    for marker in markers:
        assert re.fullmatch(r"run|skip \(.+\)", marker), marker


@each_block
def test_block_runs(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if block.marker != "run":
        pytest.skip(block.marker)
    (tmp_path / "weights").mkdir()
    for picture in (ROOT / "weights").glob("demo*"):
        shutil.copy(picture, tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    for variable in ("DISPLAY", "GEM_LITE_WEIGHTS"):
        monkeypatch.delenv(variable, raising=False)
    # Nothing may be fetched.
    monkeypatch.setenv("GEM_LITE_MIRROR", "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    exec(compile(block.code, f"{block.page}, line {block.line}", "exec"), {"__name__": "readme"})
    saved = re.findall(r"(?:save_path=|\.save\()\"([^\"]+)\"", block.code)
    assert all((tmp_path / name).exists() for name in saved)


@each_block
def test_block_fits_the_package(block: Block) -> None:
    for node in ast.walk(ast.parse(block.code)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "gem":
            assert hasattr(gem_lite, node.attr), node.attr
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner = {"gem": gem_lite, "model": gem_lite.GEMPredictor}.get(ast.unparse(node.func.value))
        function = getattr(owner, node.func.attr, None)
        if function is None:
            continue
        given = [None] * (len(node.args) + (owner is not gem_lite))
        named = {keyword.arg: None for keyword in node.keywords if keyword.arg}
        inspect.signature(function).bind(*given, **named)


def test_files_that_are_named_exist() -> None:
    text = readme()
    package = ROOT / "gem_lite"
    for name in set(re.findall(r"`([\w/]+(?:\.py|/))`", text)):
        assert (package / name).exists() or (ROOT / name).exists(), name
    for link in set(re.findall(r"\]\(([^)#:]+)\)", text)):
        assert (ROOT / link).exists(), link
    rooms = {path.name for path in package.iterdir() if (path / "__init__.py").is_file()}
    named = set(re.findall(r"`(\w+)(?:/|\.py)", text))
    files = {path.stem for path in package.glob("[!_]*.py")}
    assert rooms | files <= named, (rooms | files) - named


def test_nothing_is_left_to_fill_in() -> None:
    left = re.findall(r"@[A-Z]+@|\bT[O]DO\b|\bX{3}\b|\?\?\?", readme())
    assert not left, left


def test_what_is_needed_is_there() -> None:
    """Licences of the weights, acknowledgements, the paper; and the first screen stays a screen."""
    text = readme()
    for word in ("mit", "cc-by-nc", "openclip", "clip surgery", "einops", "2312.00878", "vendor"):
        assert word in text.lower(), word
    assert "docs/differences.md" in text
    assert text.count("\n") <= 200
