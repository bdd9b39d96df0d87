"""Boxes and points from heat maps, in the picture's own pixels: what people hand on to SAM.

Pure functions. A point is (x, y) and a box (left, top, right, bottom), as in SAM: x to the right,
the centre of the first pixel at 0.5, right and bottom just behind the last pixel.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class Box(NamedTuple):
    """One connected piece of a map above the threshold."""

    left: float
    top: float
    right: float
    bottom: float
    score: float  # the map's largest value inside


def points(maps: Tensor, *, size: tuple[int, int] | None = None) -> Tensor:
    """Where each map is largest: [p, 3] float32, x, y and the value there; [b, p, 3] of a batch.

    maps: [p, h, w] or [b, p, h, w]; size: (h, w) of the original picture, default the maps'. Of
    equal values the first in reading order counts. Raises ValueError for another shape.
    """
    _check_maps(maps)
    height, width = maps.shape[-2:]
    size = (height, width) if size is None else size
    value, place = maps.float().flatten(-2).max(dim=-1)
    x = (place % width + 0.5) * (size[1] / width)
    y = (place // width + 0.5) * (size[0] / height)
    return torch.stack([x, y, value], dim=-1)


def boxes(
    heat: Tensor,
    *,
    size: tuple[int, int] | None = None,
    threshold: float = 0.5,
    min_area: float = 0.001,
) -> list[list[Box]]:
    """Boxes around the pieces of each map that lie above a threshold, the strongest first.

    heat: [p, h, w]; threshold in the map's own units (0.5 suits maps in [0, 1]). Pixels that touch
    at a side or a corner are one piece; pieces below `min_area` of the map are left out.
    size: (h, w) of the original picture, default the maps'. Returns a list of boxes for each map.
    Raises ValueError for another shape.
    """
    _check_maps(heat)
    if heat.ndim != 3:
        raise ValueError(f"heat has shape {list(heat.shape)}; expected [p, h, w] of one picture")
    height, width = heat.shape[-2:]
    size = (height, width) if size is None else size
    down, right = size[0] / height, size[1] / width
    boxes_of_maps = []
    for values in heat.detach().float().cpu().numpy():
        pieces = connected_pieces(values > threshold)
        strong = []
        for number in range(1, int(pieces.max(initial=0)) + 1):
            rows, columns = np.nonzero(pieces == number)
            if len(rows) >= min_area * values.size:
                box = Box(
                    left=float(columns.min() * right),
                    top=float(rows.min() * down),
                    right=float((columns.max() + 1) * right),
                    bottom=float((rows.max() + 1) * down),
                    score=float(values[rows, columns].max()),
                )
                strong.append(box)
        boxes_of_maps.append(sorted(strong, key=lambda box: -box.score))
    return boxes_of_maps


def connected_pieces(mask: NDArray[np.bool_], *, corners: bool = True) -> NDArray[np.int64]:
    """Numbers 1, 2, ... for the connected pieces of a mask [h, w], in reading order; 0 outside.

    Pixels that touch at a side are connected, and with `corners` those that touch at a corner. Runs
    of each row are joined with those of the row above that they touch.
    """
    labels = np.zeros(mask.shape, dtype=np.int64)
    parents: list[int] = [0]

    def top(number: int) -> int:
        while parents[number] != number:
            parents[number] = parents[parents[number]]
            number = parents[number]
        return number

    above: list[tuple[int, int, int]] = []  # (first, behind the last, number) of each run
    for y, row in enumerate(mask):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(np.int8), [0]])))
        runs: list[tuple[int, int, int]] = []
        for first, behind in edges.reshape(-1, 2).tolist():
            touching = {
                top(n)
                for start, end, n in above
                if start < behind + corners and end > first - corners
            }
            number = min(touching, default=len(parents))
            if not touching:
                parents.append(number)
            for other in touching:
                parents[other] = number
            labels[y, first:behind] = number
            runs.append((first, behind, number))
        above = runs
    tops = np.array([top(number) for number in range(len(parents))])
    _, compact = np.unique(tops, return_inverse=True)
    numbers: NDArray[np.int64] = compact.reshape(-1)[labels]
    return numbers


def _check_maps(maps: Tensor) -> None:
    if maps.ndim not in (3, 4) or maps.numel() == 0:
        raise ValueError(f"maps has shape {list(maps.shape)}; expected [p, h, w] or [b, p, h, w]")
