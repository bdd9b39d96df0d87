"""`gem-lite convert`: another layout's weights into a file of ours."""

import argparse
from itertools import count
from pathlib import Path

from ...checkpoints.known import default_file_name, fetch_source, find_row, known_row
from ...method.config import ACTIVATIONS
from ..progress import Progress
from .console import say, say_json
from .model import PRECISIONS, add_device_argument, chosen_device

HELP = "another layout's weights into a file of ours"
EXAMPLES = """\
gem-lite convert --model ViT-B/16 --pretrained openai
gem-lite convert --model tiny-emoji --pretrained v2 --source {weights} --output small.safetensors
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gem-lite convert`."""
    parser.add_argument("--model", required=True, help="architecture, such as ViT-B/16")
    parser.add_argument("--pretrained", required=True, help="tag, such as openai")
    parser.add_argument("--source", type=Path, help="file or folder; default: fetch the tag's file")
    parser.add_argument(
        "-o", "--output", type=Path, help="file; default: by model and tag, in weights/"
    )
    parser.add_argument("--dtype", choices=PRECISIONS, help="default: each tensor as it is")
    parser.add_argument("--activation", choices=ACTIVATIONS, help="for a file that does not say")
    parser.add_argument("--json", action="store_true", help="print what was written as JSON")
    add_device_argument(parser)


def run(args: argparse.Namespace) -> None:
    """Convert a file, fetched if need be, and say what was written."""
    from ...checkpoints.convert import convert
    from ...checkpoints.describe import header_for
    from ...checkpoints.others import read_source
    from ...factory import DTYPES, checked_device

    device = checked_device(chosen_device(args.device))
    row = find_row(args.model, args.pretrained)
    path = args.source or fetch_source(row or known_row(args.model, args.pretrained))
    progress = Progress(4, "steps", even=False)
    steps = count()

    def advance(step: str) -> None:
        progress.show(next(steps), step)

    try:
        advance(f"reading {path}")
        source = read_source(path)
        advance("checking names and hash")
        header = header_for(
            source, args.model, row, activation=args.activation, tag=args.pretrained
        )
        output = args.output or _default_output(args.model, args.pretrained)
        dtype = None if args.dtype is None else DTYPES[args.dtype]
        error = convert(source, output, header, dtype=dtype, device=device, advance=advance)
    finally:
        progress.clear()
    if args.json:
        say_json(
            {
                "output": str(output),
                "bytes": output.stat().st_size,
                "activation": header.config.activation,
                "verified": header.verified,
                "largest_difference": error,
            }
        )
        return
    say(
        f"{output}: {output.stat().st_size / 1e6:.0f} MB, {header.config.activation}, source"
        f" {header.verified}; features within {error:.1g} of the source's"
    )


def _default_output(model: str, tag: str) -> Path:
    row = find_row(model, tag)
    name = default_file_name(row) if row else f"{model}-{tag}.safetensors".replace("/", "-")
    folder = Path("weights")
    return folder / name if folder.is_dir() else Path(name)
