"""The options of `gem-lite evaluate`, and the settings that they make of a protocol."""

import argparse
from pathlib import Path
from typing import Any

from ...factory import DTYPES
from ..commands.model import BEST
from .layouts import LAYOUTS
from .names import read_lines, shipped
from .protocols import ONE_TEMPLATE, PROTOCOLS, Settings, settings_for


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gem-lite evaluate`."""
    known = [*LAYOUTS, "folder", "openimages"]
    parser.add_argument("--dataset", required=True, choices=known, metavar="|".join(known))
    parser.add_argument("--root", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--split", help="default: the validation split")
    parser.add_argument("--images", type=Path, help="folder: pictures (default: ROOT/images)")
    parser.add_argument("--labels", type=Path, help="folder: PNGs (default: ROOT/labels)")
    parser.add_argument(
        "--names", type=Path, help="class names, one class a line, synonyms parted by commas"
    )
    parser.add_argument(
        "--zero",
        choices=("background", "ignored", "class"),
        default="background",
        help="folder: what the number 0 in the PNGs is",
    )
    parser.add_argument(
        "--model",
        help=f"default: {' '.join(BEST)}, the published numbers' own, fetched if it is not on this"
        " machine (never the model in the box: it knows drawings only)",
    )
    parser.add_argument("--pretrained", help="tag or weight file; default: the model's first tag")
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--plain", action="store_true", help="plain CLIP's maps, to compare")
    parser.add_argument("--output", type=Path, default=Path("evaluation"), help="folder")
    parser.add_argument("--limit", type=int, help="so many pictures, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of --limit (default: %(default)s)")
    parser.add_argument("--save-predictions", action="store_true", help="label maps as PNGs")
    parser.add_argument("--restart", action="store_true", help="forget what a killed run had done")
    parser.add_argument(
        "--save-every", type=float, default=10.0, metavar="SECONDS", help=argparse.SUPPRESS
    )
    knobs = parser.add_argument_group("protocol, and changes to it")
    knobs.add_argument("--protocol", choices=list(PROTOCOLS), default="sclip")
    knobs.add_argument("--short-side", type=int, help="0: squash to --square instead")
    knobs.add_argument("--square", type=int, metavar="SIDE", help="squash pictures to this square")
    knobs.add_argument("--window", type=int, help="side in pixels; 0: the whole picture")
    knobs.add_argument("--stride", type=int)
    knobs.add_argument("--flip", action=argparse.BooleanOptionalAction, default=None)
    knobs.add_argument("--refine", type=int, metavar="STEPS", help="edge refinement")
    knobs.add_argument("--templates", help="one, imagenet, or a file with a template a line")
    knobs.add_argument("--scale", type=float)
    knobs.add_argument("--threshold", type=float, help="0: no threshold")
    knobs.add_argument("--background", nargs="*", metavar="WORD", help="words for background")
    knobs.add_argument("--rival-names", action=argparse.BooleanOptionalAction, default=None)
    knobs.add_argument("--min-area", type=float)
    knobs.add_argument("--wording", choices=("own", "sclip"), help="of a known set's class names")


def chosen_settings(args: argparse.Namespace) -> Settings:
    """The protocol's settings with the changes that were asked for."""
    settings = settings_for(args.protocol, args.dataset)
    changes: dict[str, Any] = {
        name: value
        for name in ("flip", "refine", "scale", "rival_names", "min_area", "square")
        if (value := getattr(args, name)) is not None
    }
    if args.square is not None:
        changes["short_side"] = None
    for name in ("short_side", "window", "stride", "threshold"):
        if (value := getattr(args, name)) is not None:
            changes[name] = value or None
    for name in ("square", "short_side", "window", "stride", "refine"):
        if (value := changes.get(name)) is not None and value < 0:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; expected 0 or more")
    if args.background is not None:
        changes["background"] = tuple(args.background)
    if args.templates is not None:
        named = {"one": ONE_TEMPLATE, "imagenet": None}
        path = shipped("templates-imagenet")
        if args.templates not in named:
            path = Path(args.templates)
        changes["templates"] = named.get(args.templates) or read_lines(path)
    if args.wording is not None:
        changes["names"] = "" if args.wording == "own" else "-sclip"
    return settings.changed(changes)
