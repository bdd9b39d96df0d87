"""What the documents name exists: links, files, functions, lines of code that they quote."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
FENCE = re.compile(r"^```(.*?)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def prose(path: Path) -> str:
    """A document without its blocks of code."""
    return FENCE.sub("", path.read_text(encoding="utf-8"))


def links(path: Path) -> list[tuple[str, str]]:
    """Text and target of each relative link."""
    found = re.findall(r"\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)", prose(path))
    return [(text, target) for text, target in found if not re.match(r"\w+:", target)]


def names_in(path: Path) -> set[str]:
    """What a module defines: functions, classes, constants, and members as `Class.member`."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        own = _names(node)
        names |= own
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{name}" for each in node.body for name in _names(each)}
    return names


def _names(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return {node.name}
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def headings(path: Path) -> set[str]:
    """The anchors that GitHub gives a document's headings."""
    found = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in found}


def wrong_links(path: Path) -> list[str]:
    """Links to what does not exist, and linked functions that are not in the file."""
    wrong = []
    for text, target in links(path):
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        named = re.fullmatch(r"`(?:gem_lite\.)?([A-Za-z_][\w.]*)`", text)
        if not there.exists():
            wrong.append(target)
        elif anchor and anchor not in headings(there):
            wrong.append(target)
        elif named and there.suffix == ".py" and not named[1].endswith(".py"):
            wrong += [f"{named[1]} in {target}"] * (named[1] not in names_in(there))
    return wrong


def wrong_quotations(path: Path) -> list[str]:
    """Blocks ```python FILE whose lines do not stand in that file, one after another."""
    wrong = []
    for info, code in FENCE.findall(path.read_text(encoding="utf-8")):
        language, _, file = info.partition(" ")
        if language != "python" or not file:
            continue
        text = (ROOT / file).read_text(encoding="utf-8").splitlines()
        whole = "\n".join(line.strip() for line in text)
        quoted = "\n".join(line.strip() for line in code.strip().splitlines())
        if f"\n{quoted}\n" not in f"\n{whole}\n":
            wrong.append(f"{file}: {quoted}")
    return wrong


def missing_files(path: Path) -> list[str]:
    """Files of ours named in back quotes that are nowhere: in the repository, package or beside."""
    named = re.findall(r"`((?:\w[\w.-]*/)*[\w-]+\.(?:py|md|npz|safetensors|webp))`", prose(path))
    places = [ROOT, ROOT / "gem_lite", ROOT / "gem_lite" / "method", path.parent]
    places += [ROOT / "gem_lite" / "tools" / "app", ROOT / "gem_lite" / "checkpoints"]
    return [name for name in set(named) if not any((place / name).exists() for place in places)]


@each_document
def test_links_lead_somewhere(path: Path) -> None:
    assert not wrong_links(path)


@each_document
def test_quoted_code_is_the_code(path: Path) -> None:
    assert not wrong_quotations(path)


@torch.no_grad()
def test_the_example_in_own_method_runs() -> None:
    text = (ROOT / "docs" / "own-method.md").read_text(encoding="utf-8")
    (code,) = [code for info, code in FENCE.findall(text) if info == "python"]
    space: dict[str, Any] = {"__name__": "example"}
    exec(code, space)
    assert space["model"].method.blocks == 4
    assert space["model"](torch.rand(1, 3, 32, 48), ["fish"]).isfinite().all()


@each_document
def test_named_files_exist(path: Path) -> None:
    assert not missing_files(path)


def test_every_method_and_every_figure_is_shown() -> None:
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    shown = re.findall(r"method/methods/(\w+)\.py", text)
    files = {file.stem for file in (ROOT / "gem_lite/method/methods").glob("[!_]*.py")}
    assert files - set(shown) <= {"clip"}
    assert {f"figures/{file.name}" for file in (ROOT / "docs" / "figures").iterdir()} <= {
        target for _, target in links(ROOT / "docs" / "method.md")
    }
    assert text.count("```python ") >= 15


def test_what_is_wrong_is_noticed(tmp_path: Path) -> None:
    document = tmp_path / "wrong.md"
    document.write_text(
        "[a](nowhere.md) [`adaptive`](here.py) [`b`](here.py) [c](#no-such) [d](#this-one)\n"
        "`checkpoints/nothing.py`\n\n# This one\n\n"
        "```python gem_lite/method/base.py\nscores = a.shape[-1] ** -0.4 * a @ b.mT\n```\n",
        encoding="utf-8",
    )
    (tmp_path / "here.py").write_text("def b(): pass\n", encoding="utf-8")
    assert wrong_links(document) == ["nowhere.md", "adaptive in here.py", "#no-such"]
    assert len(wrong_quotations(document)) == 1
    assert missing_files(document) == ["checkpoints/nothing.py"]
