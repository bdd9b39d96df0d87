"""`gem-lite segment`: which pixel belongs to which word, in the formats that other tools take."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from ...background import BACKGROUND, not_asked
from .console import say
from .formats import add_format_argument, check_formats, open_writers
from .inputs import Input, add_input_arguments, find_inputs, goes_to_stdout
from .model import (
    add_model_arguments,
    check_names,
    count_windows,
    described_method,
    load_model,
)
from .words import (
    add_word_arguments,
    checked_words,
    chosen_words,
    reduced,
    split_words,
    templates_of,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ...pictures.writers import Labels
    from .pictures import Loaded

HELP = "which pixel belongs to which word: label maps, masks, COCO, YOLO"
EXAMPLES = """\
gem-lite segment {demo} --prompts fish drum elephant
gem-lite segment {demo} -p "drum|drum kit,fish" --background wall floor --threshold 0.6 --json
gem-lite segment {demo} -p fish drum --format coco masks
"""
FORMATS = (
    *("labels", "overlay", "masks", "coco", "coco-polygons", "npz", "geojson", "yolo"),
    "label-studio",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gem-lite segment`."""
    add_input_arguments(parser)
    add_word_arguments(parser, "classes; 'tv|television' are two names of one class")
    add_background_argument(parser)
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
        *("-o", "--output"),
        default="segments",
        help="folder, or - for the labels on standard output (default: %(default)s)",
    )
    add_format_argument(
        parser,
        FORMATS,
        ("labels", "overlay"),
        "labels = VOC's PNGs in the folder, the others inside it",
    )
    parser.add_argument(
        "--world",
        action="store_true",
        help="geojson in longitude and latitude, where a GeoTIFF lies (extra geo)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per picture")
    add_model_arguments(parser)


def add_background_argument(parser: argparse.ArgumentParser) -> None:
    """`--background`."""
    parser.add_argument(
        "--background",
        nargs="+",
        default=BACKGROUND,
        metavar="WORD",
        help="words for everything else; none = every pixel gets one of the prompts (default:"
        f" {' '.join(BACKGROUND)})",
    )


def background_words(args: argparse.Namespace, classes: Sequence[str]) -> list[str]:
    """The words of `--background` without those that are asked for; empty for `none`."""
    words = checked_words(split_words(args.background), "--background")
    return [] if words == ["none"] else not_asked(words, classes)


def run(args: argparse.Namespace) -> int:
    """Write every format's files for every picture."""
    classes = [checked_words(word.split("|")) for word in chosen_words(args)]
    names = [synonyms[0] for synonyms in classes]
    background = background_words(args, [word for synonyms in classes for word in synonyms])
    templates = templates_of(args)
    _check_options(args)
    inputs = find_inputs(args)
    to_stdout = goes_to_stdout(args, inputs)
    check_formats(args, FORMATS[0])
    check_names(args)

    import torch

    from ...pictures.formats import FORMATS as WRITERS
    from ...pictures.geo import world_of
    from ...pictures.writers import Labelled
    from ..progress import Progress
    from . import pictures

    writers = open_writers(args, WRITERS, names, inputs)
    model, transform = load_model(args)
    batch = pictures.batch_size(args.batch, model.network.device)

    def segmented(images: Any, size: tuple[int, int], note: str = "") -> Any:
        sides, scored = images.shape[-2:], 0
        windows = Progress(
            len(images) * count_windows(sides, args.window, args.stride) if args.window else 0,
            "windows",
        )

        def advance(count: int) -> None:
            nonlocal scored
            scored += count
            windows.show(scored, note)

        with torch.inference_mode():
            return model.segment(
                images,
                classes,
                background=background,
                threshold=args.threshold,
                scale=args.scale,
                window=args.window,
                stride=args.stride,
                size=size,
                templates=templates,
                return_ori=args.plain,
                advance=advance,
            )

    def work(group: list[Loaded]) -> list[tuple[Loaded, Any, Any, Any]]:
        images = torch.stack([each.tensor for each in group])
        sizes = {(each.picture.height, each.picture.width) for each in group}
        if len(sizes) > 1:  # of one size for the model only
            return [result for loaded in group for result in work([loaded])]
        result = segmented(images, sizes.pop(), group[0].input.source)
        worlds = [
            world_of(Path(each.input.source), (each.picture.height, each.picture.width))
            if args.world
            else None
            for each in group
        ]
        labels, confidence = result.labels.cpu(), result.confidence.cpu()
        return list(zip(group, labels, confidence, worlds, strict=True))

    # What is wrong with an option is said once, before the first picture.
    side = max(min(args.window or 0, model.header.size), model.network.config.image.patch)
    segmented(torch.zeros(1, 3, side, side), (8, 8))

    def write(result: tuple[Loaded, Any, Any, Any], source: Input) -> dict[str, Any]:
        loaded, labels, confidence, world = result
        labelled = Labelled(
            name=source.name,
            file_name=source.file_name,
            picture=reduced(loaded.picture),
            labels=labels.numpy(),
            confidence=confidence.numpy(),
            names=names,
            world=world,
        )
        if to_stdout:
            sys.stdout.buffer.write(cast("Labels", writers["labels"]).encode(labelled))
            return {}
        paths = {kind: str(writer.write(labelled)) for kind, writer in writers.items()}
        shares = _shares(labelled.labels, names)
        method = described_method(model, plain=args.plain)
        output = next(iter(paths.values()))
        return {"output": output, **paths, "method": method, "classes": shares}

    try:
        return pictures.for_each_picture(
            inputs,
            pictures.loader(args, model, transform),
            work,
            write,
            batch=batch,
            as_json=args.json,
            say=lambda entry: None if to_stdout else say(entry["output"]),
        )
    finally:
        for writer in writers.values() if not to_stdout else ():
            writer.close()


def _shares(labels: NDArray[np.int64], names: list[str]) -> list[dict[str, Any]]:
    """The part of the pixels that each class has, background first."""
    return [
        {"label": label, "name": name, "share": round(float((labels == label).mean()), 6)}
        for label, name in enumerate(["background", *names])
    ]


def _check_options(args: argparse.Namespace) -> None:
    if args.stride is not None and args.window is None:
        raise ValueError("--stride is given without --window; expected both, or the window alone")
    for option, value in (("--window", args.window), ("--stride", args.stride)):
        if value is not None and value < 1:
            raise ValueError(f"{option} is {value}; expected at least 1 pixel")
    if args.world and "geojson" not in args.format:
        raise ValueError("--world is of --format geojson; give both")
