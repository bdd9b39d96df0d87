"""`gem-lite segment`: a label map for every picture, and how it looks over the picture."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...pictures.labels import label_picture
from ...pictures.overlays import label_overlay, save_picture
from .console import say
from .inputs import INPUT_HELP, checked_output, find_pictures, for_each_picture, output_names
from .model import add_model_arguments, check_input, load_model
from .words import add_word_arguments, checked_words, reduced, templates_of

HELP = "which pixel belongs to which word: label maps"
EXAMPLES = """\
gem-lite segment {demo} --prompts fish drum elephant --background background
gem-lite segment {demo} --prompts "drum|drum kit" fish --threshold 0.6 --json
"""


class _Result(NamedTuple):
    overlay: Image.Image
    labels: Tensor  # [h, w], 0 = background, k + 1 = class k


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gem-lite segment`."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=INPUT_HELP)
    add_word_arguments(parser, "classes; 'tv|television' are two names of one class")
    parser.add_argument(
        "--background", nargs="+", default=[], metavar="WORD", help="words for everything else"
    )
    parser.add_argument(
        "--threshold", type=float, metavar="X", help="pixels whose best probability is lower: none"
    )
    parser.add_argument(
        "--scale", type=float, default=50.0, help="of cosines in the softmax (default: %(default)s)"
    )
    parser.add_argument("--window", type=int, metavar="N", help="side of overlapping windows")
    parser.add_argument("--stride", type=int, metavar="N", help="default: half a window")
    parser.add_argument(
        "--size", type=int, metavar="N", help="short side in pixels; default: a square"
    )
    parser.add_argument("--plain", action="store_true", help="plain CLIP's, to compare")
    parser.add_argument(
        "--output", type=Path, default=Path("segments"), help="folder (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per picture")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write NAME.png, the labels (0 = background), and NAME-overlay.png for every picture."""
    classes = [checked_words(word.split("|")) for word in checked_words(args.prompts)]
    names = [synonyms[0] for synonyms in classes]
    background = checked_words(args.background, "--background")
    templates = templates_of(args)
    if args.stride is not None and args.window is None:
        raise ValueError("--stride is given without --window; expected both, or the window alone")
    inputs = find_pictures(args.inputs)
    targets = [args.output / f"{name}.png" for name in output_names(inputs.pictures)]
    overlays = [target.with_name(f"{target.stem}-overlay.png") for target in targets]
    if clash := {str(path).lower() for path in targets} & {str(path).lower() for path in overlays}:
        raise ValueError(f"{min(clash)} would be written twice; rename the input called so")
    checked_output(args.output, [*targets, *overlays], inputs.pictures)
    model, transform = load_model(args)
    args.output.mkdir(parents=True, exist_ok=True)

    def work(picture: Image.Image) -> _Result:
        if args.window is None:
            check_input(picture, args.size, model)
        return labelled(transform(picture)[None], picture)

    def labelled(image: Tensor, picture: Image.Image) -> _Result:
        with torch.inference_mode():
            found = model.segment(
                image,
                classes,
                background=background,
                threshold=args.threshold,
                scale=args.scale,
                window=args.window,
                stride=args.stride,
                size=(picture.height, picture.width),
                templates=templates,
                return_ori=args.plain,
            )
        overlay = label_overlay(reduced(picture), found.labels[0], names)
        return _Result(overlay, found.labels[0])

    # What is wrong with an option is told once, before the first picture.
    side = max(args.window or 0, model.network.config.image.patch)
    labelled(torch.zeros(1, 3, side, side), Image.new("RGB", (8, 8)))

    def write(result: _Result, index: int) -> dict[str, Any]:
        if len(names) < 256:
            picture = label_picture(result.labels)
        else:  # too many for a palette
            picture = Image.fromarray(result.labels.cpu().numpy().astype(np.uint16))
        save_picture(picture, targets[index])
        save_picture(result.overlay, overlays[index])
        if not args.json:
            say(str(targets[index]))
        return {
            "output": str(targets[index]),
            "overlay": str(overlays[index]),
            "classes": _shares(result.labels, names),
        }

    return for_each_picture(inputs, work, write, as_json=args.json)


def _shares(labels: Tensor, names: list[str]) -> list[dict[str, Any]]:
    counts = np.bincount(labels.cpu().numpy().ravel(), minlength=len(names) + 1)
    return [
        {"label": label, "name": name, "share": round(float(count / counts.sum()), 6)}
        for label, (name, count) in enumerate(zip(["background", *names], counts, strict=True))
    ]
