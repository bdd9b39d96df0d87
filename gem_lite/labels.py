"""Label maps as files and figures: 0 is background, k + 1 is class k."""

import numpy as np
from PIL import Image
from torch import Tensor

from .segment import BACKGROUND
from .visualize import label_colour


def from_zero(labels: Tensor) -> Tensor:
    """Labels of `Segmentation`, counted so that background is 0 and class k is k + 1."""
    return labels - BACKGROUND


def label_picture(labels: Tensor, classes: int) -> Image.Image:
    """A label map [h, w] (0 = background) as a picture whose pixels are the labels.

    Up to 255 classes it has a palette (black for background), so that it can be looked at, as
    Pascal VOC's are; with more of them its pixels have 16 bits.
    """
    values = labels.cpu().numpy()
    if classes > 255:
        return Image.fromarray(values.astype(np.uint16))
    picture = Image.fromarray(values.astype(np.uint8))
    palette = [0, 0, 0]
    for index in range(classes):
        palette += label_colour(index)
    picture.putpalette(palette)
    return picture
