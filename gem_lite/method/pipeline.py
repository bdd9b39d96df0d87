"""From images to label maps: resizing, windows, refinement, names in chunks."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from .checks import covers_patch, pair
from .refine import neighbour_weights, refine
from .segment import Segmentation, label_chunks
from .windows import Score, window_maps, window_scores

CHUNK_BYTES = 64 * 2**20  # maps of one chunk of names


def short_side_size(images: Tensor, short_side: int) -> tuple[int, int]:
    """(h, w) with the short side as given and the ratio kept."""
    if short_side < 1:
        raise ValueError(f"short_side is {short_side}; expected a positive number of pixels")
    height, width = images.shape[-2:]
    factor = short_side / min(height, width)
    return round(height * factor), round(width * factor)


def segment_images(
    score: Score,
    images: Tensor,
    groups: Sequence[int],
    *,
    classes: int,
    patch: int,
    size: tuple[int, int] | None = None,
    window: int | tuple[int, int] | None = None,
    stride: int | tuple[int, int] | None = None,
    short_side: int | None = None,
    flip: bool = False,
    refine_steps: int = 0,
    scale: float = 50.0,
    threshold: float | None = None,
    rival_names: bool = False,
    min_area: float = 0.0,
    chunk: int | None = None,
    batch: int = 8,
) -> Segmentation:
    """Label maps [b, h, w] of images [b, 3, h, w] from the patch scores of all names.

    score: from [k, 3, h, w] to [k, p, n] and the grid, of all p names at once, since a name's score
    may depend on the others; only the maps, which are large, come a chunk of names at a time.
    groups, classes, scale, threshold, rival_names, min_area: as in `label_chunks`; window, stride
    (one side or (h, w)), flip, batch: as in `window_scores`. patch: smallest side of a window.
    size: (h, w) of the result; None = as the images given. short_side: resize them to it first.
    chunk: names whose maps are in memory at a time; None = as many as fit in 64 MB.
    """
    size = (images.shape[-2], images.shape[-1]) if size is None else size
    if short_side is not None:
        shape = short_side_size(images, short_side)
        covers_patch(shape, patch, "resized images")
        resized = F.interpolate(images.float(), shape, mode="bicubic", antialias=True)
        images = resized.to(images.dtype)
    window = None if window is None else pair(window)
    stride = None if window is None or stride is None else pair(stride)
    if window is not None:
        covers_patch(window, patch, "window")
    windows = window_scores(score, images, window=window, stride=stride, flip=flip, batch=batch)
    weights = neighbour_weights(images) if refine_steps else None

    def maps(names: Sequence[int]) -> Tensor:
        part = window_maps(windows, names)  # [b, k, h, w]
        if weights is not None:
            part = refine(part, weights, steps=refine_steps)
        if part.shape[-2:] == size:
            return part
        return F.interpolate(part, size=size, mode="bilinear", align_corners=False)

    if chunk is None:
        pixels = len(images) * max(size[0] * size[1], windows.size[0] * windows.size[1])
        chunk = max(1, CHUNK_BYTES // (4 * pixels))
    return label_chunks(
        maps,
        groups,
        classes=classes,
        scale=scale,
        threshold=threshold,
        rival_names=rival_names,
        min_area=min_area,
        chunk=chunk,
    )
