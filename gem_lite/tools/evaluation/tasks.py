"""A model, a data set and settings as a task: counts of pixels, or of points.

What `load` does runs in threads beside the model, with Pillow and numpy alone. With PyTorch in them
the model lost a fifth of its speed, it seems to the OpenMP threads that each of them starts.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...pictures.labels import save_labels
from ...pictures.transform import ImageTransform
from ...predictor import GEMPredictor
from ..quality.controls import SUBJECT, brightness, centre, other_class
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
    control: str | None = None,
    predictions: Path | None = None,
) -> Task:
    """Confusion matrices [classes + 1, classes + 1] of the chosen pictures, at their own size.

    plain: plain CLIP's maps. control: what takes the place of each class's map, one of CONTROLS.
    predictions: folder for the label maps, as palette PNGs.
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
        if control in (None, "word"):
            asked = groups
            if control:  # each class's names count for another
                asked = [k if k >= classes else other_class(k, classes, index) for k in groups]
            result = label(model, image, text, asked, classes, settings, size, plain=plain)
            labels = result.labels[0].cpu()
        else:
            region = control_map(model, picture, image, str(control), settings, plain=plain)
            labels = region_labels(model, image, region, text, groups, classes, size)
            if not data.background:
                labels = labels.amax().expand(size)
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
    control: str | None = None,
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
            asked = item.classes
            if control == "word":
                asked = tuple(other_class(each, len(data.classes), index) for each in asked)
            if control in (None, "word"):
                words = [data.classes[each] for each in asked]
                maps = model(image, words, return_ori=plain, templates=settings.templates)
            else:
                region = control_map(model, loaded[0], image, str(control), settings, plain=plain)
                maps = region.expand(1, len(asked), -1, -1)
        counts = torch.zeros(starts[-1], 4, dtype=torch.int64)
        counts[starts[index] : starts[index + 1]] = point_counts(maps[0].cpu(), item)
        return counts

    return Task(tuple(item.name for item in items), (starts[-1], 4), load, score)


@torch.no_grad()
def control_map(
    model: GEMPredictor,
    picture: Image.Image,
    image: Tensor,
    control: str,
    settings: Settings,
    *,
    plain: bool = False,
) -> Tensor:
    """The map [h, w] in [0, 1] that a control puts in the place of every class's."""
    if control == "brightness":
        return brightness(np.asarray(picture))
    if control == "centre":
        return centre(image.shape[-2], image.shape[-1])
    return model(image, [SUBJECT], return_ori=plain, templates=settings.templates)[0, 0].cpu()


@torch.no_grad()
def region_labels(
    model: GEMPredictor,
    image: Tensor,
    region: Tensor,
    text: Tensor,
    groups: Sequence[int],
    classes: int,
    size: tuple[int, int],
) -> Tensor:
    """Labels [h, w] of a control: the class that CLIP gives the picture, where the map is high."""
    probs = model.classify(image, text)[0].cpu()
    names = [name for name, group in enumerate(groups) if group < classes]
    best = groups[names[int(probs[names].argmax())]]
    whole = F.interpolate(region[None, None], size=size, mode="bilinear", align_corners=False)
    return torch.where(whole[0, 0] >= 0.5, best + 1, 0)


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
