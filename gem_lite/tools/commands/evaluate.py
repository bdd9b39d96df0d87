"""`gem-lite evaluate`: mIoU on the field's data sets."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluation.layouts import LAYOUTS
from ..evaluation.names import read_names
from .console import say, say_json, tell
from .model import BEST, add_gem_arguments, chosen_method, chosen_model
from .protocol import add_protocol_arguments, chosen_settings

if TYPE_CHECKING:
    from ...predictor import GEMPredictor
    from ..evaluation.datasets import SegmentationSet
    from ..evaluation.evaluate import Evaluation
    from ..evaluation.openimages import PointSet
    from ..evaluation.protocols import Settings

HELP = "score a model on the field's data sets (mIoU), under the papers' protocols"
EXAMPLES = """\
gem-lite evaluate --dataset voc21 --root VOCdevkit --protocol clearclip
gem-lite evaluate --dataset folder --root photos --protocol gem --limit 100
"""
STOPPED = 128 + signal.SIGTERM  # exit code of a program that SIGTERM ended


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
        help="folder: what the number 0 in the PNGs is (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        help=f"default: {' '.join(BEST)}, the published numbers' own, fetched if it is not on this"
        " machine (never the model in the box: it knows drawings only)",
    )
    parser.add_argument("--pretrained", help="tag or weight file; default: the model's first tag")
    parser.add_argument(
        "--precision",
        choices=("fp32", "fp16", "bf16"),
        default="fp32",
        help="of the network (default: %(default)s; ClearCLIP's numbers are of fp16)",
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    parser.add_argument("--plain", action="store_true", help="plain CLIP's maps, to compare")
    parser.add_argument(
        "--output", type=Path, default=Path("evaluation"), help="folder (default: %(default)s)"
    )
    parser.add_argument("--limit", type=int, help="so many pictures, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of --limit (default: %(default)s)")
    parser.add_argument("--save-predictions", action="store_true", help="label maps as PNGs")
    parser.add_argument("--restart", action="store_true", help="forget what a killed run had done")
    parser.add_argument("--json", action="store_true", help="print the result as one JSON object")
    parser.add_argument(
        "--save-every", type=float, default=10.0, metavar="SECONDS", help=argparse.SUPPRESS
    )
    parser.add_argument(
        "--control",
        choices=("word", "subject", "brightness", "centre"),
        help="score a map that knows nothing of the word instead: another class's word, 'the main"
        " subject', how bright or how central a pixel is (these three: with CLIP's class for the"
        " picture)",
    )
    add_gem_arguments(parser)
    add_protocol_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the table (or JSON), write the files."""
    from ..evaluation.datasets import LayoutError, SegmentationSet
    from ..evaluation.evaluate import evaluate
    from ..progress import Progress
    from ..ranks import rank_device, this_rank

    rank = this_rank()
    device = rank_device(args.device, rank)
    settings = chosen_settings(args)
    try:
        data = opened(args, settings)
    except LayoutError as error:
        if rank.rank == 0:
            print(f"expected layout:\n{error.drawing}", file=sys.stderr)
        raise
    if isinstance(data, SegmentationSet):
        if not data.background:
            settings = settings.without_background()
        elif settings.threshold is None and not settings.background and rank.rank == 0:
            tell(
                "neither a threshold nor a word for background: no pixel becomes background, whose"
                " IoU is 0; give --threshold, --background, or --zero ignored"
            )
    predictions = _folders(args, data)
    model = load_model(args, device)
    progress: Progress | None = None

    def advance(done: int, left: int) -> None:
        nonlocal progress
        if progress is None:
            progress = Progress(done + left, "pictures")
            if done and rank.rank == 0:
                tell(f"continues: {done} of {done + left} pictures are done")
        if rank.rank == 0:
            progress.show(done)

    previous = signal.signal(signal.SIGTERM, _stop)
    try:
        evaluation = evaluate(
            model,
            data,
            settings,
            output=args.output,
            about={
                "dataset": args.dataset,
                "root": str(args.root.resolve()),
                "split": args.split,
                "protocol": args.protocol,
                "precision": args.precision,
                "save_predictions": args.save_predictions,
            },
            rank=rank,
            device=device,
            limit=args.limit,
            seed=args.seed,
            plain=args.plain,
            control=args.control,
            predictions=predictions,
            restart=args.restart,
            save_every=args.save_every,
            advance=advance,
        )
    except _Stopped:
        tell(f"stopped; start the same command again, and it continues from {args.output}")
        return STOPPED
    except ConnectionError as error:
        raise ConnectionError(
            f"{error}; start the same command again, and it continues from {args.output}"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, previous)
        if progress is not None:
            progress.clear()
    if rank.rank > 0:
        return 0
    _print(args, evaluation)
    return 0


def _print(args: argparse.Namespace, evaluation: Evaluation) -> None:
    from ..evaluation import report

    if args.json:
        say_json(report.json_value({**evaluation.result, "speed": evaluation.speed}))
        return
    say(report.table(evaluation.rows, evaluation.columns))
    say(", ".join(f"{name} {100 * value:.2f}" for name, value in evaluation.summary.items()))
    rate = evaluation.speed["pictures_per_second"]
    say(f"{rate:.2f} pictures a second; {args.output / 'result.json'}")


class _Stopped(BaseException):
    """SIGTERM came."""


def _stop(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # while what is done is being saved
    raise _Stopped


def load_model(args: argparse.Namespace, device: str) -> GEMPredictor:
    """The model that the options ask for."""
    from ...factory import create_model_and_transforms

    name, tag = chosen_model(args, fetch=True)
    method, settings = chosen_method(args)
    model, _ = create_model_and_transforms(
        name,
        tag,
        args.gem_depth,
        args.ss_attn_iter,
        args.ss_attn_temp,
        precision=args.precision,
        device=device,
        gem_streams=args.gem_streams,
        gem_residual=False if args.no_gem_residual else None,
        method=method,
        settings=settings,
    )
    return model


def opened(args: argparse.Namespace, settings: Settings) -> SegmentationSet | PointSet:
    """The data set that the options ask for."""
    from ..evaluation.datasets import open_folder, open_set
    from ..evaluation.openimages import open_points

    if not args.root.is_dir():
        raise FileNotFoundError(f"--root {args.root}: there is no such folder")
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
    if args.dataset == "openimages":
        raise ValueError("--save-predictions has nothing to save for points")
    if len(data.classes) > 255:
        raise ValueError(f"--save-predictions: {len(data.classes)} classes; a PNG has room for 255")
    folder: Path = args.output / "predictions"
    folder.mkdir(exist_ok=True)
    return folder
