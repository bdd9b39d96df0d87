"""Large images in overlapping windows: patch features of each, and maps averaged over them."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .heatmap import similarity, upsample

Encode = Callable[[Tensor], tuple[Tensor, tuple[int, int]]]


class WindowFeatures(NamedTuple):
    """What the windows of b images look like; all windows have one size. Sizes are (h, w)."""

    views: Tensor  # [views, windows, b, n, e]; the second view was seen mirrored and turned back
    grid: tuple[int, int]  # patches of a window, n = h * w
    places: tuple[tuple[int, int], ...]  # (top, left) of each window in pixels
    window: tuple[int, int]  # pixels
    size: tuple[int, int]  # pixels of the whole image


def window_features(
    encode: Encode,
    images: Tensor,
    *,
    window: tuple[int, int] | None,
    stride: tuple[int, int] | None = None,
    flip: bool = False,
    batch: int = 8,
) -> WindowFeatures:
    """Encode every window of images [b, 3, h, w], at most `batch` windows in one forward pass.

    encode: from [k, 3, h, w] to patch features [k, n, e] and their grid (h, w). window, stride:
    (h, w) in pixels; None for the window is the whole image, for the stride half a window. The last
    window of a row or column ends at the border, and a window is never larger than the image.
    flip: see each window mirrored too. This is the protocol of SCLIP, NACLIP and ClearCLIP (window
    224, stride 112). Raises ValueError for windows without pixels, gaps between them or a batch
    below 1.
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
    wanted = [
        (mirrored, index, image)
        for mirrored in (False, True)[: 1 + flip]
        for index in range(len(places))
        for image in range(len(images))
    ]
    features, grid = [], (0, 0)
    for start in range(0, len(wanted), batch):
        crops = []
        for mirrored, index, image in wanted[start : start + batch]:
            top, left = places[index]
            crop = images[image, :, top : top + height, left : left + width]
            crops.append(crop.flip(-1) if mirrored else crop)
        found, grid = encode(torch.stack(crops))  # [k, n, e]
        for (mirrored, _, _), one in zip(wanted[start : start + batch], found, strict=True):
            features.append(one.unflatten(0, grid).flip(1).flatten(0, 1) if mirrored else one)
    views = torch.stack(features).unflatten(0, (1 + flip, len(places), len(images)))
    return WindowFeatures(views, grid, places, (height, width), size)


def window_maps(found: WindowFeatures, text: Tensor) -> Tensor:
    """Cosine maps of whole images, averaged where windows overlap and over the views.

    text: [p, e]. Returns [b, p, h, w] in [-1, 1].
    """
    views, windows, images = found.views.shape[:3]
    scores = similarity(found.views.flatten(0, 2), text)  # [views windows b, p, n]
    scores = scores.unflatten(0, (views, windows, images)).mean(dim=0)  # [windows, b, p, n]
    if windows == 1:
        return upsample(scores[0], found.grid, found.size)
    total = scores.new_zeros(images, len(text), *found.size)
    count = scores.new_zeros(found.size)
    height, width = found.window
    for (top, left), part in zip(found.places, scores, strict=True):
        rows, columns = slice(top, top + height), slice(left, left + width)
        total[..., rows, columns] += upsample(part, found.grid, found.window)
        count[rows, columns] += 1
    return total / count


def _starts(length: int, window: int, stride: int) -> list[int]:
    last = length - window
    return [*range(0, last, stride), last]
