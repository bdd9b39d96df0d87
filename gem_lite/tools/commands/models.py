"""`gem-lite models`: the known weights, and which of them are on this machine."""

import argparse
from dataclasses import asdict

from ...checkpoints.known import find_file
from ...checkpoints.table import PRETRAINED
from .console import say, say_json

HELP = "the known weights, and which are on this machine"
EXAMPLES = """\
gem-lite models
gem-lite models --local --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gem-lite models`."""
    parser.add_argument("--local", action="store_true", help="only those on this machine")
    parser.add_argument("--json", action="store_true", help="print a JSON list, with all details")


def run(args: argparse.Namespace) -> None:
    """Print a line for each pair of a model and a tag, with its file where there is one."""
    rows = [(row, find_file(row)) for row in PRETRAINED]
    rows = [(row, path) for row, path in rows if path is not None or not args.local]
    if args.json:
        say_json(
            [
                {**asdict(row), "model": row.model, "file": None if path is None else str(path)}
                for row, path in rows
            ]
        )
        return
    for row, path in rows:
        say(f"{row.name:24} {row.tag:24} {path or ''}".rstrip())
