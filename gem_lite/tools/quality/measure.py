"""How well maps point at things, measured on labelled collages: one figure per claim, with chance.

A change of the method is scored in seconds: build two models, `measure` both on the same collages.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...method.base import Method
from ...method.heatmap import min_max
from ...predictor import GEMPredictor
from .scenes import Scene, scenes
from .sprites import Sprites

BATCH = 32  # collages in one forward pass
UNSEEN = ("openmoji",)  # styles that the small models never saw in training
BACKGROUND = "background"  # what the small model was taught to call a picture of no thing


@dataclass(frozen=True)
class Quality:
    """Figures in [0, 1] over all things of all collages; the miou over collages."""

    pointing: float  # the map's largest value lies on the thing
    own_name: float  # of the picture's names, the thing's own has the highest mean cosine over it
    miou: float  # argmax over the picture's names and background, mean over those of a picture

    def __sub__(self, other: "Quality") -> "Quality":
        return Quality(
            *(getattr(self, field.name) - getattr(other, field.name) for field in fields(self))
        )


def measure(
    model: GEMPredictor,
    collages: Sequence[Scene],
    transform: Callable[[Image.Image], Tensor],
    *,
    plain: bool = False,
    background: str | None = BACKGROUND,
    advance: Callable[[int], None] = lambda count: None,
) -> Quality:
    """Score a model's maps on collages, each asked for the names that are in it.

    transform: the model's own, PIL -> [3, h, w]; maps are resized to the collage's size.
    plain: score plain CLIP's maps (`return_ori=True`) instead of GEM's.
    background: the word that competes for the pixels without a thing; None = no such word, and
    pixels whose best stretched map lies below 0.5 are background.
    advance: called with the number of collages of each batch that is done.
    Raises ValueError when there are no collages.
    """
    scores: list[PictureScore] = []
    for batch, images in batches(collages, transform):
        with torch.inference_mode():
            names = [[*scene.names, *([background] if background else [])] for scene in batch]
            maps = model.batched_forward(images, names, normalize=False, return_ori=plain)
        scores += [
            score_picture(each.cpu(), scene) for scene, each in zip(batch, maps, strict=True)
        ]
        advance(len(batch))
    return mean_quality(scores)


@dataclass(frozen=True)
class PictureScore:
    """One collage's figures in [0, 1]: the first two are means over its things."""

    things: int
    pointing: float
    own_name: float
    miou: float


def score_picture(maps: Tensor, scene: Scene) -> PictureScore:
    """Score the maps [p, h, w] of a collage's names, and of background behind them if there is one.

    Without background's, pixels whose best stretched map lies below 0.5 are background.
    """
    mask = torch.from_numpy(scene.mask)
    maps = _resized(maps, (mask.shape[0], mask.shape[1]))
    count = len(scene.names)
    # The last one of count + 1 is background.
    over = len(maps) > count
    labels = (maps.argmax(dim=0) + 1) % (count + 1) if over else _labels_below(maps)
    points, owns = [], []
    for index in range(count):
        thing = mask == index + 1
        points.append(bool(thing.flatten()[maps[index].argmax()]))
        owns.append(int(maps[:count, thing].mean(dim=1).argmax()) == index)
    miou = _mean_iou(labels, mask, count)
    return PictureScore(count, float(np.mean(points)), float(np.mean(owns)), miou)


def mean_quality(scores: Sequence[PictureScore]) -> Quality:
    """Means over all things; the miou's over collages."""
    things = [score.things for score in scores]
    return Quality(
        float(np.average([score.pointing for score in scores], weights=things)),
        float(np.average([score.own_name for score in scores], weights=things)),
        float(np.mean([score.miou for score in scores])),
    )


def chance(collages: Sequence[Scene]) -> Quality:
    """What maps without any knowledge would score on these collages."""
    return mean_quality(chance_scores(collages))


def chance_scores(collages: Sequence[Scene]) -> tuple[PictureScore, ...]:
    """`chance` of each collage.

    A random point, a random name of the picture, a random label (background included) per pixel.
    """
    scores = []
    for scene in collages:
        count = len(scene.names)
        areas = np.bincount(scene.mask.ravel(), minlength=count + 1) / scene.mask.size
        guess = 1 / (count + 1)
        hit = guess * areas
        miou = float(np.mean(hit / (guess + areas - hit)))
        scores.append(PictureScore(count, float(areas[1:].mean()), 1 / count, miou))
    return tuple(scores)


def top_1(
    model: GEMPredictor,
    singles: Sequence[Scene],
    names: Sequence[str],
    transform: Callable[[Image.Image], Tensor],
    *,
    advance: Callable[[int], None] = lambda count: None,
) -> float:
    """Part of one-thing collages that plain CLIP gives the right one of `names`; chance 1/names."""
    hits: list[bool] = []
    for batch, images in batches(singles, transform):
        with torch.inference_mode():
            best = model.classify(images, list(names)).argmax(dim=1).tolist()
        hits += [names[i] == scene.names[0] for i, scene in zip(best, batch, strict=True)]
        advance(len(batch))
    return float(np.mean(hits))


def settings_table(
    model: GEMPredictor,
    collages: Sequence[Scene],
    transform: Callable[[Image.Image], Tensor],
    *,
    blocks: Sequence[int],
    inv_temps: Sequence[float | None],
    iters: Sequence[int],
) -> dict[Method, Quality]:
    """Quality under every combination of dual blocks, inverse temperature and iterations."""
    models = [
        model.with_gem(blocks=each_blocks, inv_temp=inv_temp, iters=each_iters)
        for each_blocks in blocks
        for inv_temp in inv_temps
        for each_iters in iters
    ]
    return {each.method: measure(each, collages, transform) for each in models}


# What each column of the report is scored in, and its title there.
FIGURES = {
    "top_1": "top-1 of single things",
    "own_name": "own name",
    "pointing": "pointing",
    "pointing_above_plain": "pointing above plain CLIP",
    "miou": "mIoU",
}


def figures(
    model: GEMPredictor,
    transform: Callable[[Image.Image], Tensor],
    sprites: Sprites,
    *,
    unseen: Sequence[str] = UNSEEN,
    names: Sequence[str] | None = None,
    seed: int = 0,
    count: int = 64,
    advance: Callable[[int, int, str], None] = lambda done, total, style: None,
) -> dict[str, dict[str, float]]:
    """Every figure in [0, 1] (a key of FIGURES), beside plain CLIP's and chance.

    The outer keys are "trained styles", "plain CLIP, trained styles", "chance, trained styles" and
    the same of the "unseen style", so far as there are drawings.

    sprites: drawings of both, `unseen` naming the unseen styles. names: what top-1 chooses from;
    None = all names of the sprites. seed, count: collages of 3 to 4 things, and of one thing.
    advance: called with the numbers of collages scored and to score, and the styles at work.
    """
    names = list(names or sprites.concepts)
    groups = style_groups(sprites, unseen)
    total, done = 3 * count * len(groups), 0  # by GEM, by plain CLIP, and the single things
    columns: dict[str, dict[str, float]] = {}
    for title, chosen in groups.items():

        def scored(batch: int, title: str = title) -> None:
            nonlocal done
            done += batch
            advance(done, total, title)

        scored(0)
        drawings = sprites.select(styles=chosen)
        collages = list(scenes(drawings, seed=seed, count=count, jitter=0.0))
        singles = list(scenes(drawings, seed=seed + 1, count=count, things=(1, 1), jitter=0.0))
        gem, plain = (
            measure(model, collages, transform, plain=flag, advance=scored)
            for flag in (False, True)
        )
        first = top_1(model, singles, names, transform, advance=scored)
        above = gem.pointing - plain.pointing
        columns[title] = _column(first, gem, above)
        columns[f"plain CLIP, {title}"] = _column(first, plain, 0.0)
        columns[f"chance, {title}"] = _column(1 / len(names), chance(collages), 0.0)
    return columns


def style_groups(sprites: Sprites, unseen: Sequence[str] = UNSEEN) -> dict[str, list[str]]:
    """The styles of the drawings by the title of their columns, so far as there are any."""
    styles = sorted(set(sprites.styles))
    groups = {
        "trained styles": [style for style in styles if style not in unseen],
        "unseen style": [style for style in styles if style in unseen],
    }
    return {title: chosen for title, chosen in groups.items() if chosen}


def report(columns: Mapping[str, Mapping[str, float]]) -> str:
    """The figures as a markdown table, in %."""
    lines = ["| % | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in FIGURES.items():
        cells = [f"{100 * column[name]:.1f}" for column in columns.values()]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _column(first: float, quality: Quality, above: float) -> dict[str, float]:
    return {"top_1": first, "pointing_above_plain": above, **asdict(quality)}


def batches(
    collages: Sequence[Scene], transform: Callable[[Image.Image], Tensor]
) -> Iterator[tuple[Sequence[Scene], Tensor]]:
    """Collages and their tensors, some at a time. Raises ValueError when there are none."""
    if not collages:
        raise ValueError("there are no collages to score on; expected at least one")
    for start in range(0, len(collages), BATCH):
        batch = collages[start : start + BATCH]
        yield batch, torch.stack([transform(Image.fromarray(scene.image)) for scene in batch])


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    if maps.shape[-2:] == size:
        return maps
    return torch.nn.functional.interpolate(maps[None], size, mode="bilinear", antialias=True)[0]


def _labels_below(cosines: Tensor, bound: float = 0.5) -> Tensor:
    """cosines [p, h, w] -> int64 [h, w]: i + 1 for the best stretched map i, 0 below the bound."""
    best, index = min_max(cosines).max(dim=0)
    return torch.where(best < bound, 0, index + 1)


def _mean_iou(labels: Tensor, mask: Tensor, count: int) -> float:
    ious = []
    for value in range(count + 1):
        predicted, truth = labels == value, mask == value
        ious.append(float((predicted & truth).sum() / (predicted | truth).sum().clamp(min=1)))
    return float(np.mean(ious))
