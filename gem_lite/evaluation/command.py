"""`gem-lite evaluate`: a data set through a model under a protocol, with mIoU at the end."""

import argparse
import hashlib
import json
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._version import __version__
from ..commands.model import BEST, chosen_model
from ..factory import DTYPES, create_model_and_transforms
from ..predictor import GEMPredictor
from ..ranks import joined, rank_device, this_rank, wait_for_all
from . import report
from .confusion import scores
from .datasets import LayoutError, SegmentationSet, open_folder, open_set
from .layouts import LAYOUTS
from .names import read_lines, read_names, shipped
from .openimages import PointSet, open_points, point_scores
from .progress import Progress
from .protocols import ONE_TEMPLATE, PROTOCOLS, Settings, settings_for
from .run import clear, run
from .tasks import chosen_items, pixel_task, point_task


def add_evaluate_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gem-lite evaluate`."""
    known = [*LAYOUTS, "folder", "openimages"]
    parser.add_argument("--dataset", required=True, choices=known, metavar="|".join(known))
    parser.add_argument("--root", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--split", help="default: the validation split")
    parser.add_argument("--images", type=Path, help="folder: pictures (default: ROOT/images)")
    parser.add_argument("--labels", type=Path, help="folder: PNGs (default: ROOT/labels)")
    parser.add_argument(
        "--names", type=Path, help="class names, one class a line, synonyms parted by commas"
    )
    parser.add_argument(
        "--zero",
        choices=("background", "ignored", "class"),
        default="background",
        help="folder: what the number 0 in the PNGs is",
    )
    parser.add_argument(
        "--model",
        help=f"default: {' '.join(BEST)}, the published numbers' own, fetched if it is not on this"
        " machine (never the model in the box: it knows drawings only)",
    )
    parser.add_argument("--pretrained", help="tag or weight file; default: the model's first tag")
    parser.add_argument("--precision", choices=list(DTYPES), default="fp32")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--plain", action="store_true", help="plain CLIP's maps, to compare")
    parser.add_argument("--output", type=Path, default=Path("evaluation"), help="folder")
    parser.add_argument("--limit", type=int, help="so many pictures, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of --limit (default: %(default)s)")
    parser.add_argument("--save-predictions", action="store_true", help="label maps as PNGs")
    parser.add_argument("--restart", action="store_true", help="forget what a killed run had done")
    parser.add_argument(
        "--save-every", type=float, default=10.0, metavar="SECONDS", help=argparse.SUPPRESS
    )
    knobs = parser.add_argument_group("protocol, and changes to it")
    knobs.add_argument("--protocol", choices=list(PROTOCOLS), default="sclip")
    knobs.add_argument("--short-side", type=int, help="0: squash to --square instead")
    knobs.add_argument("--square", type=int, metavar="SIDE", help="squash pictures to this square")
    knobs.add_argument("--window", type=int, help="side in pixels; 0: the whole picture")
    knobs.add_argument("--stride", type=int)
    knobs.add_argument("--flip", action=argparse.BooleanOptionalAction, default=None)
    knobs.add_argument("--refine", type=int, metavar="STEPS", help="edge refinement")
    knobs.add_argument("--templates", help="one, imagenet, or a file with a template a line")
    knobs.add_argument("--scale", type=float)
    knobs.add_argument("--threshold", type=float, help="0: no threshold")
    knobs.add_argument("--background", nargs="*", metavar="WORD", help="words for background")
    knobs.add_argument("--rival-names", action=argparse.BooleanOptionalAction, default=None)
    knobs.add_argument("--min-area", type=float)
    knobs.add_argument("--wording", choices=("own", "sclip"), help="of a known set's class names")
    parser.set_defaults(run=evaluate)


def evaluate(args: argparse.Namespace) -> None:
    """Run `gem-lite evaluate`. Raises ValueError, OSError or ConnectionError with one line."""
    rank = this_rank()
    device = rank_device(args.device, rank)
    settings = _settings(args)
    try:
        data = _open(args, settings)
    except LayoutError as error:
        if rank.rank == 0:
            print(f"expected layout:\n{error.drawing}", file=sys.stderr)
        raise
    if isinstance(data, SegmentationSet) and not data.background:
        settings = settings.without_background()
    chosen = chosen_items(len(data.items), args.limit, args.seed)
    name, tag = chosen_model(args, fetch=True)
    model, _ = create_model_and_transforms(name, tag, precision=args.precision, device=device)
    predictions = _folders(args, data)
    about = _about(args, data, settings, model, chosen)
    if isinstance(data, SegmentationSet):
        task = pixel_task(
            model, data, settings, chosen=chosen, plain=args.plain, predictions=predictions
        )
    else:
        task = point_task(model, data, settings, chosen=chosen, plain=args.plain)
    previous = signal.signal(signal.SIGTERM, _stopped)
    try:
        with joined(rank, device):
            if args.restart:
                if rank.rank == 0:
                    clear(args.output)
                wait_for_all(rank, device)
            progress, began = Progress() if rank.rank == 0 else None, time.monotonic()
            fresh = [0]

            def advance(done: int, left: int) -> None:
                fresh[0] = max(fresh[0], left)  # what this run has to do
                if progress is not None:
                    progress(done, left)

            counts = run(
                task,
                folder=args.output,
                key=json.dumps(about, sort_keys=True),
                rank=rank,
                device=device,
                save_every=args.save_every,
                advance=advance,
            )
            seconds = time.monotonic() - began
            if rank.rank == 0:
                if progress is not None:
                    progress.close()
                speed = {"pictures": fresh[0], "seconds": seconds, "processes": rank.world}
                _finish(args, data, about, counts, speed)
            wait_for_all(rank, device)
    except ConnectionError as error:
        raise ConnectionError(
            f"{error}; start the same command again, and it goes on from {args.output}"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, previous)


def _stopped(number: int, frame: object) -> None:
    raise InterruptedError(
        "evaluate was told to stop (under torchrun: another process ended); start the same command"
        " again to go on"
    )


def _settings(args: argparse.Namespace) -> Settings:
    """The protocol's settings with the changes that were asked for."""
    settings = settings_for(args.protocol, args.dataset)
    changes: dict[str, Any] = {
        name: value
        for name in ("flip", "refine", "scale", "rival_names", "min_area", "square")
        if (value := getattr(args, name)) is not None
    }
    if args.square is not None:
        changes["short_side"] = None
    for name in ("short_side", "window", "stride", "threshold"):
        if (value := getattr(args, name)) is not None:
            changes[name] = value or None
    for name in ("square", "short_side", "window", "stride", "refine"):
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
        changes["names"] = "" if args.wording == "own" else "-sclip"
    return settings.changed(changes)


def _open(args: argparse.Namespace, settings: Settings) -> SegmentationSet | PointSet:
    if not args.root.is_dir():
        raise FileNotFoundError(f"--root {args.root} is no folder")
    if args.dataset == "openimages":
        return open_points(args.root, split=args.split or "val")
    if args.dataset == "folder":
        return open_folder(
            args.images or args.root / "images",
            args.labels or args.root / "labels",
            args.names or args.root / "names.txt",
            zero=args.zero,
        )
    data = open_set(args.dataset, args.root, split=args.split, names=settings.names)
    return data if args.names is None else data.renamed(read_names(args.names))


def _folders(args: argparse.Namespace, data: SegmentationSet | PointSet) -> Path | None:
    """Make the output folder; the one for predictions, if they are wanted."""
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"--output {args.output} is a file; give the name of a folder")
    args.output.mkdir(parents=True, exist_ok=True)
    if not args.save_predictions:
        return None
    if isinstance(data, PointSet):
        raise ValueError("--save-predictions has nothing to save for points")
    if len(data.classes) > 255:
        raise ValueError(f"--save-predictions: {len(data.classes)} classes; a PNG has room for 255")
    folder: Path = args.output / "predictions"
    folder.mkdir(exist_ok=True)
    return folder


def _about(
    args: argparse.Namespace,
    data: SegmentationSet | PointSet,
    settings: Settings,
    model: GEMPredictor,
    chosen: list[int],
) -> dict[str, Any]:
    """Everything that the numbers depend on."""
    names = "\n".join(data.items[index].name for index in chosen)
    return {
        "dataset": args.dataset,
        "root": str(args.root.resolve()),
        "split": args.split,
        "pictures": len(chosen),
        "pictures_sha256": hashlib.sha256(names.encode()).hexdigest(),
        "limit": args.limit,
        "seed": args.seed,
        "classes": data.classes,
        "protocol": args.protocol,
        "settings": settings.as_json(),
        "model": model.header.model,
        "pretrained": model.header.pretrained,
        "weights_sha256": _digest(model),
        "gem": asdict(model.network.gem),
        "plain": args.plain,
        "precision": args.precision,
        "save_predictions": args.save_predictions,
        "version": __version__,
    }


def _digest(model: GEMPredictor) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _finish(
    args: argparse.Namespace,
    data: SegmentationSet | PointSet,
    about: dict[str, Any],
    counts: Tensor,
    speed: dict[str, Any],
) -> None:
    """Print the table, write the files, remove the partial ones."""
    summary: dict[str, float]
    rows: list[tuple[str, list[float]]]
    if isinstance(data, SegmentationSet):
        found = scores(counts, background=data.background)
        names = [*(["background"] if data.background else []), *(each[0] for each in data.classes)]
        rows = [
            (name, [iou, recall])
            for name, iou, recall in zip(names, found.iou, found.recall, strict=True)
        ]
        columns = ["IoU", "recall"]
        summary = {
            "miou": found.miou,
            "pixel_accuracy": found.pixel_accuracy,
            "mean_recall": found.mean_recall,
        }
    else:
        each, mean = point_scores(counts)
        rows = [(name, [value]) for name, value in zip(data.classes, each, strict=True)]
        columns, summary = ["p-IoU"], {"p_miou": mean}
    rate = speed["pictures"] / speed["seconds"] if speed["pictures"] else 0.0
    result = {
        **about,
        **summary,
        "per_class": {name: values[0] for name, values in rows},
        "counts": counts.tolist(),
        "speed": {**speed, "pictures_per_second": rate},
    }
    report.write_csv(rows, columns, args.output / "classes.csv")
    report.write_json(result, args.output / "result.json")
    clear(args.output)
    print(report.table(rows, columns))
    print(", ".join(f"{name} {100 * value:.2f}" for name, value in summary.items()))
    print(f"{rate:.2f} pictures a second; {args.output / 'result.json'}")
