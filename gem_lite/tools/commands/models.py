"""`gem-lite models`: the known weights, which of them are on this machine, and fetching one."""

import argparse
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

from ...checkpoints.files import cache_folder
from ...checkpoints.known import find_file
from ...checkpoints.table import PRETRAINED, Pretrained
from ...method.config import ModelConfig, architecture
from ..demo import SHIPPED
from .console import say, say_json
from .model import BEST

HELP = "the known weights, and which are on this machine"
EXAMPLES = """\
gem-lite models
gem-lite models --local --json
gem-lite models --fetch ViT-B/16
"""
MILLIONS = {"tiny-emoji": 5.4}  # of parameters, where the name is not an architecture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gem-lite models`."""
    parser.add_argument("--local", action="store_true", help="only those on this machine")
    parser.add_argument("--json", action="store_true", help="print a JSON list, with all details")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read every file on this machine, hold it against its digest and the published hashes",
    )
    parser.add_argument(
        "--fetch",
        nargs="+",
        metavar=("MODEL", "TAG"),
        help="fetch a model's weights (default: its first tag) and convert them",
    )


def run(args: argparse.Namespace) -> int:
    """Print a line for each pair of a model and a tag, with its file where there is one."""
    if args.fetch:
        _fetch(args.fetch)
        return 0
    if args.verify:
        return _verify()
    rows = [(row, find_file(row)) for row in PRETRAINED]
    rows = [(row, path) for row, path in rows if path is not None or not args.local]
    if args.json:
        say_json([_details(row, path) for row, path in rows])
        return 0
    if args.local and not any(row.url for row, _ in rows):
        say(
            "no model for photographs is on this machine;"
            f" gem-lite models --fetch {BEST[0]} fetches one into {cache_folder()}"
        )
    for model, group in groupby(rows, key=lambda pair: pair[0].model):
        about = "drawings only" if model == SHIPPED[0] else "photographs"
        say(f"{model}: {parameters(model):.0f} million parameters, {about}")
        for row, path in group:
            licence = row.licence + (" (no commercial use)" if row.commercial is False else "")
            say(f"  {row.name:20} {row.tag:20} {licence:36} {path or ''}".rstrip())
    return 0


def _verify() -> int:
    from ...checkpoints.verify import verify_all

    words = {True: "fits", False: "DIFFERS", None: "nothing to compare with"}
    verdicts = list(verify_all())
    for verdict in verdicts:
        say(f"{verdict.path}: {words[verdict.fits]}; {verdict.reason}")
    return int(any(verdict.fits is False for verdict in verdicts))


def parameters(model: str) -> float:
    """Millions of parameters of a model, from its sizes."""
    return MILLIONS.get(model) or _count(architecture(model)) / 1e6


def _count(config: ModelConfig) -> int:
    image, text = config.image, config.text

    def tower(width: int, hidden: int, layers: int) -> int:
        attention = 4 * width * width + 4 * width
        mlp = 2 * width * hidden + width + hidden
        return layers * (attention + mlp + 4 * width)

    tokens = (image.size // image.patch) ** 2 + 1
    pixels = 3 * image.patch**2 * image.width + image.width * (tokens + 5 + config.embed)
    words = text.width * (text.vocab + text.context + 2 + config.embed)
    return (
        pixels
        + words
        + 1  # logit_scale
        + tower(image.width, image.mlp_width, image.layers)
        + tower(text.width, text.mlp_width, text.layers)
    )


def _details(row: Pretrained, path: Path | None) -> dict[str, Any]:
    return {
        **asdict(row),
        "model": row.model,
        "file": None if path is None else str(path),
        "bytes": None if path is None else path.stat().st_size,
        "million_parameters": round(parameters(row.model), 1),
        "knows": "drawings" if row.model == SHIPPED[0] else "photographs",
        "commercial_use": row.commercial,
    }


def _fetch(words: list[str]) -> None:
    from ...checkpoints.describe import locate
    from ...checkpoints.known import first_tag

    name = words[0]
    tag = first_tag(name) if len(words) == 1 else words[1]
    if len(words) > 2:
        raise ValueError(f"--fetch takes a model and a tag; got {' '.join(words)}")
    path, _ = locate(name, tag)
    say(f"{path}: {name} {tag}, {path.stat().st_size / 1e6:.0f} MB")
