"""`--format`: which files a command writes for every picture, the same for each command."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .inputs import Inputs, check_output

if TYPE_CHECKING:
    from ...pictures.writers import Writer


def add_format_argument(
    parser: argparse.ArgumentParser, choices: Sequence[str], default: Sequence[str], text: str
) -> None:
    """`--format a b c`."""
    parser.add_argument(
        "--format",
        nargs="+",
        choices=choices,
        default=list(default),
        help=f"what to write: {text} (default: {' '.join(default)})",
    )


def check_formats(args: argparse.Namespace, first: str) -> None:
    """Raise ValueError where `--output` is `-` and the one format that goes there is not asked for.

    first: that format.
    """
    if args.output == "-" and first not in args.format:
        raise ValueError(
            f"--format {' '.join(args.format)} needs a folder: only {first} goes to standard output"
        )


def open_writers(
    args: argparse.Namespace,
    formats: Mapping[str, type[Writer[Any]]],
    names: list[str],
    inputs: Inputs,
) -> dict[str, Writer[Any]]:
    """A writer for each format of `--format`; for `--output` - the first, which only encodes.

    With `--skip-existing` pictures that every format has leave the inputs. Raises ValueError where
    outputs would be written over inputs or each other, and for one file of several processes.
    """
    from ..ranks import this_rank

    if args.output == "-":
        first = next(iter(formats))
        return {first: formats[first](Path(), names)}
    if this_rank().world > 1 and any(kind.startswith("coco") for kind in args.format):
        raise ValueError("--format coco is one file for all; it cannot be written by torchrun")
    folder = Path(args.output)
    writers = {kind: formats[kind](folder, names) for kind in dict.fromkeys(args.format)}
    targets = [
        (each, writer.target(each.name))
        for writer in writers.values()
        for each in inputs.pictures
        if writer.target("") != writer.target("x")  # a file of its own for each picture
    ]
    check_output(folder, targets)
    if args.skip_existing:
        inputs.pictures = [
            each
            for each in inputs.pictures
            if not all(writer.done(each.name, each.file_name) for writer in writers.values())
        ]
    return writers
