"""The pictures that a command goes through: files, folders, patterns; a bad file is skipped."""

import glob
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from ...pictures.opening import ENDINGS, open_picture
from ..ranks import share, this_rank
from .console import Progress, one_line, say_json, tell

_T = TypeVar("_T")

INPUT_HELP = "picture, folder of pictures, or pattern in quotes ('photos/**/*.jpg')"


@dataclass
class Inputs:
    """What the arguments name."""

    pictures: list[Path] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # argument -> what is wrong with it


def find_pictures(arguments: Sequence[str]) -> Inputs:
    """The files behind the arguments: files as they are, a folder's and a pattern's sorted.

    Hidden files and files without a picture's ending are passed over in folders and patterns.
    Raises FileNotFoundError when there is no file at all.
    """
    found = Inputs()
    for text in arguments:
        path = Path(text)
        if path.is_dir():
            inside = sorted(each for each in path.iterdir() if _is_picture(each))
            if not inside:
                found.missing[text] = f"no pictures in the folder {path}"
        elif path.is_file():
            inside = [path]
        elif glob.has_magic(text):
            matches = sorted(Path(each) for each in glob.glob(text, recursive=True))
            inside = [each for each in matches if _is_picture(each)]
            if not inside:
                found.missing[text] = f"no pictures match {text}"
        else:
            inside = []
            found.missing[text] = f"no picture at {path}"
        found.pictures += inside
    if not found.pictures:
        raise FileNotFoundError("; ".join(found.missing.values()))
    return found


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()


def output_names(pictures: Sequence[Path]) -> list[str]:
    """A name for each picture's output: its own, with a number where two are called the same."""
    names: list[str] = []
    taken: set[str] = set()
    for path in pictures:
        name, number = path.stem, 2
        while name.lower() in taken:  # some file systems do not tell A from a
            name, number = f"{path.stem}-{number}", number + 1
        taken.add(name.lower())
        names.append(name)
    return names


def checked_output(folder: Path, targets: Sequence[Path], pictures: Sequence[Path]) -> None:
    """Raise ValueError where an output would be no file in a folder, or overwrite an input."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder} is a file; give the name of a folder")
    for target in targets:
        if target.exists() and any(path.exists() and target.samefile(path) for path in pictures):
            raise ValueError(f"{target} is one of the inputs; give another folder as --output")


def for_each_picture(
    inputs: Inputs,
    work: Callable[[Image.Image], _T],
    write: Callable[[_T, int], dict[str, Any]],
    *,
    as_json: bool,
) -> int:
    """Read, work, write, one picture after another; returns the exit code.

    A picture that cannot be read or worked on is told and skipped. What goes wrong while writing
    ends the command, since it would go wrong again. `write` gets the picture's place in the list.
    Under torchrun each process takes its share of the pictures; the first tells what is missing.
    """
    failed = 0

    def failure(name: str, message: str) -> None:
        nonlocal failed
        failed += 1
        tell(message)
        if as_json:
            say_json({"input": name, "error": one_line(message)})

    missing = inputs.missing if this_rank().rank == 0 else {}
    for name, message in missing.items():
        failure(name, message)
    pictures = share(list(enumerate(inputs.pictures)))
    total = len(pictures)
    progress = Progress(total, "pictures")
    for done, (index, path) in enumerate(pictures):
        progress.show(done, path.name)
        try:
            with warnings.catch_warnings(record=True):  # of Pillow, about metadata
                picture = open_picture(path)
            result = work(picture)
        except (ValueError, OSError, MemoryError, RuntimeError) as error:
            # RuntimeError is torch's, which says so when memory is not enough.
            progress.clear()
            text = str(error)
            failure(str(path), text if str(path) in text else f"{path}: {text}")
            continue
        told = write(result, index)
        progress.clear()
        if as_json:
            say_json({"input": str(path), **told})
    if failed and total + len(missing) > 1:
        tell(f"{failed} of {total + len(missing)} inputs failed")
    return 1 if failed else 0
