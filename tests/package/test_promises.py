"""docs/promises.md names tests that exist; the lock has what `make test` needs, with hashes."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROMISES = ROOT / "docs" / "promises.md"


def rows() -> list[tuple[str, list[str]]]:
    """Each promise, and what its second column names."""
    lines = PROMISES.read_text(encoding="utf-8").splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    return [(what, re.findall(r"`([^`]+)`", tests)) for what, tests in cells if what != "promise"]


def missing(named: list[str]) -> list[str]:
    """Names of files, or FILE::test, that are not there; "::test" is of the file before."""
    wrong, before = [], ""
    for name in named:
        file, _, test = name.partition("::")
        before = file or before
        path = ROOT / before
        if not path.exists() or (test and test not in functions(path)):
            wrong.append(name)
    return wrong


def functions(path: Path) -> set[str]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("promise", "named"), rows(), ids=[what[:40] for what, _ in rows()])
def test_every_promise_names_tests_that_exist(promise: str, named: list[str]) -> None:
    assert any("::test_" in name for name in named), promise
    assert not missing(named)


def test_a_name_that_is_not_there_is_noticed() -> None:
    here = "tests/package/test_promises.py"
    assert missing([here, "::functions", "::no_such", "tests/none.py"]) == [
        "::no_such",
        "tests/none.py",
    ]
    assert len(rows()) >= 25


def test_the_lock_has_a_hash_for_every_package() -> None:
    """Lines of pip's own form; among them the core packages at the versions of constraints.txt."""
    config = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    core = re.findall(r"^    ([\w-]+)>=", config.partition("install_requires")[2], re.MULTILINE)[:7]
    pinned = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").split()
        if "==" in line
    )
    locks = sorted((ROOT / ".ci").glob("lock-*.txt"))
    assert locks
    for lock in locks:
        lines = lock.read_text(encoding="utf-8").splitlines()
        packages = [line for line in lines if not line.startswith("#")]
        for line in packages:
            assert re.fullmatch(r"[\w.-]+==[\w.+!-]+ --hash=sha256:[0-9a-f]{64}", line), line
        versions = dict(line.split(" ")[0].lower().split("==") for line in packages)
        for name in core:
            assert versions[name].partition("+")[0] == pinned[name], name
