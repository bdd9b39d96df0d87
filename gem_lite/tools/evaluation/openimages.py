"""OpenImages-V7's point labels: reading the CSV, counting points, p-mIoU.

Source of the data: Benenson and Ferrari, "From Colouring-in to Pointillism", arXiv 2210.14142. Of
the score, GEM's paper: each class annotated in a picture gets its map, min-max, threshold 0.5; the
points say yes or no; foreground and background IoU are averaged. The paper leaves open over what
the points are summed; p-mIoU is given for all three ways.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .datasets import LayoutError

THRESHOLD = 0.5
PAGE = "https://storage.googleapis.com/openimages/web/download_v7.html"
_SPLITS = {"val": "validation", "train": "train", "test": "test"}
_TREE = """\
  ROOT/validation/0001eeaf4aed83f9.jpg
  ROOT/oidv7-val-annotations-point-labels.csv   (ImageId,X,Y,Label,EstimatedYesNo,...)
  ROOT/oidv7-class-descriptions.csv             (LabelName,DisplayName)"""
_COLUMNS = ("ImageId", "X", "Y", "Label", "EstimatedYesNo")


@dataclass(frozen=True)
class PointItem:
    """One picture with points."""

    name: str
    image: Path
    classes: tuple[int, ...]  # those with a point that says yes
    points: tuple[tuple[int, float, float, bool], ...]  # place in classes, x, y in [0, 1], yes


@dataclass(frozen=True)
class PointSet:
    """OpenImages' pictures with points, and the names of their classes."""

    classes: tuple[str, ...]
    items: tuple[PointItem, ...]


def open_points(root: Path, *, split: str = "val") -> PointSet:
    """Read a folder of OpenImages-V7. Points of "unsure" are left out.

    Raises LayoutError with the expected layout, ValueError for a CSV of another form.
    """
    listing = root / f"oidv7-{split}-annotations-point-labels.csv"
    descriptions = root / "oidv7-class-descriptions.csv"
    pictures = root / _SPLITS.get(split, split)
    for path in (listing, descriptions, pictures):
        if not path.exists():
            raise LayoutError(
                f"{root} is not OpenImages-V7 as published: there is no {path.name} (download:"
                f" {PAGE})",
                _TREE,
            )
    names = {row[0]: row[1] for _, row in _lines(descriptions) if len(row) >= 2}
    lines = _lines(listing)
    _, head = next(lines, (0, []))
    if missing := set(_COLUMNS) - set(head):
        raise ValueError(f"{listing} has no columns {sorted(missing)}; expected {_COLUMNS}")
    by_image: dict[str, dict[str, list[tuple[float, float, bool]]]] = {}
    for number, row in lines:
        try:
            entry = dict(zip(head, row, strict=True))
            x, y = float(entry["X"]), float(entry["Y"])
            if not (0 <= x <= 1 and 0 <= y <= 1):
                raise ValueError(f"the point ({x}, {y}) lies outside the picture, 0 to 1")
        except ValueError as error:
            raise ValueError(f"{listing}, line {number}: {error}") from error
        answer = entry["EstimatedYesNo"].strip().lower()
        if answer in ("yes", "no"):
            labels = by_image.setdefault(entry["ImageId"], {})
            labels.setdefault(entry["Label"], []).append((x, y, answer == "yes"))
    return _point_set(by_image, names, pictures)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a CSV file that are not empty, with their numbers."""
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.reader(file)
        try:
            yield from ((reader.line_num, row) for row in reader if row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path} cannot be read as CSV ({error})") from error


def _point_set(
    by_image: dict[str, dict[str, list[tuple[float, float, bool]]]],
    names: dict[str, str],
    pictures: Path,
) -> PointSet:
    present = {
        label
        for labels in by_image.values()
        for label, each in labels.items()
        if any(yes for _, _, yes in each)
    }
    if unnamed := present - set(names):
        raise ValueError(f"labels without a name in the class descriptions: {sorted(unnamed)[:5]}")
    order = {label: place for place, label in enumerate(sorted(present))}
    items = []
    for image, labels in sorted(by_image.items()):
        shown = [label for label, each in labels.items() if any(yes for _, _, yes in each)]
        if not shown:
            continue
        path = pictures / f"{image}.jpg"
        if not path.is_file():
            raise LayoutError(f"the point labels name {image}, but there is no {path}", _TREE)
        points = tuple((k, *point) for k, label in enumerate(shown) for point in labels[label])
        items.append(PointItem(image, path, tuple(order[label] for label in shown), points))
    if not items:
        raise ValueError("no picture has a point that says yes")
    return PointSet(tuple(names[label] for label in order), tuple(items))


def point_counts(maps: Tensor, item: PointItem) -> Tensor:
    """Right yes, wrong yes, wrong no, right no: int64 [the item's classes, 4].

    maps: [the item's classes, h, w] in [0, 1]; a point reads the pixel in which it lies.
    """
    counts = torch.zeros(len(item.classes), 4, dtype=torch.int64)
    height, width = maps.shape[-2:]
    for place, x, y, yes in item.points:
        row = min(max(int(y * height), 0), height - 1)
        column = min(max(int(x * width), 0), width - 1)
        inside = bool(maps[place, row, column] > THRESHOLD)
        counts[place, (0 if inside else 2) if yes else (1 if inside else 3)] += 1
    return counts


@dataclass(frozen=True, kw_only=True)
class PointScores:
    """p-mIoU in [0, 1] by what the points are summed over before the IoU is taken."""

    counts: Tensor  # of each class, [classes, 4]
    iou: tuple[float, ...]  # of each class, over the data set; NaN for one without points
    by_class: float  # mean of iou
    by_picture: float  # mean over all pairs of a picture and a class that it shows
    pooled: float  # of all points together


def point_scores(counts: Tensor, classes: Sequence[int], count: int) -> PointScores:
    """Scores of counts [pairs of a picture and a class, 4]; classes: the class of each pair."""
    places = torch.tensor(classes, dtype=torch.int64)
    summed = torch.zeros(count, 4, dtype=torch.int64).index_add(0, places, counts)
    iou = _mean_iou(summed)
    return PointScores(
        counts=summed,
        iou=tuple(iou.tolist()),
        by_class=float(iou.nanmean()),
        by_picture=float(_mean_iou(counts).nanmean()),
        pooled=float(_mean_iou(counts.sum(dim=0, keepdim=True))),
    )


def _mean_iou(counts: Tensor) -> Tensor:
    """Mean of foreground and background IoU of each row: [rows, 4] -> [rows]."""
    right_yes, wrong_yes, wrong_no, right_no = counts.double().unbind(dim=1)
    wrong = wrong_yes + wrong_no
    both = torch.stack([right_yes / (right_yes + wrong), right_no / (right_no + wrong)])
    return both.nanmean(dim=0)
