"""`gem-lite heatmap`: a sheet of heat maps for every picture."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from .console import say
from .formats import add_format_argument, check_formats, open_writers
from .inputs import Input, add_input_arguments, find_inputs, goes_to_stdout
from .model import add_model_arguments, check_names, described_method, load_model
from .segment import add_background_argument, background_words
from .words import LARGEST_SHOWN, add_word_arguments, chosen_words, reduced, templates_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from ...pictures.writers import Sheet
    from .pictures import Loaded

HELP = "heat maps of pictures, one sheet each"
EXAMPLES = """\
gem-lite heatmap {demo} --prompts fish drum
gem-lite heatmap {demo} -p fish,drum,"hot dog" --plain -o plain
gem-lite heatmap {demo} --prompts fish --format sheet npz --json
"""
FORMATS = ("sheet", "overlays", "maps", "npz")


class _Maps(NamedTuple):
    """What the model says of one picture."""

    loaded: Loaded
    maps: Tensor  # [p, h, w], cosines
    heat: Tensor  # [p, h, w] in [0, 1], to be shown
    present: Tensor  # [p]
    labels: Tensor | None  # [h, w]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gem-lite heatmap`."""
    add_input_arguments(parser)
    add_word_arguments(parser, "what to look for")
    parser.add_argument(
        *("-o", "--output"),
        default="heatmaps",
        help="folder, or - for standard output (default: %(default)s)",
    )
    parser.add_argument(
        "--size", type=int, metavar="N", help="short side in pixels; default: a square"
    )
    parser.add_argument("--plain", action="store_true", help="plain CLIP's maps, to compare")
    parser.add_argument(
        "--own-scale",
        action="store_true",
        help="stretch each map by itself; default: one scale for a picture's words, absent ones"
        " faded",
    )
    parser.add_argument("--segment", action="store_true", help="add the segmentation")
    add_background_argument(parser)
    add_format_argument(
        parser,
        FORMATS,
        ("sheet",),
        "sheet = all maps of a picture in the folder, npz = the cosines [prompts, h, w] beside it,"
        " overlays = a picture for each word, maps = the same in grey, without the picture",
    )
    parser.add_argument("--arrays", action="store_true", help="the same as npz beside --format")
    parser.add_argument("--json", action="store_true", help="print one JSON object per picture")
    add_model_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Write a sheet for every picture."""
    words = chosen_words(args)
    templates = templates_of(args)
    inputs = find_inputs(args)
    to_stdout = goes_to_stdout(args, inputs)
    check_formats(args, FORMATS[0])
    check_names(args)
    if args.arrays and "npz" not in args.format:
        args.format.append("npz")

    import torch

    from ...inference import maps_and_presence
    from ...method.heatmap import min_max
    from ...method.presence import common_scale
    from ...pictures.formats import MAP_FORMATS
    from ...pictures.overlays import label_overlay
    from ...pictures.sheets import LARGEST_TILE, headed, word_tiles
    from ...pictures.writers import Mapped
    from . import pictures

    writers = open_writers(args, MAP_FORMATS, words, inputs)
    model, transform = load_model(args)
    method = described_method(model, plain=args.plain)
    batch = pictures.batch_size(args.batch, model.network.device)
    with torch.inference_mode():
        text = model.encode_text(words, templates=templates)

    def work(group: list[Loaded]) -> list[_Maps]:
        images = torch.stack([each.tensor for each in group])
        with torch.inference_mode():
            maps, present = maps_and_presence(
                model, images, text, plain=args.plain, templates=templates
            )
            labels: list[Tensor | None] = [None] * len(group)
            if args.segment:
                segmented = model.segment(
                    images,
                    words,
                    background=background_words(args, words),
                    return_ori=args.plain,
                    templates=templates,
                )
                labels = list(segmented.labels)
            heat = min_max(maps) if args.own_scale else common_scale(maps, present)
        shares = (each.cpu() for each in (maps, heat, present))
        return list(map(_Maps, group, *shares, labels))

    def write(result: _Maps, source: Input) -> dict[str, Any]:
        loaded, maps, heat, present, labels = result
        shown = reduced(loaded.picture, LARGEST_SHOWN if "overlays" in writers else LARGEST_TILE)
        tiles = word_tiles(shown, words, heat, present.tolist())
        if labels is not None:
            tiles.append(headed(label_overlay(shown, labels, words), "segmentation"))
        size = (loaded.picture.height, loaded.picture.width)
        mapped = Mapped(
            name=source.name,
            file_name=source.file_name,
            names=words,
            tiles=tiles,
            maps=maps.numpy(),
            size=size,
        )
        if to_stdout:
            sys.stdout.buffer.write(cast("Sheet", writers["sheet"]).encode(mapped))
            return {}
        paths = {kind: str(writer.write(mapped)) for kind, writer in writers.items()}
        entry: dict[str, Any] = {"output": next(iter(paths.values())), "method": method, **paths}
        if args.arrays:
            entry["arrays"] = paths["npz"]
        if args.json:
            entry["prompts"] = _figures(maps.numpy(), present, words, loaded.picture.size)
        return entry

    return pictures.for_each_picture(
        inputs,
        pictures.loader(args, model, transform),
        work,
        write,
        batch=batch,
        as_json=args.json,
        say=lambda entry: None if to_stdout else say(entry["output"]),
    )


def _figures(
    maps: NDArray[np.float32], present: Tensor, words: list[str], size: tuple[int, int]
) -> list[dict[str, Any]]:
    """For each prompt its presence, highest and mean cosine, and where the highest is.

    size: the picture's, (w, h).
    """
    figures = []
    height, width = maps.shape[1:]
    for word, cosines, probability in zip(words, maps, present.tolist(), strict=True):
        row, column = divmod(int(cosines.argmax()), width)
        figures.append(
            {
                "prompt": word,
                "presence": round(probability, 6),
                "highest_cosine": round(float(cosines.max()), 6),
                "mean_cosine": round(float(cosines.mean()), 6),
                "highest_at": {
                    "x": int((column + 0.5) * size[0] / width),
                    "y": int((row + 0.5) * size[1] / height),
                },
            }
        )
    return figures
