"""Large images in overlapping windows: patch scores of each, and maps averaged over them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .heatmap import upsample

Score = Callable[[Tensor], tuple[Tensor, tuple[int, int]]]


class WindowScores(NamedTuple):
    """Patch scores of all windows of b images; windows have one size. Sizes are (h, w)."""

    scores: Tensor  # [windows, b, p, n], mean over the views
    grid: tuple[int, int]  # patches of a window, n = h * w
    places: tuple[tuple[int, int], ...]  # (top, left) of each window in pixels
    window: tuple[int, int]  # pixels
    size: tuple[int, int]  # pixels of the whole image


def window_scores(
    score: Score,
    images: Tensor,
    *,
    window: tuple[int, int] | None,
    stride: tuple[int, int] | None = None,
    flip: bool = False,
    batch: int = 8,
) -> WindowScores:
    """Score every window of images [b, 3, h, w], at most `batch` windows in one forward pass.

    score: from [k, 3, h, w] to patch scores of all names [k, p, n] and their grid (h, w). window,
    stride: (h, w) in pixels; None for the window is the whole image, for the stride half a window.
    The last window of a row or column ends at the border, and a window is never larger than the
    image. flip: average with the mirrored window. This is the protocol of SCLIP, NACLIP and
    ClearCLIP (window 224, stride 112). Raises ValueError for windows without pixels, gaps between
    them or a batch below 1.
    """
    size = (images.shape[-2], images.shape[-1])
    window = size if window is None else window
    stride = (max(window[0] // 2, 1), max(window[1] // 2, 1)) if stride is None else stride
    for name, pair in (("window", window), ("stride", stride)):
        if min(pair) < 1:
            raise ValueError(f"{name} is {pair}; expected two positive numbers of pixels")
    if stride[0] > window[0] or stride[1] > window[1]:
        raise ValueError(f"stride {stride} is larger than window {window}: pixels would be skipped")
    if batch < 1:
        raise ValueError(f"batch is {batch}; expected at least 1 window in a forward pass")
    height, width = min(window[0], size[0]), min(window[1], size[1])
    places = tuple(
        (top, left)
        for top in _starts(size[0], height, stride[0])
        for left in _starts(size[1], width, stride[1])
    )
    views = [
        (mirrored, index, image)
        for index in range(len(places))
        for image in range(len(images))
        for mirrored in (False, True)[: 1 + flip]
    ]
    scores, grid = [], (0, 0)
    for start in range(0, len(views), batch):
        crops = []
        for mirrored, index, image in views[start : start + batch]:
            top, left = places[index]
            crop = images[image, :, top : top + height, left : left + width]
            crops.append(crop.flip(-1) if mirrored else crop)
        part, grid = score(torch.stack(crops))  # [k, p, n]
        for (mirrored, _, _), each in zip(views[start : start + batch], part, strict=True):
            scores.append(each.unflatten(1, grid).flip(2).flatten(1) if mirrored else each)
    stacked = torch.stack(scores).unflatten(0, (len(places), len(images), 1 + flip))
    return WindowScores(stacked.mean(dim=2), grid, places, (height, width), size)


def window_maps(windows: WindowScores, names: Sequence[int] | None = None) -> Tensor:
    """Maps of whole images, averaged where windows overlap, of some names or all.

    names: places of k names. Returns [b, k, h, w].
    """
    scores = windows.scores if names is None else windows.scores[:, :, list(names)]
    if len(scores) == 1:
        return upsample(scores[0], windows.grid, windows.size)
    total = scores.new_zeros(*scores.shape[1:3], *windows.size)
    count = scores.new_zeros(windows.size)
    height, width = windows.window
    for (top, left), part in zip(windows.places, scores, strict=True):
        rows, columns = slice(top, top + height), slice(left, left + width)
        total[..., rows, columns] += upsample(part, windows.grid, windows.window)
        count[rows, columns] += 1
    return total / count


def _starts(length: int, window: int, stride: int) -> list[int]:
    last = length - window
    return [*range(0, last, stride), last]
