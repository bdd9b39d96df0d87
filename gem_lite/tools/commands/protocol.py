"""The options that choose a protocol of `gem-lite evaluate` and change it."""

import argparse
from pathlib import Path
from typing import Any

from ..evaluation.names import read_lines, shipped
from ..evaluation.protocols import ONE_TEMPLATE, PROTOCOLS, Settings, settings_for

WORDINGS = {"own": "ours", "sclip": "sclip", "clearclip": "clearclip"}  # and whose protocol has it
# What a data set of points does not use: maps of one window, no choice between classes.
PIXELS_ONLY = (
    *("window", "stride", "pad", "flip", "refine", "pamr", "scale", "threshold", "background"),
    *("rival_names", "min_area", "wording", "names"),
)


def add_protocol_arguments(parser: argparse.ArgumentParser) -> None:
    """`--protocol` and an option for each of its settings."""
    knobs = parser.add_argument_group("protocol, and changes to it")
    knobs.add_argument(
        "--protocol", choices=list(PROTOCOLS), help="default: sclip; gem for openimages"
    )
    knobs.add_argument("--short-side", type=int, help="0: squash to --square instead")
    knobs.add_argument("--square", type=int, metavar="SIDE", help="squash pictures to this square")
    knobs.add_argument(
        "--resize",
        choices=("opencv", "bicubic"),
        help="bilinear on 8 bits, as the papers do; or bicubic with antialiasing, CLIP's own",
    )
    knobs.add_argument("--window", type=int, help="side in pixels; 0: the whole picture")
    knobs.add_argument("--stride", type=int)
    knobs.add_argument(
        "--pad",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="windows to whole patches",
    )
    knobs.add_argument("--flip", action=argparse.BooleanOptionalAction, default=None)
    knobs.add_argument(
        "--refine", type=int, metavar="STEPS", help="edge refinement, this package's"
    )
    knobs.add_argument("--pamr", type=int, metavar="STEPS", help="edge refinement as in NACLIP")
    knobs.add_argument("--templates", help="one, imagenet, or a file with a template a line")
    knobs.add_argument("--scale", type=float)
    knobs.add_argument("--threshold", type=float, help="0: no threshold")
    knobs.add_argument("--background", nargs="*", metavar="WORD", help="words for background")
    knobs.add_argument("--rival-names", action=argparse.BooleanOptionalAction, default=None)
    knobs.add_argument("--min-area", type=float)
    knobs.add_argument("--wording", choices=list(WORDINGS), help="of a known set's class names")


def chosen_settings(args: argparse.Namespace) -> Settings:
    """The protocol's settings with the changes that the options ask for; sets `args.protocol`."""
    args.protocol = args.protocol or ("gem" if args.dataset == "openimages" else "sclip")
    if args.dataset == "openimages":
        unused = [name for name in PIXELS_ONLY if getattr(args, name) is not None]
        if args.protocol not in ("gem", "ours"):
            raise ValueError(f"--protocol {args.protocol} has no settings for openimages; use gem")
        if unused:
            options = ", ".join(f"--{name.replace('_', '-')}" for name in unused)
            raise ValueError(f"{options}: not used for openimages, whose points need no labels")
    settings = settings_for(args.protocol, args.dataset)
    changes: dict[str, Any] = {
        name: value
        for name in (
            *("flip", "refine", "pamr", "scale", "rival_names", "min_area", "square", "resize"),
            "pad",
        )
        if (value := getattr(args, name)) is not None
    }
    if args.square is not None:
        changes["short_side"] = None
    for name in ("short_side", "window", "stride", "threshold"):
        if (value := getattr(args, name)) is not None:
            changes[name] = value or None
    for name in ("square", "short_side", "window", "stride", "refine", "pamr"):
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
        changes["names"] = settings_for(WORDINGS[args.wording], args.dataset).names
    return settings.changed(changes)
