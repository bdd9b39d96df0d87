"""Confusion matrices in integers, and the scores that follow from them."""

from dataclasses import dataclass

import torch
from torch import Tensor


def confusion(truth: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Pixels counted by (true class, predicted class): int64 [classes, classes].

    truth, labels: integers of one shape. Pixels whose truth lies outside 0 .. classes - 1 (IGNORED)
    are left out. Raises ValueError when shapes differ or a counted pixel's label lies outside.
    """
    if truth.shape != labels.shape:
        raise ValueError(
            f"truth is {list(truth.shape)}, labels {list(labels.shape)}; expected equal"
        )
    truth, labels = truth.flatten().long(), labels.flatten().long()
    counted = (truth >= 0) & (truth < classes)
    truth, labels = truth[counted], labels[counted]
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; expected 0 to"
            f" {classes - 1}"
        )
    return torch.bincount(truth * classes + labels, minlength=classes**2).reshape(classes, classes)


@dataclass(frozen=True, kw_only=True)
class Scores:
    """All in [0, 1]; NaN where a class occurs neither in the truth nor in the prediction."""

    iou: tuple[float, ...]  # intersection over union of each class
    recall: tuple[float, ...]  # part of a class's pixels that have its label; NaN without pixels
    miou: float  # mean of iou, NaN left out
    pixel_accuracy: float  # part of all counted pixels with the right label
    mean_recall: float  # mean of recall, NaN left out


def scores(counts: Tensor, *, background: bool) -> Scores:
    """Scores of a confusion matrix [classes + 1, classes + 1] whose class 0 is background.

    background: whether 0 is a class of its own. Without it no pixel's truth is 0, and there is no
    score for it; a pixel labelled background is then simply wrong.
    """
    first = 0 if background else 1
    hits = counts.diagonal().double()[first:]
    true = counts.sum(dim=1).double()[first:]
    predicted = counts.sum(dim=0).double()[first:]
    iou, recall = hits / (true + predicted - hits), hits / true
    return Scores(
        iou=tuple(iou.tolist()),
        recall=tuple(recall.tolist()),
        miou=float(iou.nanmean()),
        pixel_accuracy=float(hits.sum() / counts.sum()),
        mean_recall=float(recall.nanmean()),
    )
