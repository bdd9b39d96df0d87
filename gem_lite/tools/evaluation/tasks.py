"""A model, a data set and settings as a task: counts of pixels, or of points.

What `load` does runs in threads beside the model, with Pillow and numpy alone. With PyTorch in them
the model lost a fifth of its speed, it seems to the OpenMP threads that each of them starts.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...pictures.labels import save_labels
from ...pictures.transform import ImageTransform
from ...predictor import GEMPredictor
from .confusion import confusion
from .datasets import SegmentationSet
from .openimages import PointSet, point_counts
from .protocols import Settings
from .run import Task
from .stages import label, resized

Loaded = tuple[Image.Image, tuple[int, int]]  # a picture for the model, and its own size (h, w)


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
    classes = len(data.classes)
    items = [data.items[index] for index in chosen]
    as_tensor = _as_tensor(model)
    every = [*data.classes, *((word,) for word in settings.background)]
    groups = [group for group, names in enumerate(every) for _ in names]
    with torch.no_grad():
        names = [name for names in every for name in names]
        text = model.encode_text(names, templates=settings.templates)[0]  # [p, e]

    def load(index: int) -> tuple[Loaded, NDArray[np.int16]]:
        return load_picture(items[index].image, settings), data.truth(items[index])

    def score(index: int, loaded: tuple[Loaded, NDArray[np.int16]]) -> Tensor:
        (picture, size), truth = loaded[0], torch.from_numpy(loaded[1])  # truth [h, w]
        if tuple(truth.shape) != size:
            raise ValueError(
                f"{items[index].labels} has {truth.shape[0]} x {truth.shape[1]} pixels (h x w), its"
                f" picture {size[0]} x {size[1]}"
            )
        image = as_tensor(picture)
        segmentation = label(model, image, text, groups, classes, settings, size, plain=plain)
        labels = segmentation.labels[0].cpu()
        if predictions is not None:
            save_labels(labels, predictions / f"{items[index].name}.png")
        return confusion(truth, labels, classes + 1)

    return Task(tuple(item.name for item in items), (classes + 1, classes + 1), load, score)


def point_task(
    model: GEMPredictor,
    data: PointSet,
    settings: Settings,
    *,
    chosen: Sequence[int],
    plain: bool = False,
) -> Task:
    """Counts of points [classes asked for in each picture, 4], one picture after another."""
    items = [data.items[index] for index in chosen]
    starts = np.cumsum([0, *(len(item.classes) for item in items)]).tolist()
    as_tensor = _as_tensor(model)

    def load(index: int) -> Loaded:
        return load_picture(items[index].image, settings)

    def score(index: int, loaded: Loaded) -> Tensor:
        image, item = as_tensor(loaded[0]), items[index]
        with torch.no_grad():
            words = [data.classes[each] for each in item.classes]
            maps = model(image, words, return_ori=plain, templates=settings.templates)
        counts = torch.zeros(starts[-1], 4, dtype=torch.int64)
        counts[starts[index] : starts[index + 1]] = point_counts(maps[0].cpu(), item)
        return counts

    return Task(tuple(item.name for item in items), (starts[-1], 4), load, score)


def load_picture(path: Path, settings: Settings) -> Loaded:
    """The picture in RGB at the size that the settings want, and its own size (h, w).

    Raises ValueError for a file that Pillow cannot read.
    """
    try:
        with Image.open(path) as picture:
            return resized(picture, settings), (picture.height, picture.width)
    except Exception as error:  # a damaged file breaks its decoder in every way there is
        raise ValueError(f"{path} cannot be read as a picture ({error})") from error


def _as_tensor(model: GEMPredictor) -> Callable[[Image.Image], Tensor]:
    """The model's transform for pictures that have their size already: [1, 3, h, w]."""

    def as_tensor(picture: Image.Image) -> Tensor:
        size = (picture.height, picture.width)
        return ImageTransform(size, model.header.mean, model.header.std)(picture)[None]

    return as_tensor


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
