"""From cosine maps to a segmentation: label maps, background, sliding windows. Pure functions."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

BACKGROUND = -1


class Segmentation(NamedTuple):
    """Which class each pixel belongs to. In a notebook it shows itself as a picture."""

    labels: Tensor  # [b, h, w] int64: index into the class names, or -1 for background
    probabilities: Tensor  # [b, classes, h, w] float32; background words take the rest to 1

    def _repr_png_(self) -> bytes:
        from .labels import label_png  # drawing is not needed otherwise

        return label_png(from_zero(self.labels), self.probabilities.shape[1])


def from_zero(labels: Tensor) -> Tensor:
    """Labels of `Segmentation`, counted so that background is 0 and class k is k + 1."""
    return labels - BACKGROUND


def label_maps(
    cosines: Tensor,
    *,
    groups: Sequence[int] | None = None,
    classes: int | None = None,
    scale: float = 50.0,
    threshold: float | None = None,
) -> Segmentation:
    """Label maps from the cosines of all names: softmax(scale * cosine), best class per pixel.

    cosines: [b, names, h, w]. groups: class of each name (a class may have several names, of which
    the best counts); default one class a name. Classes from `classes` on are background words: a
    pixel that one of them wins becomes background. `threshold`: so does a pixel whose best
    probability lies below it. `scale` is the inverse temperature; 50 is ClearCLIP's, 40 SCLIP's.
    Raises ValueError for a scale that is not positive, a threshold outside [0, 1], or groups that
    are not numbered from 0 without a gap.
    """
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale is {scale}; expected a number above 0 (40 to 65 is usual)")
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"threshold is {threshold}; expected a probability in [0, 1], or None")
    groups = list(range(cosines.shape[1])) if groups is None else list(groups)
    if len(groups) != cosines.shape[1]:
        raise ValueError(f"{len(groups)} groups for {cosines.shape[1]} maps; expected one a map")
    if not groups or set(groups) != set(range(max(groups) + 1)):
        raise ValueError(f"groups is {groups}; expected 0, 1, 2, ... with none left out")
    members = [
        [name for name, group in enumerate(groups) if group == each]
        for each in range(max(groups) + 1)
    ]
    best = torch.stack([cosines[:, names].amax(dim=1) for names in members], dim=1)
    probabilities = (scale * best).softmax(dim=1)  # [b, classes and background words, h, w]
    top, labels = probabilities.max(dim=1)  # each [b, h, w]
    classes = len(members) if classes is None else classes
    background = labels >= classes
    if threshold is not None:
        background = background | (top < threshold)
    labels = torch.where(background, BACKGROUND, labels)
    return Segmentation(labels, probabilities[:, :classes])


def sliding_window(
    score: Callable[[Tensor], Tensor],
    images: Tensor,
    *,
    window: tuple[int, int],
    stride: tuple[int, int],
) -> Tensor:
    """Scores of a large image from overlapping windows, averaged where they overlap.

    score: maps [b, 3, window h, window w] to [b, p, window h, window w]; images: [b, 3, h, w];
    window and stride: (h, w) in pixels. The last window of a row or column ends at the border. An
    image smaller than the window is scored whole. Returns [b, p, h, w]. This is the protocol of
    SCLIP, NACLIP and ClearCLIP (window 224, stride 112).
    """
    for name, pair in (("window", window), ("stride", stride)):
        if min(pair) < 1:
            raise ValueError(f"{name} is {pair}; expected two positive numbers of pixels")
    if stride[0] > window[0] or stride[1] > window[1]:
        raise ValueError(f"stride {stride} is larger than window {window}: pixels would be skipped")
    height, width = images.shape[-2:]
    total = images.new_zeros((), dtype=torch.float32)
    count = images.new_zeros((1, 1, height, width), dtype=torch.float32)
    for top in _starts(height, window[0], stride[0]):
        for left in _starts(width, window[1], stride[1]):
            bottom, right = min(top + window[0], height), min(left + window[1], width)
            scores = score(images[:, :, top:bottom, left:right])
            place = (left, width - right, top, height - bottom)
            padded = F.pad(scores, place)
            total = total + padded
            count = count + F.pad(count.new_ones((1, 1, bottom - top, right - left)), place)
    return total / count


def _starts(length: int, window: int, stride: int) -> list[int]:
    last = max(length - window, 0)
    return [*range(0, last, stride), last]
