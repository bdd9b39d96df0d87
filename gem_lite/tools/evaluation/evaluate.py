"""A data set through a model under a protocol: runs it, adds up the counts, writes the scores."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..._version import __version__
from ...predictor import GEMPredictor
from ..ranks import Rank, joined, wait_for_all
from . import report
from .confusion import scores
from .datasets import SegmentationSet
from .openimages import PointSet, point_scores
from .protocols import Settings
from .run import clear, run
from .tasks import chosen_items, pixel_task, point_task


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The scores of one evaluation, as they were written."""

    rows: report.Rows  # classes
    columns: tuple[str, ...]  # titles of their figures
    summary: dict[str, float]
    result: dict[str, Any]  # what result.json has
    speed: dict[str, float]  # what speed.json has: no score depends on it


def evaluate(
    model: GEMPredictor,
    data: SegmentationSet | PointSet,
    settings: Settings,
    *,
    output: Path,
    about: Mapping[str, Any],
    rank: Rank,
    device: str,
    limit: int | None = None,
    seed: int = 0,
    plain: bool = False,
    control: str | None = None,
    predictions: Path | None = None,
    restart: bool = False,
    save_every: float = 10.0,
    advance: Callable[[int, int], None] = lambda done, left: None,
) -> Evaluation:
    """Evaluate, continuing what an earlier run left in `output`, and write the files there.

    about: what else the numbers depend on, written beside them. limit, seed: so many pictures,
    drawn at random. plain: plain CLIP's maps. control: what takes the place of each class's map.
    predictions: folder for the label maps. advance: called with the numbers of pictures done and
    left. Raises ValueError, ConnectionError.
    """
    chosen = chosen_items(len(data.items), limit, seed)
    about = {
        **about,
        "pictures": len(chosen),
        "pictures_sha256": _names_digest([data.items[index].name for index in chosen]),
        "limit": limit,
        "seed": seed,
        "classes": data.classes,
        "settings": settings.as_json(),
        "model": model.header.model,
        "pretrained": model.header.pretrained,
        "weights_sha256": _weights_digest(model),
        "method": model.method.name,
        "method_settings": asdict(model.method),
        "plain": plain,
        "control": control,
        "version": __version__,
    }
    if control == "word" and len(data.classes) < 2:
        raise ValueError("the control by another word needs a data set of at least two classes")
    options: dict[str, Any] = {"chosen": chosen, "plain": plain, "control": control}
    if isinstance(data, SegmentationSet):
        task = pixel_task(model, data, settings, predictions=predictions, **options)
    else:
        task = point_task(model, data, settings, **options)
    fresh = 0  # pictures that this run has to do

    def counted(done: int, left: int) -> None:
        nonlocal fresh
        fresh = max(fresh, left)
        advance(done, left)

    with joined(rank, device):
        if restart:
            if rank.rank == 0:
                clear(output)
            wait_for_all(rank, device)
        began = time.monotonic()
        counts = run(
            task,
            folder=output,
            key=json.dumps(about, sort_keys=True),
            rank=rank,
            device=device,
            save_every=save_every,
            advance=counted,
        )
        seconds = time.monotonic() - began
        evaluation = _scored(data, chosen, about, counts)
        evaluation.speed.update(
            pictures=fresh,
            seconds=seconds,
            processes=rank.world,
            pictures_per_second=fresh / seconds if fresh else 0.0,
        )
        if rank.rank == 0:
            report.write_files(evaluation.result, evaluation.rows, evaluation.columns, output)
            report.write_json(evaluation.speed, output / "speed.json")
            clear(output)
        wait_for_all(rank, device)
    return evaluation


def _scored(
    data: SegmentationSet | PointSet, chosen: Sequence[int], about: dict[str, Any], counts: Tensor
) -> Evaluation:
    """The scores that follow from the counts."""
    if isinstance(data, SegmentationSet):
        pixels = scores(counts, background=data.background)
        names = [*(["background"] if data.background else []), *(each[0] for each in data.classes)]
        figures = [list(pair) for pair in zip(pixels.iou, pixels.recall, strict=True)]
        columns: tuple[str, ...] = ("IoU", "recall")
        summary = {
            "miou": pixels.miou,
            "pixel_accuracy": pixels.pixel_accuracy,
            "mean_recall": pixels.mean_recall,
        }
    else:
        asked = [each for index in chosen for each in data.items[index].classes]
        points = point_scores(counts, asked, len(data.classes))
        names, columns = list(data.classes), ("p-IoU",)
        figures = [[value] for value in points.iou]
        counts = points.counts
        summary = {
            "p_miou": points.by_class,
            "p_miou_by_picture": points.by_picture,
            "p_miou_pooled": points.pooled,
        }
    rows = list(zip(names, figures, strict=True))
    per_class = {name: values[0] for name, values in rows}
    result = {**about, **summary, "per_class": per_class, "counts": counts.tolist()}
    return Evaluation(rows=rows, columns=columns, summary=summary, result=result, speed={})


def _names_digest(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()


def _weights_digest(model: GEMPredictor) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
