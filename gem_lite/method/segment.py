"""From cosine maps to a segmentation: the best class of every pixel, its probability, background.

Pure functions. They take maps a few names at a time, so that a thousand classes on a large picture
need no more memory than a handful.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BACKGROUND = 0


class Segmentation(NamedTuple):
    """Which class each pixel belongs to."""

    labels: Tensor  # [b, h, w] int64: 0 = background, k + 1 = class k
    confidence: Tensor  # [b, h, w] float32: probability of the class or word that won the pixel


def label_maps(
    cosines: Tensor,
    *,
    groups: Sequence[int] | None = None,
    classes: int | None = None,
    scale: float = 50.0,
    threshold: float | None = None,
    rival_names: bool = False,
    min_area: float = 0.0,
) -> Segmentation:
    """Label maps from the cosines of all names: softmax(scale * cosine), best class per pixel.

    cosines: [b, names, h, w]. groups: class of each name (a class may have several names, of which
    the best counts); default one class a name. Everything else as in `label_chunks`.
    """
    groups = range(cosines.shape[1]) if groups is None else groups
    if len(groups) != cosines.shape[1]:
        raise ValueError(f"{len(groups)} groups for {cosines.shape[1]} maps; expected one a map")
    return label_chunks(
        lambda names: cosines[:, list(names)],
        groups,
        classes=classes,
        scale=scale,
        threshold=threshold,
        rival_names=rival_names,
        min_area=min_area,
    )


def label_chunks(
    maps: Callable[[Sequence[int]], Tensor],
    groups: Sequence[int],
    *,
    classes: int | None = None,
    scale: float = 50.0,
    threshold: float | None = None,
    rival_names: bool = False,
    min_area: float = 0.0,
    chunk: int | None = None,
) -> Segmentation:
    """Label maps of names that are never all in memory at once.

    maps: from k names, given by their places in `groups`, to their cosines [b, k, h, w]; k is at
    most `chunk` (None = all). Each name is asked for once, or twice with `min_area`.
    groups: class of each name, all of 0, 1, 2, ... Classes from `classes` on are background words:
    a pixel that one of them wins, even by a tie, is background. threshold: so is a pixel whose best
    probability lies below it. scale: inverse temperature of the softmax. 50 is ClearCLIP's and the
    default; SCLIP takes 40 to 65, CLIP itself learned 100, which leaves a threshold no doubt.
    rival_names: False: a class's best name alone enters the softmax, so that synonyms do not lower
    its probability. True: all names do, as in SCLIP, NACLIP and ClearCLIP. Labels without a
    threshold are the same. min_area: a class that wins less than this part of all pixels that
    classes win loses them to the next best (SCLIP's `area_thd`).
    The result depends on `chunk` by rounding only. Raises ValueError for a scale that is not
    positive, a threshold or area outside [0, 1], a chunk below 1, or groups with a gap.
    """
    groups = list(groups)
    _check(groups, scale, threshold, min_area, chunk)
    count = max(groups) + 1
    classes = count if classes is None else classes
    chunk = len(groups) if chunk is None else chunk
    best, total, winners = _winners(maps, groups, classes, scale, rival_names, chunk, None)
    if min_area > 0:
        small = _small_classes(winners, classes, count, min_area)  # [b, count]
        best, total, winners = _winners(maps, groups, classes, scale, rival_names, chunk, small)
    confidence = (best - total).exp().float()
    background = (winners >= classes) | (best == -torch.inf)
    if threshold is not None:
        background = background | (confidence < threshold)
    return Segmentation(torch.where(background, BACKGROUND, winners + 1), confidence)


def _winners(
    maps: Callable[[Sequence[int]], Tensor],
    groups: list[int],
    classes: int,
    scale: float,
    rival_names: bool,
    chunk: int,
    excluded: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The best scaled cosine, the logarithm of the softmax's sum, the best group: each [b, h, w].

    excluded: [b, groups] bool, those that cannot win but still count in the sum.
    """
    # Background first: of equal scores the first one wins.
    order = sorted(range(len(groups)), key=lambda name: (groups[name] < classes, groups[name]))
    best = total = winners = open_map = None
    for start in range(0, len(order), chunk):
        names = order[start : start + chunk]
        scores = scale * maps(names)  # [b, k, h, w]
        part = scores.logsumexp(dim=1) if rival_names else None  # [b, h, w]
        # A class's names may lie in several chunks: its map stays open until the last of them.
        each, scores = _best_names(scores, [groups[name] for name in names], open_map)
        following = order[start + chunk : start + chunk + 1]
        if following and groups[following[0]] == each[-1]:
            open_map = scores[:, -1:]
            each, scores = each[:-1], scores[:, :-1]
        else:
            open_map = None
        if each and part is None:
            part = scores.logsumexp(dim=1)
        if part is not None:
            total = part if total is None else torch.logaddexp(total, part)
        if not each:
            continue
        if excluded is not None:
            scores = scores.masked_fill(excluded[:, each, None, None], -torch.inf)
        top, index = scores.max(dim=1)  # each [b, h, w]
        index = torch.tensor(each, device=index.device)[index]
        if best is None or winners is None:
            best, winners = top, index
        else:
            winners = torch.where(top > best, index, winners)
            best = torch.maximum(top, best)
    if best is None or total is None or winners is None:
        raise ValueError("no maps; expected at least one name")
    return best, total, winners


def _best_names(
    scores: Tensor, groups: list[int], open_map: Tensor | None
) -> tuple[list[int], Tensor]:
    """The different groups, in order, and each one's best score: [b, groups, h, w]."""
    each = list(dict.fromkeys(groups))
    if len(each) < len(groups):
        parts = [
            scores[:, groups.index(group) : groups.index(group) + groups.count(group)].amax(
                dim=1, keepdim=True
            )
            for group in each
        ]
        scores = torch.cat(parts, dim=1)
    if open_map is not None:
        scores = torch.cat([torch.maximum(scores[:, :1], open_map), scores[:, 1:]], dim=1)
    return each, scores


def _small_classes(winners: Tensor, classes: int, count: int, min_area: float) -> Tensor:
    """[b, count] bool: classes that win too few pixels; never background words."""
    offset = count * torch.arange(len(winners), device=winners.device)[:, None]
    places = (winners.flatten(1) + offset).flatten()
    areas = places.bincount(minlength=count * len(winners)).reshape(-1, count)
    areas = areas[:, :classes]
    small = areas <= min_area * areas.sum(dim=1, keepdim=True)
    return torch.cat([small, small.new_zeros(len(small), count - classes)], dim=1)


def _check(
    groups: list[int], scale: float, threshold: float | None, min_area: float, chunk: int | None
) -> None:
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale is {scale}; expected a number above 0 (40 to 65 is usual)")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a probability in [0, 1], or None")
    if not 0 <= min_area <= 1:
        raise ValueError(f"min_area is {min_area}; expected a part of the image in [0, 1]")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; expected at least 1 name at a time, or None")
    if not groups or set(groups) != set(range(max(groups) + 1)):
        raise ValueError(f"groups is {groups}; expected 0, 1, 2, ... with none left out")
