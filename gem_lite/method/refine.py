"""Sharper edges without training: maps spread to neighbours of like colour, as in PAMR.

Source: Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020,
section 3.4. For pixel i, its neighbours j at the given distances, and channel c of the image,

    w_ij = softmax_j( mean_c( -|I_ic - I_jc| / (contrast * deviation_ic) ) ),

the deviation being that of the colours of i and its neighbours; a step replaces each map's value at
i by sum_j w_ij map_j. It is linear in the maps, so they may come in parts.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

DISTANCES = (4, 8)  # pixels
STEPS = 5
CONTRAST = 0.3
_EPS = 1e-8


def neighbour_weights(
    images: Tensor,
    *,
    distances: Sequence[int] = DISTANCES,
    contrast: float = CONTRAST,
    centres: int = 1,
) -> Tensor:
    """How much each pixel takes from each neighbour: [b, 8 * distances, h, w], sums to 1.

    images: [b, 3, h, w] of any scale. centres: how often a pixel's own colour counts in the
    deviation. PAMR's published code, as NACLIP runs it: distances (8, 16), contrast 0.1, and one
    centre a distance, 2. Raises ValueError for no distances or one below 1.
    """
    if not distances or min(distances) < 1:
        raise ValueError(f"distances is {tuple(distances)}; expected pixels, each 1 or more")
    images = images.float()
    count = 8 * len(distances) + centres
    # Against the pixel itself, so that a flat region's variance is not a difference of large sums.
    mean, square = torch.zeros_like(images), torch.zeros_like(images)
    for near in _neighbours(images, distances):
        mean = mean + (near - images) / count
        square = square + (near - images).square() / (count - 1)
    deviation = (square - mean.square() * (count / (count - 1))).clamp(min=0).sqrt()
    scale = 1 / (contrast * deviation + _EPS)
    likeness = [
        -((near - images).abs() * scale).mean(dim=1) for near in _neighbours(images, distances)
    ]
    return torch.stack(likeness, dim=1).softmax(dim=1)


def refine(
    maps: Tensor, weights: Tensor, *, distances: Sequence[int] = DISTANCES, steps: int = STEPS
) -> Tensor:
    """Maps [b, p, h, w] after some steps with the weights of `neighbour_weights`; the same shape.

    Raises ValueError when the sizes differ or there are fewer than 0 steps.
    """
    if maps.shape[-2:] != weights.shape[-2:]:
        raise ValueError(
            f"maps are {list(maps.shape[-2:])}, weights {list(weights.shape[-2:])} pixels;"
            " expected one size"
        )
    if steps < 0:
        raise ValueError(f"steps is {steps}; expected 0 or more")
    for _ in range(steps):
        spread = torch.zeros_like(maps)
        for index, near in enumerate(_neighbours(maps, distances)):
            spread = spread + near * weights[:, index : index + 1]
        maps = spread
    return maps


def _neighbours(maps: Tensor, distances: Sequence[int]) -> Iterator[Tensor]:
    """The maps shifted to each of the 8 directions at each distance; borders are repeated."""
    height, width = maps.shape[-2:]
    for distance in distances:
        padded = F.pad(maps, (distance,) * 4, mode="replicate")
        for row in (0, distance, 2 * distance):
            for column in (0, distance, 2 * distance):
                if row != distance or column != distance:
                    yield padded[..., row : row + height, column : column + width]
