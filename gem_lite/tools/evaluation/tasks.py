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
from ...pictures.transform import ImageTransform, to_rgb
from ...predictor import GEMPredictor
from .confusion import confusion
from .datasets import SegmentationSet
from .openimages import PointSet, point_counts
from .protocols import Settings
from .run import Task

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
    classes = len(data.classes) + 1
    items = [data.items[index] for index in chosen]
    as_tensor = _as_tensor(model)

    def load(index: int) -> tuple[Loaded, NDArray[np.int16]]:
        return load_picture(items[index].image, settings), data.truth(items[index])

    def score(index: int, loaded: tuple[Loaded, NDArray[np.int16]]) -> Tensor:
        (picture, size), truth = loaded[0], torch.from_numpy(loaded[1])  # truth [h, w]
        if tuple(truth.shape) != size:
            raise ValueError(
                f"{items[index].labels} has {truth.shape[0]} x {truth.shape[1]} pixels (h x w), its"
                f" picture {size[0]} x {size[1]}"
            )
        found = model.segment(
            as_tensor(picture),
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
    as_tensor = _as_tensor(model)

    def load(index: int) -> Loaded:
        return load_picture(items[index].image, settings)

    def score(index: int, loaded: Loaded) -> Tensor:
        image, item = as_tensor(loaded[0]), items[index]
        with torch.no_grad():
            words = [data.classes[each] for each in item.classes]
            maps = model(image, words, return_ori=plain, templates=settings.templates)
        return point_counts(maps[0].cpu(), item, len(data.classes))

    return Task(tuple(item.name for item in items), (len(data.classes), 4), load, score)


def load_picture(path: Path, settings: Settings) -> Loaded:
    """The picture in RGB at the size that the settings want, and its own size (h, w).

    Raises ValueError for a file that is no picture.
    """
    try:
        with Image.open(path) as picture:
            size = (picture.height, picture.width)
            height, width = settings.input_size(*size)
            # The transform's own first steps, which it then finds done.
            return to_rgb(picture).resize((width, height), Image.Resampling.BICUBIC), size
    except (OSError, SyntaxError) as error:
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
