"""Negative controls: maps that know nothing of the word that was asked for.

A map counts only by what it has above them: things are often bright, in the middle, and the main
subject of their picture, whatever they are called.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...method.heatmap import min_max

SUBJECT = "the main subject"
CONTROLS = {
    "word": "the map of a word that is another picture's",
    "subject": f'the map of "{SUBJECT}", for every word',
    "brightness": "how bright each pixel is",
    "centre": "how near each pixel is to the centre",
}
_LUMA = (0.299, 0.587, 0.114)


def brightness(pixels: NDArray[np.uint8]) -> Tensor:
    """uint8 [h, w, 3] -> [h, w] in [0, 1]: the picture in grey, stretched."""
    return min_max(torch.from_numpy(np.array(pixels)).float() @ torch.tensor(_LUMA))


def centre(height: int, width: int) -> Tensor:
    """[h, w] in [0, 1]: 1 in the middle, 0 in the corners, as far as the sides are long."""
    y = torch.linspace(-1, 1, height) if height > 1 else torch.zeros(1)
    x = torch.linspace(-1, 1, width) if width > 1 else torch.zeros(1)
    return min_max(-(y[:, None].square() + x.square()))


def other_class(number: int, count: int, picture: int) -> int:
    """Another class in place of a class, the same shift for all classes of a picture."""
    return (number + 1 + picture % max(1, count - 1)) % count
