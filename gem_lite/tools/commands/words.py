"""Prompts and templates as the command line takes them, and pictures of a size to look at."""

from __future__ import annotations

import argparse
import csv
import glob
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image

LARGEST_SHOWN = 2048  # pixels of the longer side of a picture that is drawn upon
TEMPLATE = "a photo of a {}."  # prompts.TEMPLATE, which needs torch to be read


def add_word_arguments(parser: argparse.ArgumentParser, text: str) -> None:
    """`--prompts`, `--prompts-file` and `--template`."""
    parser.add_argument(
        *("-p", "--prompts"),
        nargs="+",
        default=[],
        metavar="WORD",
        help=f"{text}; cat,dog are two, and 'a red, round thing' is one",
    )
    parser.add_argument(
        "--prompts-file", metavar="FILE", help="more of them, one a line; - = standard input"
    )
    parser.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help=f"sentence with {{}} for the word, may be given often (default: '{TEMPLATE}')",
    )


def chosen_words(args: argparse.Namespace) -> list[str]:
    """The words of `--prompts` and `--prompts-file`.

    Where no input was given, those at the end of `--prompts` that name one become `args.inputs`, so
    that both orders work. Raises ValueError when there are no words, or an empty one.
    """
    values = list(args.prompts)
    if not (args.inputs or args.list):
        while values and _names_an_input(values[-1]):
            args.inputs.insert(0, values.pop())
    words = checked_words(split_words(values))
    if args.prompts_file:
        words += [line.strip() for line in read_lines(args.prompts_file)]
    if not words:
        raise ValueError("there are no words to look for; give --prompts cat dog")
    return words


def split_words(values: Iterable[str]) -> list[str]:
    """`cat,dog` as two words; what has spaces was put in quotes, and a comma in it stays."""
    words: list[str] = []
    for value in values:
        quoted = '"' in value
        if "," in value and (quoted or not any(letter.isspace() for letter in value)):
            words += next(csv.reader([value], skipinitialspace=True))
        else:
            words.append(value)
    return words


def checked_words(words: Sequence[str], option: str = "--prompts") -> list[str]:
    """The words without the space around them. Raises ValueError for one that is empty."""
    stripped = [word.strip() for word in words]
    if not all(stripped):
        raise ValueError(f"{option} has an empty word; expected something to look for")
    return stripped


def read_lines(name: str) -> list[str]:
    """The lines of a text file that are not empty; `-` is standard input."""
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name} is not a text in UTF-8: {error}") from error
    return [line for line in text.splitlines() if line.strip()]


def templates_of(args: argparse.Namespace) -> list[str]:
    """The templates given, else the usual one. Raises ValueError for one without `{}`."""
    templates = list(args.template or [TEMPLATE])
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"--template {template!r} has no {{}} where the word goes")
    return templates


def reduced(picture: Image.Image, most: int = LARGEST_SHOWN) -> Image.Image:
    """The picture, or a smaller copy where its longer side has more pixels than `most`."""
    from PIL import Image

    longest = max(picture.size)
    if longest <= most:
        return picture
    scale = most / longest
    # PIL counts (width, height).
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _names_an_input(text: str) -> bool:
    if text == "-" or text.startswith(("http://", "https://")):
        return True
    return Path(text).exists() or (glob.has_magic(text) and bool(glob.glob(text, recursive=True)))
