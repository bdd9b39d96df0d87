"""A model, a data set and settings as a task: counts of pixels, or of points."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..palette import save_labels
from ..predictor import GEMPredictor
from ..transform import ImageTransform
from .confusion import confusion
from .datasets import SegmentationSet
from .openimages import PointSet, point_counts
from .protocols import Settings
from .run import Task


def pixel_task(
    model: GEMPredictor,
    data: SegmentationSet,
    settings: Settings,
    *,
    chosen: Sequence[int],
    plain: bool = False,
    predictions: Path | None = None,
) -> Task:
    """Confusion matrices [classes + 1, classes + 1] of the chosen pictures, at their own size.

    plain: plain CLIP's maps. predictions: folder for the label maps, as palette PNGs.
    """
    classes = len(data.classes) + 1
    items = [data.items[index] for index in chosen]

    def load(index: int) -> tuple[tuple[Tensor, tuple[int, int]], Tensor]:
        item = items[index]
        image = load_image(item.image, model, settings)
        truth = torch.from_numpy(data.truth(item))  # [h, w]
        return image, truth

    def score(index: int, loaded: tuple[tuple[Tensor, tuple[int, int]], Tensor]) -> Tensor:
        (image, size), truth = loaded
        if tuple(truth.shape) != size:
            raise ValueError(
                f"{items[index].labels} has {truth.shape[0]} x {truth.shape[1]} pixels (h x w), its"
                f" picture {size[0]} x {size[1]}"
            )
        found = model.segment(
            image[None],
            data.classes,
            background=settings.background,
            threshold=settings.threshold,
            scale=settings.scale,
            window=settings.window,
            stride=settings.stride,
            flip=settings.flip,
            refine_steps=settings.refine,
            size=size,
            templates=settings.templates,
            return_ori=plain,
            rival_names=settings.rival_names,
            min_area=settings.min_area,
            batch=1,
        )
        labels = found.labels[0].cpu()
        if predictions is not None:
            save_labels(labels, predictions / f"{items[index].name}.png")
        return confusion(truth, labels, classes)

    return Task(tuple(item.name for item in items), (classes, classes), load, score)


def point_task(
    model: GEMPredictor,
    data: PointSet,
    settings: Settings,
    *,
    chosen: Sequence[int],
    plain: bool = False,
) -> Task:
    """Counts of points [classes, 4] of the chosen pictures; each is asked for its own classes."""
    items = [data.items[index] for index in chosen]

    def load(index: int) -> tuple[Tensor, tuple[int, int]]:
        return load_image(items[index].image, model, settings)

    def score(index: int, loaded: tuple[Tensor, tuple[int, int]]) -> Tensor:
        image, _ = loaded
        item = items[index]
        with torch.no_grad():
            words = [data.classes[each] for each in item.classes]
            maps = model(image[None], words, return_ori=plain, templates=settings.templates)
        return point_counts(maps[0].cpu(), item, len(data.classes))

    return Task(tuple(item.name for item in items), (len(data.classes), 4), load, score)


def load_image(
    path: Path, model: GEMPredictor, settings: Settings
) -> tuple[Tensor, tuple[int, int]]:
    """The picture as the settings want it, [3, h, w], and its own size (h, w).

    Raises ValueError for a file that is no picture.
    """
    try:
        with Image.open(path) as picture:
            size = (picture.height, picture.width)
            height, width = settings.input_size(*size)
            transform = ImageTransform((height, width), model.header.mean, model.header.std)
            return transform(picture), size
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error})") from error


def chosen_items(count: int, limit: int | None, seed: int) -> list[int]:
    """All places 0 .. count - 1, or `limit` of them drawn at random by the seed, in order.

    Raises ValueError for a limit below 1.
    """
    if limit is None or limit >= count:
        return list(range(count))
    if limit < 1:
        raise ValueError(f"--limit is {limit}; expected at least 1 picture")
    drawn = np.random.default_rng(seed).permutation(count)[:limit]
    return sorted(int(index) for index in drawn)
