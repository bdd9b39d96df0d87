"""`gem-lite heatmap`: a sheet of heat maps for every picture."""

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ...checkpoints.files import atomic_file
from ...pictures.overlays import contact_sheet, label_overlay, save_picture, visualize
from .console import say
from .inputs import INPUT_HELP, checked_output, find_pictures, for_each_picture, output_names
from .model import add_model_arguments, check_input, load_model
from .words import add_word_arguments, checked_words, reduced, templates_of

HELP = "heat maps of pictures, one sheet each"
EXAMPLES = """\
gem-lite heatmap {demo} --prompts fish drum
gem-lite heatmap {demo} --prompts fish drum "hot dog" --plain --output plain
gem-lite heatmap {demo} --prompts fish --arrays --json
"""


class _Result(NamedTuple):
    sheet: Image.Image
    maps: NDArray[np.float32]  # [p, h, w] cosines
    size: tuple[int, int]  # of the picture, (h, w)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gem-lite heatmap`."""
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help=INPUT_HELP)
    add_word_arguments(parser, "what to look for; a phrase in quotes")
    parser.add_argument(
        "--output", type=Path, default=Path("heatmaps"), help="folder (default: %(default)s)"
    )
    parser.add_argument(
        "--size", type=int, metavar="N", help="short side in pixels; default: a square"
    )
    parser.add_argument("--plain", action="store_true", help="plain CLIP's maps, to compare")
    parser.add_argument("--segment", action="store_true", help="add the segmentation")
    parser.add_argument(
        "--arrays", action="store_true", help="also write NAME.npz: the cosines [prompts, h, w]"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per picture")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write a sheet for every picture."""
    words = checked_words(args.prompts)
    templates = templates_of(args)
    inputs = find_pictures(args.inputs)
    targets = [args.output / f"{name}.png" for name in output_names(inputs.pictures)]
    checked_output(args.output, targets, inputs.pictures)
    model, transform = load_model(args)
    args.output.mkdir(parents=True, exist_ok=True)

    def work(picture: Image.Image) -> _Result:
        check_input(picture, args.size, model)
        image = transform(picture)[None]
        shown = reduced(picture)
        with torch.inference_mode():
            maps = model(image, words, normalize=False, return_ori=args.plain, templates=templates)
            sheet = visualize(shown, words, maps)
            if args.segment:
                size = (shown.height, shown.width)
                labels = model.segment(
                    image, words, return_ori=args.plain, size=size, templates=templates
                ).labels
                sheet.append(label_overlay(shown, labels[0], words))
        whole = contact_sheet(sheet, columns=min(4, len(sheet)))
        return _Result(whole, maps[0].cpu().numpy(), (picture.height, picture.width))

    def write(result: _Result, index: int) -> dict[str, Any]:
        target = targets[index]
        save_picture(result.sheet, target)
        told: dict[str, Any] = {"output": str(target)}
        if args.arrays:
            arrays = target.with_suffix(".npz")
            with atomic_file(arrays) as temporary, temporary.open("wb") as file:
                np.savez_compressed(file, maps=result.maps, prompts=np.array(words))
            told["arrays"] = str(arrays)
        if args.json:
            return {**told, "prompts": _figures(result, words)}
        say(str(target))
        return told

    return for_each_picture(inputs, work, write, as_json=args.json)


def _figures(result: _Result, words: list[str]) -> list[dict[str, Any]]:
    """For each prompt the highest and the mean cosine, and where in the picture the highest is."""
    figures = []
    height, width = result.maps.shape[1:]
    for word, cosines in zip(words, result.maps, strict=True):
        row, column = np.unravel_index(int(cosines.argmax()), cosines.shape)
        y = int((row + 0.5) * result.size[0] / height)
        x = int((column + 0.5) * result.size[1] / width)
        figures.append(
            {
                "prompt": word,
                "highest_cosine": round(float(cosines.max()), 6),
                "mean_cosine": round(float(cosines.mean()), 6),
                "highest_at": {"x": x, "y": y},
            }
        )
    return figures
