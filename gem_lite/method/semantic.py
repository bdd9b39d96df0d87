"""Which patches belong together, by a first segmentation (ResCLIP's semantic feedback)."""

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .base import Heads, Trunk, one_of, scaled, weights
from .heatmap import similarity, upsample
from .refine import neighbour_weights, refine
from .tokens import gaussian_window, sum_of

PAMR = (8, 16)  # distances in pixels, as ResCLIP's code has them


def patch_classes(
    scores: Tensor, images: Tensor, grid: tuple[int, int], *, scale: float, threshold: float
) -> Tensor:
    """The class that most pixels of each patch have: [b, h, w] int64, 0 where none is sure.

    scores: [b, p, n], which become maps, spread by PAMR (10 steps), a softmax and its largest;
    images: [b, 3, h, w]; scale, threshold: of the softmax and its probability.
    """
    size = (images.shape[-2], images.shape[-1])
    weights = neighbour_weights(images, distances=PAMR, contrast=0.1, centres=len(PAMR))
    maps = refine(upsample(scores, grid, size), weights, distances=PAMR, steps=10)
    sure = (scale * maps).softmax(dim=1).max(dim=1)
    labels = sure.indices.where(sure.values >= threshold, 0)
    patch = min(size[0] // grid[0], size[1] // grid[1])
    labels = labels[:, : grid[0] * patch, : grid[1] * patch]
    return rearrange(labels, "b (h i) (w j) -> b h w (i j)", i=patch, j=patch).mode(dim=-1).values


def class_agreement(classes: Tensor, *, damped: bool, std: float, taps: int = 31) -> Tensor:
    """How much two patches belong together: [b, 1, 1 + n, 1 + n], largest value 1.

    classes: [b, h, w]. 1 where two patches have the same class; with `damped`, exp(-distance /
    largest) where the straight path between them leaves it. As in the authors' code, only the first
    part of that path is looked at, and rows are smoothed by a Gaussian along the flattened index,
    across the ends of grid rows; the class token's row and column are 0; rounded to float16.
    """
    height, width = classes.shape[1:]
    flat = classes.flatten(1)  # [b, n]
    places = torch.arange(flat.shape[1], device=classes.device)
    rows, columns = places // width, places % width
    down, right = rows - rows[:, None], columns - columns[:, None]  # [n, n], from row to column
    distance, longest = torch.maximum(down.abs(), right.abs()), max(height, width) - 1
    same = flat[:, :, None] == flat[:, None, :]  # [b, n, n]
    leaves = torch.zeros_like(same)
    for step in range(1, longest + 1 if damped else 1):
        # The nearest cell of the path; halves go to the even one, as NumPy rounds.
        row = (rows[:, None] + down.double() * step / longest).round().long()
        column = (columns[:, None] + right.double() * step / longest).round().long()
        cell = flat[:, row * width + column]  # [b, n, n]
        leaves |= (cell != flat[:, :, None]) & (step <= distance)
    matrix = same.double()
    if damped and longest:
        matrix = torch.where(leaves, matrix * (-distance / longest).exp(), matrix)
    count = flat.shape[1]
    taps = min(taps, count - 1 + count % 2)
    offsets = torch.arange(taps, device=classes.device, dtype=matrix.dtype) - taps // 2
    kernel = (-offsets.square() / (2 * std**2)).exp()
    kernel = kernel / kernel.sum()
    smooth = F.conv1d(
        rearrange(matrix, "b n m -> (b n) 1 m"), kernel[None, None], padding=taps // 2
    )
    smooth = rearrange(smooth, "(b n) 1 m -> b n m", n=count)
    smooth = smooth / (smooth.sum(dim=-1, keepdim=True) + 1e-8)
    smooth = smooth / smooth.amax(dim=(1, 2), keepdim=True)
    return F.pad(smooth, (1, 0, 1, 0)).half()[:, None]


def mixed_weights(method: Any, heads: Heads, agreement: Tensor | None = None) -> Tensor:
    """ResCLIP's attention weights [b, h, n, n] (section 3; rows need not sum to 1).

    t_r ((1 - l_r) sum over pairs of softmax(t_s ((1 - l_s) a b^T / sqrt(c) + M) + W) + l_r R), with
    (t_r, l_r) = rcs, (t_s, l_s) = sfr, W a Gaussian window on the patch grid, R the mean of the
    middle blocks' own attention. agreement: M, the share l_s in it; None = (t_s, l_s) = (1, 0).
    """
    window = torch.zeros((), device=heads.k.device)
    if method.std is not None:
        window = gaussian_window(heads.trunk.grid, method.std, heads.k)
    each = []
    for pair in method.pairs:
        one_of("pair", pair, [x + y for x in "qkv" for y in "qkv"])
        a, b = pair
        scores = heads.q.shape[-1] ** -0.5 * getattr(heads, a) @ getattr(heads, b).mT
        if agreement is not None:
            scores = method.sfr[0] * ((1 - method.sfr[1]) * scores + agreement)
        each.append((scores + window.to(scores)).softmax(dim=-1))
    total = sum_of(each)
    if method.rcs:
        middle = scaled(method.middle, len(heads.trunk.blocks), fixed=True)
        own = (weights(*heads.trunk.heads(number)[:2]) for number in middle)
        mean = sum_of(own) / len(middle)
        total = method.rcs[0] * ((1 - method.rcs[1]) * total + method.rcs[1] * mean)
    return total


def second_pass(
    method: Any, visual: Any, images: Tensor, features: Any, text: Tensor, first: Tensor
) -> Tensor:
    """Patch scores [b, p, n] of the last block alone, fed with a segmentation by `first`."""
    classes = patch_classes(
        first, images, features.grid, scale=method.scale, threshold=method.threshold
    )
    matrix = class_agreement(classes, damped=method.damped, std=5.0)
    agreement = (method.sfr[1] * matrix).to(features.gem)  # the product in float16, too
    trunk = Trunk(visual.transformer.resblocks, features.grid, features.tokens)
    gem = trunk.dense(
        len(trunk.blocks),
        lambda heads: mixed_weights(method, heads, agreement) @ heads.v,
        residual=method.residual,
        mlp=method.mlp,
    )
    return similarity(visual.project(gem)[:, 1:], text)
