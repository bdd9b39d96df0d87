"""Pascal Context's labels as published: run lengths in one JSON file, or a .mat file a picture.

Both count the 459 classes of the whole data set; the field scores the 59 frequent ones and leaves
the rest to background. Labels come out as 0 = background, k + 1 = the k-th of those 59.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Labels = NDArray[np.uint8]  # [h, w]

# The 59 classes' numbers among the 459, in the order of their names.
NUMBERS = (
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105, 113),
    *(
        115,
        144,
        158,
        159,
        162,
        187,
        189,
        207,
        220,
        232,
        258,
        259,
        260,
        284,
        295,
        296,
        308,
        324,
        326,
    ),
    *(347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454, 458),
)

MAX_PIXELS = 40_000_000
_EXPECTED = "expected numbers of classes from 0 to 459, [h, w]"


def json_labels(path: Path, split: str) -> dict[str, Callable[[], Labels]]:
    """What reads each picture's labels, by its file name, from `trainval_merged.json`.

    Raises ValueError for a file of another form.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_hook=_needed)
        pictures = {
            picture["image_id"]: (str(picture["file_name"]), *_size(picture))
            for picture in content["images"]
            if picture["phase"] == split
        }
        areas: dict[Any, list[tuple[int, str]]] = {number: [] for number in pictures}
        for area in content["annos_segmentation"]:
            if area["image_id"] in areas:
                counts = area["segmentation"]["counts"]
                if not isinstance(counts, str):
                    raise TypeError(f"counts of type {type(counts).__name__}")
                areas[area["image_id"]].append((int(area["category_id"]), counts))
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
        raise ValueError(
            f"{path} is not Pascal Context's trainval_merged.json ({error!r})"
        ) from error
    return {
        name: partial(_painted, areas[number], height, width, f"{path}, {name}")
        for number, (name, height, width) in pictures.items()
    }


def _size(picture: dict[str, Any]) -> tuple[int, int]:
    """Height and width, which make arrays. Raises ValueError for what no picture has."""
    height, width = picture["height"], picture["width"]
    if not all(type(side) is int and side > 0 for side in (height, width)) or (
        height * width > MAX_PIXELS
    ):
        raise ValueError(f"{height!r} x {width!r} pixels (h x w)")
    return height, width


def _needed(value: dict[str, Any]) -> dict[str, Any] | None:
    """Forgets parts, boundaries and occlusions, most of the file, as soon as they are read."""
    return None if {"part_id", "boundary_mask", "edges"} & value.keys() else value


def _painted(areas: list[tuple[int, str]], height: int, width: int, where: str) -> Labels:
    """Areas painted over one another in their order."""
    labels = np.zeros((height, width), dtype=np.int64)
    for number, counts in areas:
        if not 0 <= number <= 459:
            raise ValueError(f"{where}: {number}; {_EXPECTED}")
        lengths = run_lengths(counts)
        if min(lengths, default=-1) < 0 or sum(lengths) != height * width:
            raise ValueError(f"{where}: an area does not fit {height} x {width} pixels (h x w)")
        inside = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
        labels[inside.reshape(width, height).T] = number  # column by column
    return frequent(labels, where)


def run_lengths(text: str) -> list[int]:
    """The lengths of runs outside and inside, in turn, from COCO's text form.

    Each is a number in groups of five bits, the lowest first, as a letter from "0" on; 32 says that
    another group follows, 16 in the last one that the number is negative. From the fourth on it is
    the difference from the length two before. Raises ValueError for a number of more than 60 bits.
    """
    lengths: list[int] = []
    value = shift = 0
    for letter in text.encode("ascii", errors="replace"):
        group = letter - 48
        value |= (group & 31) << shift
        shift += 5
        if shift > 60:
            raise ValueError("a run longer than any picture")
        if not group & 32:
            value -= (group & 16) << (shift - 4)
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    return lengths


def mat_labels(path: Path) -> Labels:
    """The labels of a `.mat` file. Raises ImportError without scipy, ValueError for others."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise ImportError(
            "Pascal Context's .mat files are read with scipy: pip install 'gem_lite[context]'; or"
            " use trainval_merged.json, which needs nothing"
        ) from error
    try:
        labels = np.asarray(loadmat(path, variable_names=["LabelMap"])["LabelMap"], dtype=np.int64)
    except Exception as error:  # a damaged file makes scipy raise of every kind
        raise ValueError(
            f"{path} cannot be read as a .mat file with a LabelMap ({error})"
        ) from error
    return frequent(labels, str(path))


def frequent(labels: NDArray[np.int64], where: str) -> Labels:
    """Numbers of the 459 classes -> of the 59. Raises ValueError for others."""
    if labels.ndim != 2 or labels.min(initial=0) < 0 or labels.max(initial=0) > 459:
        raise ValueError(f"{where}: {_EXPECTED}")
    table = np.zeros(460, dtype=np.uint8)
    table[list(NUMBERS)] = np.arange(1, 60)
    return table[labels]
