"""`gem-lite vendor`: a copy of the package, or of a part, for another project's repository."""

import argparse
import difflib
import hashlib
import keyword
import re
import shutil
import site
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from ..._version import __version__
from .console import say, tell

HELP = "copy the package, or a part of it, into your project"
EXAMPLES = """\
gem-lite vendor third_party
gem-lite vendor . --part method --name clip_maps
"""

PACKAGE = Path(__file__).resolve().parents[2]
PARTS = ("method", "model", "all")
RECORD = "VENDOR.md"
# Folders of data: in a checkout beside the package, in a wheel and in a copy in its `data/`.
DATA = {
    "tokenizer": ("tokenizer", ["*.gz", "README.md"]),
    "weights": ("weights", ["tiny-emoji-*.safetensors", "demo*.png", "README.md"]),
    "scenes": ("examples/scenes", ["*.npz", "README.md"]),
}
NEEDS = {
    "method": ["torch", "einops"],
    "model": ["torch", "safetensors", "pillow", "numpy", "einops", "ftfy", "regex"],
}
ROW = re.compile(r"^\| `(?P<name>[^`]+)` \| `(?P<sha256>[0-9a-f]{64})` \|$", re.MULTILINE)
# Imports every module of the copy; a part must not need what its table of packages leaves out.
CHECK = """
import importlib, pkgutil, sys
folder, name, data, *unwanted = sys.argv[1:]
sys.path.insert(0, folder)
for each in unwanted:
    sys.modules[each] = None
package = importlib.import_module(name)
for module in pkgutil.walk_packages(package.__path__, name + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
if data:
    assert package.get_tokenizer("ViT-B/16")("a cat").tolist()[0][:4] == [49406, 320, 2368, 49407]
assert name == "gem_lite" or "gem_lite" not in sys.modules, "it imports gem_lite itself"
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gem-lite vendor`."""
    parser.add_argument("dest", metavar="DEST", type=Path, help="folder that gets the copy")
    parser.add_argument(
        "--part",
        choices=PARTS,
        help="method: tensors in, maps out; model: create_gem_model and all it needs; all: with"
        " the commands, the page and the small model (default: as the copy there, else model)",
    )
    parser.add_argument(
        "--name", default="gem_lite", help="of the copy, to import it by (default: %(default)s)"
    )
    parser.add_argument(
        "--force", action="store_true", help="overwrite local changes of an earlier copy"
    )


def run(args: argparse.Namespace) -> int:
    """Write DEST/NAME, all of it or nothing; 1 = local changes are in the way."""
    taken = args.name in sys.stdlib_module_names or args.name in ("torch", "numpy", "PIL")
    if not args.name.isidentifier() or keyword.iskeyword(args.name) or taken:
        raise ValueError(f"--name is {args.name!r}; expected a free name that Python can import")
    target = args.dest / args.name
    record = _read_record(target)
    part = args.part or (record["part"] if record else "model")
    files = part_files(part)
    if target.exists():
        changes = local_changes(target, record, files)
        for line in changes:
            say(line)
        if changes and not args.force:
            tell(f"{target} has local changes, shown above; --force overwrites them")
            return 1
    args.dest.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".vendor-", dir=args.dest) as folder:
        copy = Path(folder) / "new" / args.name
        for name, source in files.items():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy / name)
        for name in _own_files(target, {*files, *(record or {}), RECORD}):
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(target / name, copy / name)
        check(copy, part)
        (copy / RECORD).write_text(_record(args.name, part, files), encoding="utf-8")
        if target.exists():
            target.rename(Path(folder) / "old")
        copy.rename(target)
    say(f"{target}: {len(files)} files of gem_lite {__version__}, part {part}; see {RECORD}")
    return 0


def part_files(part: str) -> dict[str, Path]:
    """The files of a part, by their names in the copy. Raises FileNotFoundError for lost data."""
    root = PACKAGE / "method" if part == "method" else PACKAGE
    skipped = {"data", "weights", "tokenizer", RECORD, "LICENSE"}
    skipped |= {"tools", "__main__.py"} if part == "model" else set()
    files = {
        path.relative_to(root).as_posix(): path
        for path in sorted(root.rglob("*"))
        if path.is_file()
        and path.relative_to(root).parts[0] not in skipped
        and "__pycache__" not in path.parts
    }
    for folder in {"method": [], "model": ["tokenizer"]}.get(part, list(DATA)):
        origin, patterns = DATA[folder]
        places = [PACKAGE / "data" / folder, PACKAGE / folder, PACKAGE.parent / origin]
        inside = [
            sorted(path for glob in patterns for path in place.glob(glob)) for place in places
        ]
        if not any(inside):
            raise FileNotFoundError(f"no data in {' or '.join(map(str, places))}")
        files |= {f"data/{folder}/{each.name}": each for each in next(filter(None, inside))}
    places = [PACKAGE.parent / "LICENSE", PACKAGE / "LICENSE"]
    places += sorted(PACKAGE.parent.glob("gem_lite-*.dist-info/**/LICENSE"))
    licence = next((path for path in places if path.is_file()), None)
    return files if licence is None else {**files, "LICENSE": licence}


def check(copy: Path, part: str) -> None:
    """Import all of a copy in a Python of its own. Raises ValueError with what went wrong."""
    unwanted = ["safetensors", "PIL", "ftfy", "regex"] if part == "method" else []
    users = site.getusersitepackages() if site.ENABLE_USER_SITE else None
    code = CHECK if users is None else f"import sys; sys.path.append({users!r})\n{CHECK}"
    data = "" if part == "method" else "data"
    command = [sys.executable, "-I", "-B", "-c", code, str(copy.parent), copy.name, data]
    done = subprocess.run([*command, *unwanted], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ValueError(f"the copy cannot be imported ({reason}); nothing was changed")


def local_changes(target: Path, record: dict[str, str] | None, files: dict[str, Path]) -> list[str]:
    """A unified diff for every file that was edited, deleted or is in the way of a new one.

    The other side of the diff is the file as it would be written now. Raises ValueError for a
    folder that this command did not write.
    """
    if record is None:
        raise ValueError(f"{target} exists and has no {RECORD}; give another DEST or --name")
    lines: list[str] = []
    for name in sorted({*files, *record} - {"part"}):
        path = target / name
        now = _sha256(path) if path.is_file() else None
        if now == record.get(name) or (name in files and now == _sha256(files[name])):
            continue
        before, after = _lines(files.get(name)), _lines(path)
        labels = (f"gem_lite/{name}", str(path))
        difference = list(difflib.unified_diff(before, after, *labels, lineterm=""))
        lines += difference or [f"{path} differs from the copy made before"]
    return lines


def _own_files(target: Path, shipped: set[str]) -> list[str]:
    """Files that the owner of the project added to the copy; they stay."""
    inside = [path.relative_to(target) for path in target.rglob("*") if path.is_file()]
    return [
        path.as_posix()
        for path in inside
        if path.as_posix() not in shipped and "__pycache__" not in path.parts
    ]


def _lines(path: Path | None) -> list[str]:
    if path is None or not path.is_file():
        return []
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        return [f"(binary, sha256 {_sha256(path)})"]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _read_record(target: Path) -> dict[str, str] | None:
    """SHA-256 by file name, and the "part", from a copy's VENDOR.md; None where there is none."""
    path = target / RECORD
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    part = re.search(r"--part (\w+)", text)
    if part is None or part[1] not in PARTS:
        raise ValueError(f"{path} does not say which part was copied; expected `--part model`")
    rows = dict(ROW.findall(text))
    for name in rows:  # each is read and shown where it differs
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{path} names {name!r}, which is outside of the copy")
    return {**rows, "part": part[1]}


def _commit() -> str:
    """The checkout's commit, and whether the files differ from it; else "not known"."""
    if not (PACKAGE.parent / ".git").exists():
        return "not known (not copied from a checkout)"
    git = ["git", "-C", str(PACKAGE.parent)]
    try:
        commit, state = (
            subprocess.run([*git, *rest], capture_output=True, text=True, check=True).stdout.strip()
            for rest in (["rev-parse", "HEAD"], ["status", "--porcelain", "--", str(PACKAGE)])
        )
    except (OSError, subprocess.CalledProcessError):
        return "not known (git does not tell)"
    return f"{commit}, with changes that are not committed" if state else commit


def _record(name: str, part: str, files: dict[str, Path]) -> str:
    rows = "\n".join(f"| `{file}` | `{_sha256(path)}` |" for file, path in files.items())
    needs = ", ".join(NEEDS.get(part, NEEDS["model"]))
    return f"""# {name}: a copy of gem_lite

- version: {__version__}
- commit: {_commit()}
- part: {part}; it needs {needs}
- licence: MIT (`LICENSE`); data and weights: the README.md beside them

To update, install the newer gem_lite and run

    gem-lite vendor DEST --part {part} --name {name}

where DEST is the folder that holds `{name}/`. It shows files that were changed here as a diff, and
overwrites nothing until `--force` is given; files that were added here are never touched.

| file | sha256 |
|---|---|
{rows}
"""
