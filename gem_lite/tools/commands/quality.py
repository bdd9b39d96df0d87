"""`gem-lite bench-quality`: methods and settings scored on labelled collages."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..demo import SHIPPED
from ..progress import Progress
from ..settings import asked_method
from .console import say, say_json
from .model import add_model_arguments, load_model

if TYPE_CHECKING:
    from ...predictor import GEMPredictor

HELP = "score methods and settings on labelled collages with a known truth"
EXAMPLES = """\
gem-lite bench-quality --count 8
gem-lite bench-quality --count 8 --gem-depth 5 --ss-attn-temp adaptive --json
gem-lite bench-quality --count 8 --method gem naclip:std=3 clearclip
gem-lite bench-quality --count 8 --presence
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
    parser.add_argument(
        "--seed", type=int, nargs="+", default=[0], help="one or several: as many collages of each"
    )
    parser.add_argument("--sprites", type=Path, help="drawings; default: the few that ship")
    parser.add_argument(
        "--presence",
        action="store_true",
        help="instead: how well scores tell words that are in a picture from others (AUC)",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object, figures 0 to 1")
    add_model_arguments(parser, several=True)


def run(args: argparse.Namespace) -> None:
    """Print the table of figures, or all of it as JSON."""
    from ..quality.compare import as_json, as_markdown, compare, explained
    from ..quality.measure import figures, report
    from ..quality.presence import presence_figures, presence_report
    from ..quality.scenes import scenes
    from ..quality.sprites import Sprites

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
    if len(args.seed) > 1 and not args.method:
        raise ValueError("several --seed go with --method; give one, or say which methods")
    asked = _rows(args)
    model, transform = load_model(args)
    progress: Progress | None = None

    def advance(done: int, total: int, name: str) -> None:
        nonlocal progress
        progress = progress or Progress(total, "collages")
        progress.show(done, name)

    sprites = Sprites.load(path)
    rows, columns = [], {}
    try:
        if asked:
            models = chosen_methods(model, asked)
            collages = [
                scene
                for seed in args.seed
                for scene in scenes(sprites, seed=seed, count=args.count, jitter=0.0)
            ]
            rows = compare(models, collages, transform, advance=advance)
        else:
            measured: Callable[..., Any] = presence_figures if args.presence else figures
            columns = measured(
                model, transform, sprites, seed=args.seed[0], count=args.count, advance=advance
            )
    finally:
        if progress is not None:
            progress.clear()
    header = model.header
    if args.json:
        about = {
            "model": header.model,
            "pretrained": header.pretrained,
            "gem": asdict(model.method),
            "count": args.count,
            "seed": args.seed if asked else args.seed[0],
        }
        say_json({**about, "methods": as_json(rows)} if rows else {**about, "figures": columns})
    elif rows:
        say(f"{header.model} {header.pretrained}, {args.count * len(args.seed)} collages\n")
        say(as_markdown(rows))
        say(f"\nIn brackets: 95 % intervals over pictures. Controls:\n{explained()}")
    else:
        say(f"{header.model} {header.pretrained}, {model.method}\n")
        say(presence_report(columns) if args.presence else report(columns))


def _rows(args: argparse.Namespace) -> list[str] | None:
    """The methods that are to have a row each; one that is the model's own becomes `args.method`.

    Raises ValueError for several where one is expected.
    """
    if args.presence:
        if len(args.method or []) > 1:
            raise ValueError("--presence goes with one --method")
        args.method = args.method[0] if args.method else None
        return None
    asked: list[str] | None = args.method
    args.method = None
    if asked and args.set:
        raise ValueError("--set goes with one method; write settings as --method naclip:std=3")
    return asked


def chosen_methods(model: GEMPredictor, texts: Sequence[str]) -> dict[str, GEMPredictor]:
    """The model under each of the methods, by their names and settings as written.

    "gem" without settings is the model's own method where that is GEM. Raises ValueError.
    """
    from ...method.methods import methods

    if "all" in texts:
        texts = [*(text for text in texts if text != "all"), *(each.name for each in methods())]
    chosen = {}
    for text in dict.fromkeys(texts):
        method, settings = asked_method(text)
        own = method == model.method.name
        chosen[text] = model.with_method(model.method if own else method, **settings)
    return chosen
