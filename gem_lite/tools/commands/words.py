"""Prompts and templates as the command line takes them, and pictures of a size to look at."""

import argparse
from collections.abc import Sequence

from PIL import Image

from ...prompts import TEMPLATE

LARGEST_SHOWN = 2048  # pixels of the longer side of a picture in a sheet


def add_word_arguments(parser: argparse.ArgumentParser, text: str) -> None:
    """`--prompts` and `--template`."""
    parser.add_argument("--prompts", nargs="+", required=True, metavar="WORD", help=text)
    parser.add_argument(
        "--template",
        action="append",
        metavar="TEXT",
        help=f"sentence with {{}} for the word, may be given often (default: '{TEMPLATE}')",
    )


def checked_words(words: Sequence[str], option: str = "--prompts") -> list[str]:
    """The words without the space around them. Raises ValueError for one that is empty."""
    stripped = [word.strip() for word in words]
    if not all(stripped):
        raise ValueError(f"{option} has an empty word; expected something to look for")
    return stripped


def templates_of(args: argparse.Namespace) -> list[str]:
    """The templates given, else the usual one. Raises ValueError for one without `{}`."""
    templates = list(args.template or [TEMPLATE])
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"--template {template!r} has no {{}} where the word goes")
    return templates


def reduced(picture: Image.Image) -> Image.Image:
    """The picture, or a smaller copy where its longer side is too long for a sheet of many."""
    longest = max(picture.size)
    if longest <= LARGEST_SHOWN:
        return picture
    scale = LARGEST_SHOWN / longest
    # PIL counts (width, height).
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
