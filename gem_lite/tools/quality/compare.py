"""Methods side by side on the same collages, with intervals, chance and negative controls."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...predictor import GEMPredictor
from .controls import CONTROLS, SUBJECT, brightness, centre
from .measure import BACKGROUND, PictureScore, batches, chance_scores, score_picture
from .scenes import Scene

RESAMPLES = 1000
FIGURES = ("pointing", "own_name", "miou")
_OWN_CONTROLS = ("word", "subject")  # made by each method; the others need none


class Interval(NamedTuple):
    """A figure over all pictures, and where 95 % of the resamplings of the pictures lie."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One method's scores: of its own maps, and of those of its controls."""

    name: str
    scores: tuple[PictureScore, ...]  # of each collage
    controls: Mapping[str, tuple[PictureScore, ...]]  # empty for what is a control itself

    def figures(self) -> dict[str, Interval]:
        """Each of FIGURES."""
        return {name: interval(self.scores, name) for name in FIGURES}

    def above_controls(self) -> dict[str, Interval]:
        """Each of FIGURES less that of the control that is best at it, on the same pictures."""
        return {name: interval(self.scores, name, less=self.best_control(name)) for name in FIGURES}

    def best_control(self, figure: str) -> tuple[PictureScore, ...]:
        """The scores of the control with the highest figure."""
        return max(self.controls.values(), key=lambda scores: interval(scores, figure).value)


def interval(
    scores: Sequence[PictureScore],
    figure: str,
    *,
    less: Sequence[PictureScore] | None = None,
    seed: int = 0,
) -> Interval:
    """A figure with its bootstrap interval over pictures; `less`: of the difference to others'."""
    rng = np.random.default_rng(seed)
    drawn = rng.integers(0, len(scores), (RESAMPLES, len(scores)))
    order = np.concatenate([np.arange(len(scores))[None], drawn])
    values = _means(scores, figure, order)
    if less is not None:
        values = values - _means(less, figure, order)
    low, high = np.quantile(values[1:], (0.025, 0.975))
    return Interval(float(values[0]), float(low), float(high))


def _means(
    scores: Sequence[PictureScore], figure: str, order: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The figure over each row of pictures; every thing counts alike, every picture for mIoU."""
    values = np.array([getattr(score, figure) for score in scores])
    weights = np.array([1 if figure == "miou" else score.things for score in scores])
    totals: NDArray[np.float64] = (values * weights)[order].sum(axis=1) / weights[order].sum(axis=1)
    return totals


def compare(
    models: Mapping[str, GEMPredictor],
    collages: Sequence[Scene],
    transform: Callable[[Image.Image], Tensor],
    *,
    advance: Callable[[int, int, str], None] = lambda done, total, name: None,
) -> list[Row]:
    """A row for each model, for plain CLIP, each control that needs no model, and chance.

    models: by the name of their row; they share weights, of which the first one's are plain
    CLIP's. advance: called with the numbers of collages scored and to score, and the row at work.
    """
    still = {
        "brightness": lambda scene: brightness(scene.image),
        "centre": lambda scene: centre(*scene.mask.shape),
    }
    shared = {
        name: tuple(score_picture(_still_maps(scene, each), scene) for scene in collages)
        for name, each in still.items()
    }
    rows = []
    jobs = [*((name, model, False) for name, model in models.items())]
    jobs.append(("plain CLIP", next(iter(models.values())), True))
    done, total = 0, len(jobs) * len(collages)
    for name, model, plain in jobs:
        own: list[PictureScore] = []
        controls: dict[str, list[PictureScore]] = {kind: [] for kind in _OWN_CONTROLS}
        advance(done, total, name)
        for batch, images in batches(collages, transform):
            words = [[*scene.names, BACKGROUND] for scene in batch]
            others = [
                [*other_names(scene, collages, done + k), SUBJECT, BACKGROUND]
                for k, scene in enumerate(batch)
            ]
            with torch.inference_mode():
                maps, control_maps = (
                    model.batched_forward(images, asked, normalize=False, return_ori=plain)
                    for asked in (words, others)
                )
            for scene, each, other in zip(batch, maps, control_maps, strict=True):
                own.append(score_picture(each.cpu(), scene))
                count, (*word_maps, subject_map, ground) = len(scene.names), other.cpu()
                word = torch.stack([*word_maps, ground])
                subject = torch.stack([*count * [subject_map], ground])
                controls["word"].append(score_picture(word, scene))
                controls["subject"].append(score_picture(subject, scene))
            done += len(batch)
            advance(done, total, name)
        kinds = {kind: tuple(scores) for kind, scores in controls.items()}
        rows.append(Row(name, tuple(own), {**kinds, **shared}))
    rows += [Row(f"control: {name}", scores, {}) for name, scores in shared.items()]
    rows.append(Row("chance", chance_scores(collages), {}))
    return rows


def other_names(scene: Scene, collages: Sequence[Scene], start: int) -> list[str]:
    """As many words as the scene has things, of the pictures that follow, none of them its own.

    Words repeat where the collages have no others at all.
    """
    names: list[str] = []
    for step in range(1, len(collages) + 1):
        following = collages[(start + step) % len(collages)]
        names += [name for name in following.names if name not in (*scene.names, *names)]
    names = names or [SUBJECT]
    return [names[k % len(names)] for k in range(len(scene.names))]


def _still_maps(scene: Scene, each: Callable[[Scene], Tensor]) -> Tensor:
    """One map for all names, and halfway as background's."""
    kind = each(scene)[None]
    return torch.cat([kind.expand(len(scene.names), -1, -1), torch.full_like(kind, 0.5)])


def as_markdown(rows: Sequence[Row]) -> str:
    """The rows as a table in %, figures with their intervals."""
    titles = (
        *("pointing", "own name", "mIoU", "pointing above the best control"),
        *(f"control: {kind}" for kind in _OWN_CONTROLS),
    )
    lines = ["| % | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for row in rows:
        cells = [_cell(each) for each in row.figures().values()]
        if row.controls:
            kinds = (interval(row.controls[kind], "pointing") for kind in _OWN_CONTROLS)
            cells += [_cell(each) for each in (row.above_controls()["pointing"], *kinds)]
        else:
            cells += ["-"] * (1 + len(_OWN_CONTROLS))
        lines.append(f"| {row.name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """The rows, each figure as [value, low, high]."""
    return [
        {
            "name": row.name,
            **row.figures(),
            "controls": {
                name: {figure: interval(scores, figure) for figure in FIGURES}
                for name, scores in row.controls.items()
            },
            **({"above_controls": row.above_controls()} if row.controls else {}),
        }
        for row in rows
    ]


def explained() -> str:
    """What the controls are, a line each."""
    return "\n".join(f"{name}: {text}" for name, text in CONTROLS.items())


def _cell(each: Interval) -> str:
    return f"{100 * each.value:.1f} ({100 * each.low:.1f} to {100 * each.high:.1f})"
