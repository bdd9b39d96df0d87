"""`gem-lite demo`: the shipped small model on a picture that ships too, offline."""

import argparse
from pathlib import Path

from .console import say
from .model import add_device_argument, chosen_device

HELP = "the shipped small model on a picture, offline"
EXAMPLES = """\
gem-lite demo
gem-lite demo --output sheet.jpg
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gem-lite demo`."""
    parser.add_argument(
        *("-o", "--output"), type=Path, default=Path("demo.png"), help="default: %(default)s"
    )
    add_device_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Write the sheet of the demonstration."""
    from ...pictures.saving import save_picture
    from ..demo import FIRST_PICTURE, demo_picture, demo_sheet

    picture, words = demo_picture(FIRST_PICTURE)
    save_picture(demo_sheet(picture, words, device=chosen_device(args.device)), args.output)
    say(f"{args.output.resolve()}: heat maps of {', '.join(words)}, GEM beside plain CLIP")
