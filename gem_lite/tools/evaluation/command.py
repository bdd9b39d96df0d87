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

from ..._version import __version__
from ...factory import create_model_and_transforms
from ...predictor import GEMPredictor
from ..commands.model import chosen_model
from ..ranks import joined, rank_device, this_rank, wait_for_all
from . import report
from .confusion import scores
from .datasets import LayoutError, SegmentationSet, open_folder, open_set
from .names import read_names
from .openimages import PointSet, open_points, point_scores
from .options import chosen_settings
from .progress import Progress
from .protocols import Settings
from .run import clear, run
from .tasks import chosen_items, pixel_task, point_task


def evaluate(args: argparse.Namespace) -> None:
    """Run `gem-lite evaluate`. Raises ValueError, OSError or ConnectionError with one line."""
    rank = this_rank()
    device = rank_device(args.device, rank)
    settings = chosen_settings(args)
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
        "gem": asdict(model.method),
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
