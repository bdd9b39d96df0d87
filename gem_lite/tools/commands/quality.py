"""`gem-lite bench-quality`: GEM settings scored on labelled collages."""

import argparse
from dataclasses import asdict
from pathlib import Path

from ..quality.measure import figures, report
from ..quality.scenes import Sprites
from .console import Progress, say, say_json
from .model import SHIPPED, add_model_arguments, load_model

HELP = "score GEM settings on labelled collages with a known truth"
EXAMPLES = """\
gem-lite bench-quality --count 8
gem-lite bench-quality --count 8 --gem-depth 5 --ss-attn-temp adaptive --json
"""

# The few drawings that a checkout carries for this.
PACKAGE = Path(__file__).resolve().parents[2]
# In a wheel's data, or in a checkout.
SPRITES = (
    PACKAGE / "data" / "scenes" / "sprites.npz",
    PACKAGE.parent / "examples" / "scenes" / "sprites.npz",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gem-lite bench-quality`; the model in the box is its default."""
    parser.add_argument("--count", type=int, default=64, help="collages (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--sprites", type=Path, help="drawings; default: the few that ship")
    parser.add_argument("--json", action="store_true", help="print a JSON object, figures 0 to 1")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Print the table of figures, or all of it as JSON."""
    places = [args.sprites] if args.sprites else SPRITES
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"no drawings at {' or '.join(map(str, places))}; give --sprites (the file that"
            " examples/train_tiny/pictures.py writes)"
        )
    if args.count < 1:
        raise ValueError(f"--count is {args.count}; expected at least 1")
    if args.model is None and args.pretrained is None:
        args.model, args.pretrained = SHIPPED  # the collages are of what it knows
    model, transform = load_model(args)
    header = model.header
    progress: Progress | None = None

    def advance(done: int, total: int, style: str) -> None:
        nonlocal progress
        progress = progress or Progress(total, "collages")
        progress.show(done, style)

    sprites = Sprites.load(path)
    try:
        found = figures(
            model, transform, sprites, seed=args.seed, count=args.count, advance=advance
        )
    finally:
        if progress is not None:
            progress.clear()
    if args.json:
        say_json(
            {
                "model": header.model,
                "pretrained": header.pretrained,
                "gem": asdict(model.method),
                "count": args.count,
                "seed": args.seed,
                "figures": found,
            }
        )
        return
    say(f"{header.model} {header.pretrained}, {model.method}\n")
    say(report(found))
