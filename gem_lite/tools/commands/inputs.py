"""The pictures that a command goes through, and where their outputs go.

An input is a file, a folder, a pattern, an address, `-` for standard input, or a line of a list.
Its output's name depends on nothing but itself: the path below the folder it was found in.
"""

from __future__ import annotations

import argparse
import glob
import io
import os
import re
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from .words import read_lines

if TYPE_CHECKING:
    from PIL import Image

INPUT_HELP = (
    "picture, folder, pattern in quotes ('photos/**/*.jpg'), http(s) address, or - for standard"
    " input"
)
MOST_BYTES = 100_000_000  # of a picture from an address or from standard input
TIMEOUT = 30.0  # seconds without a byte from an address


@dataclass(frozen=True)
class Input:
    """A picture to read, and the name of its output: a relative path without an ending."""

    source: str
    name: str

    @property
    def file_name(self) -> str:
        """The picture's own, as annotations name it: the same path, with its ending."""
        suffix = "" if self.source == "-" else PurePosixPath(self.source).suffix
        return self.name if self.name.endswith(suffix) else f"{self.name}{suffix}"

    def open(self) -> Image.Image:
        """The picture, upright, in RGB. Raises ValueError or OSError."""
        from ...pictures.opening import open_picture

        if self.source == "-":
            return open_picture(_read(sys.stdin.buffer, "standard input"), name="standard input")
        if _is_address(self.source):
            return open_picture(_fetch(self.source), name=self.source)
        return open_picture(Path(self.source))


@dataclass
class Inputs:
    """What the arguments name."""

    pictures: list[Input] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # argument -> what is wrong with it


def add_input_arguments(parser: argparse.ArgumentParser) -> None:
    """Inputs, and how many of them are read and skipped."""
    parser.add_argument("inputs", nargs="*", metavar="INPUT", help=INPUT_HELP)
    parser.add_argument(
        "--list", metavar="FILE", help="more inputs, one a line; - = standard input"
    )
    parser.add_argument("--recursive", action="store_true", help="folders with those inside them")
    parser.add_argument(
        "--skip-existing", action="store_true", help="leave out pictures whose outputs are there"
    )
    parser.add_argument(
        "--keep-ending", action="store_true", help="outputs are named a.jpg.png instead of a.png"
    )
    parser.add_argument(
        "--batch",
        type=int,
        metavar="N",
        help="pictures of equal size in one forward pass (default: 8 on a graphics card, else 1)",
    )


def find_inputs(args: argparse.Namespace) -> Inputs:
    """The pictures behind the arguments: files as they are, a folder's and a pattern's sorted.

    Hidden files and files without a picture's ending are passed over in folders and patterns, as
    are those in the output folder. A file that is named twice is read once. Raises
    FileNotFoundError when there is no picture at all.
    """
    inputs = Inputs()
    texts = [(text, False) for text in args.inputs]
    texts += [(line.strip(), True) for line in (read_lines(args.list) if args.list else [])]
    if not texts:
        raise ValueError("there are no inputs; give a picture or a folder")
    output = Path(args.output).resolve()
    pictures: dict[str, Input] = {}
    for text, listed in texts:
        paths, root, message = _behind(text, args.recursive)
        kept = [path for path in paths if output not in Path(path).resolve().parents]
        kept = kept if root is not None else paths
        if not kept:
            inputs.missing[text] = message
        for path in kept:
            name = _output_name(path, root, listed, args.keep_ending)
            pictures.setdefault(path, Input(path, name))
    inputs.pictures = list(pictures.values())
    if not inputs.pictures:
        raise FileNotFoundError("; ".join(inputs.missing.values()))
    return inputs


def goes_to_stdout(args: argparse.Namespace, inputs: Inputs) -> bool:
    """Whether `--output` is `-`. Raises ValueError where that is not enough for what is written."""
    if args.output != "-":
        return False
    if len(inputs.pictures) > 1 or args.json or getattr(args, "arrays", False):
        raise ValueError("--output - takes one picture, without --json or --arrays")
    return True


def check_output(folder: Path, outputs: Sequence[tuple[Input, Path]]) -> None:
    """Raise ValueError where an output is not a file in a folder, an input, or another's output."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder} is a file; give the name of a folder")
    inputs = {_identity(Path(each.source)) for each, _ in outputs} - {None}
    written: dict[str, Input] = {}
    for each, target in outputs:
        if _identity(target) in inputs:
            raise ValueError(f"{target} is one of the inputs; give another folder as --output")
        # Some file systems do not tell A from a.
        other = written.setdefault(str(target).lower(), each)
        if other != each:
            raise ValueError(
                f"{other.source} and {each.source} would both be written to {target}; give"
                " --keep-ending, or run them into two folders"
            )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_dev, status.st_ino


def _behind(text: str, recursive: bool) -> tuple[list[str], Path | None, str]:
    """The pictures behind an argument, the folder they were found in, and a message for none."""
    if text == "-" or _is_address(text):
        return [text], None, ""
    path = Path(text)
    if path.is_dir():
        inside = _walk(path) if recursive else sorted(path.iterdir())
        hint = "" if recursive else "; --recursive looks into the folders inside it"
        return _pictures(inside), path, f"no pictures in the folder {path}{hint}"
    if path.is_file():
        return [text], None, ""
    if glob.has_magic(text):
        matches = sorted(Path(each) for each in glob.glob(text, recursive=True))
        parts = Path(text).parts
        fixed = next(index for index, part in enumerate(parts) if glob.has_magic(part))
        return _pictures(matches), Path(*parts[:fixed]), f"no pictures match {text}"
    return [], None, f"no picture at {path}"


def _walk(folder: Path) -> list[Path]:
    """All files below a folder, sorted; hidden folders and links to folders are not entered."""
    files = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(place, name) for name in sorted(names)]
    return files


def _pictures(paths: Iterable[Path]) -> list[str]:
    from ...pictures.opening import ENDINGS

    return [
        str(path)
        for path in paths
        if path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()
    ]


def _output_name(source: str, root: Path | None, listed: bool, keep_ending: bool) -> str:
    if source == "-":
        return "stdin"
    if _is_address(source):
        last = urllib.parse.unquote(urllib.parse.urlsplit(source).path).rpartition("/")[2]
        path = Path(re.sub(r"[^\w.-]+", "_", last).strip(".") or "picture")
    elif root is not None:
        path = Path(source).relative_to(root)
    elif listed and ".." not in Path(source).parts:
        path = Path(source).relative_to(Path(source).anchor)
    else:
        path = Path(Path(source).name)
    return str(PurePosixPath(path if keep_ending else path.with_suffix("")))


def _is_address(text: str) -> bool:
    return text.startswith(("http://", "https://"))


def _fetch(address: str) -> io.BytesIO:
    request = urllib.request.Request(address, headers={"User-Agent": "gem_lite"})
    try:
        with _opener().open(request, timeout=TIMEOUT) as response:
            return _read(response, address)
    except (OSError, ValueError, EOFError) as error:
        text = str(error)
        raise OSError(text if address in text else f"{address}: {text}") from error


def _opener() -> urllib.request.OpenerDirector:
    """Follows redirects to http(s) only: no files, whatever a server says."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.HTTPHandler(),
        urllib.request.HTTPSHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


def _read(file: IO[bytes], name: str) -> io.BytesIO:
    """All of a stream. Raises ValueError for one that is too large."""
    data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{name} has more than {MOST_BYTES // 10**6} MB; save a smaller picture")
    return io.BytesIO(data)
