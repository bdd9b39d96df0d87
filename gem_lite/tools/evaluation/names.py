"""Class names, templates and background words from text files."""

from pathlib import Path

DATA = Path(__file__).parent / "data"


def shipped(name: str) -> Path:
    """The data file of this name that comes with the package."""
    return DATA / f"{name}.txt"


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file without blanks around them, empty lines and `#` comments.

    Raises FileNotFoundError without the file, ValueError when nothing is left.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; expected a text file with one entry a line")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8 ({error})") from error
    lines = [line.strip() for line in text.splitlines()]
    entries = tuple(line for line in lines if line and not line.startswith("#"))
    if not entries:
        raise ValueError(f"{path} is empty; expected one entry a line")
    return entries


def read_names(path: Path) -> tuple[tuple[str, ...], ...]:
    """One class a line, its names parted by commas. Raises as `read_lines`."""
    classes = []
    for line in read_lines(path):
        names = tuple(name.strip() for name in line.split(",") if name.strip())
        if not names:
            raise ValueError(f"{path} has a line without a name: {line!r}")
        classes.append(names)
    return tuple(classes)
