"""`gem-lite export`: a model with its words as one file that other programs run."""

import argparse
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ...background import BACKGROUND
from ...exporting.forms import FORMATS, OUTPUTS
from .console import say, say_json
from .model import add_model_arguments, load_model
from .segment import add_background_argument, background_words
from .words import add_word_arguments, checked_words, read_lines, split_words, templates_of

HELP = "a model with its words as one file for other programs: .pt2, ONNX"
EXAMPLES = """\
gem-lite export maps.pt2 --model tiny-emoji --prompts fish drum
gem-lite export labels.onnx --model tiny-emoji -p fish "drum|drum kit" --outputs labels --size 256
gem-lite export text.onnx --model tiny-emoji --outputs text
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gem-lite export`."""
    parser.add_argument("output", type=Path, metavar="FILE", help="such as maps.onnx or maps.pt2")
    add_word_arguments(parser, "words to bake in; for labels 'tv|television' is one class")
    parser.add_argument(
        "--outputs",
        choices=OUTPUTS,
        help="maps = stretched to [0, 1], cosines = as they are, patches = one a patch, labels ="
        " which pixel belongs to which word, features = of patches, for words that come later,"
        " text = the text tower for these (default: maps, or features without words)",
    )
    parser.add_argument("--format", choices=FORMATS, help="default: by the ending of FILE")
    parser.add_argument(
        "--size",
        dest="sides",
        nargs="+",
        type=int,
        metavar="N",
        help="one side or height and width of the pictures, to fix it; default: any",
    )
    add_background_argument(parser)
    parser.set_defaults(background=None)
    parser.add_argument("--threshold", type=float, metavar="X", help="for labels, as in segment")
    parser.add_argument("--scale", type=float, default=50.0, help="for labels, as in segment")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> None:
    """Write the file, and say what is in it."""
    words = checked_words(split_words(args.prompts))
    words += [line.strip() for line in read_lines(args.prompts_file)] if args.prompts_file else []
    outputs = args.outputs or ("maps" if words else "features")
    classes = [checked_words(word.split("|")) for word in words]
    background = args.background
    if outputs == "labels":
        args.background = args.background or BACKGROUND
        background = background_words(args, [name for names in classes for name in names]) or None
    if args.sides and len(args.sides) > 2:
        raise ValueError(f"--size has {len(args.sides)} numbers; expected a side, or two: h w")
    templates = templates_of(args)

    from ...exporting.export import export

    precision, args.precision = args.precision, "fp32"
    model, _ = load_model(args)
    sides = None if args.sides is None else (args.sides[0], args.sides[-1])
    with _torch_says_less():
        export(
            model,
            args.output,
            (classes if outputs == "labels" else words) or None,
            format=args.format,
            outputs=outputs,
            size=sides,
            precision=precision,
            templates=templates,
            background=background,
            threshold=args.threshold,
            scale=args.scale,
        )
    size = args.output.stat().st_size
    if args.json:
        say_json(
            {
                "output": str(args.output),
                "bytes": size,
                "outputs": outputs,
                "words": words,
                "size": sides,
                "precision": precision,
            }
        )
        return
    what = f"{outputs} of {len(words)} word{'s' * (len(words) != 1)}" if words else outputs
    where = "any size" if sides is None else f"{sides[0]} x {sides[1]} (h x w)"
    where = "" if outputs == "text" else f", pictures of {where}"
    say(f"{args.output}: {size / 1e6:.1f} MB, {what}{where}, {precision}")


@contextmanager
def _torch_says_less() -> Iterator[None]:
    """Without the exporter's notes on packages that are not needed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(record=True):
            yield
    finally:
        logger.setLevel(level)
