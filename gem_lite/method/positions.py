"""Position embeddings on another patch grid, by PyTorch's resampling or by products of matrices."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .base import Positions


def resample_positions(
    positions: Tensor,
    native: tuple[int, int],
    grid: tuple[int, int],
    kind: Positions = "bicubic_antialias",
) -> Tensor:
    """Position embeddings for another patch grid; the class token's stays as it is.

    positions: [1 + native h * native w, d] -> [1 + grid h * grid w, d]. Interpolated in at least
    float32 with align_corners=False; returned untouched when the grids agree. kind: what GEM does
    ("bicubic_antialias"), CLIP Surgery ("bilinear"), MaskCLIP ("bicubic"), or SCLIP and all that
    follow its code ("bicubic_offset"): that one samples with the factor (grid + 0.1) / native in
    place of grid / native, and leaves any grid of the native number of patches untouched.
    """
    offset = kind == "bicubic_offset"
    if any(isinstance(side, torch.SymInt) for side in grid):  # an exported graph's, left open
        return _open_grid(positions, native, grid, kind)
    if grid == native or (offset and math.prod(grid) == math.prod(native)):
        return positions
    # MPS lacks bicubic_antialias, and to a width of 1 PyTorch gives the first row in every row.
    if kind == "bicubic_antialias" and (positions.device.type == "mps" or grid[1] == 1):
        return by_products(positions, native, grid, kind)
    patches = rearrange(positions[1:], "(h w) d -> 1 d h w", h=native[0])
    patches = F.interpolate(
        patches.to(torch.promote_types(patches.dtype, torch.float32)),
        size=None if offset else grid,
        scale_factor=(
            [(new + 0.1) / old for new, old in zip(grid, native, strict=True)] if offset else None
        ),
        mode=kind.split("_")[0],
        antialias=kind == "bicubic_antialias",
        align_corners=False,
    )
    patches = rearrange(patches, "1 d h w -> (h w) d").to(positions.dtype)
    return torch.cat([positions[:1], patches])


def by_products(
    positions: Tensor, native: tuple[int, int], grid: tuple[Any, Any], kind: Positions
) -> Tensor:
    """The same as products with two small matrices, whatever the grid: [1 + grid h * grid w, d].

    As exact as PyTorch's: both differ from float64 by roundings. The grid's sides may be numbers
    that an exported graph learns only when it runs.
    """
    down, across = (
        interpolation(old, new, kind).to(
            device=positions.device, dtype=torch.promote_types(positions.dtype, torch.float32)
        )
        for old, new in zip(native, grid, strict=True)
    )
    patches = rearrange(positions[1:].to(down.dtype), "(h w) d -> d h w", h=native[0])
    patches = rearrange(down @ (patches @ across.mT), "d h w -> (h w) d")
    return torch.cat([positions[:1], patches.to(positions.dtype)])


def interpolation(native: int, side: Any, kind: Positions) -> Tensor:
    """What each of `side` samples takes of each of `native` values: [side, native] float64.

    Rows sum to 1. Sample i lies at (i + 1/2) native / side - 1/2. Keys' cubic kernel with a = -3/4
    (bicubic) or -1/2 (with antialias, and then stretched where `side` < `native`), or a triangle;
    beyond the ends the last value is repeated, or with antialias nothing is.
    """
    places = torch.arange(side, dtype=torch.float64)
    step = native / (places[-1:] + (1.1 if kind == "bicubic_offset" else 1))  # [1]
    centres = (places + 0.5) * step - 0.5
    if kind == "bicubic_antialias":
        distances = torch.arange(native, dtype=torch.float64) - centres[:, None]
        weights = _cubic(distances / step.clamp(min=1), a=-0.5)
        return weights / weights.sum(dim=1, keepdim=True)
    columns = torch.arange(-2, native + 2)
    distances = columns - centres[:, None]  # [side, native + 4]
    weights = (
        (1 - distances.abs()).clamp(min=0) if kind == "bilinear" else _cubic(distances, a=-0.75)
    )
    ends = F.one_hot(columns.clamp(0, native - 1), native).to(weights)
    return weights @ ends


def _cubic(x: Tensor, a: float) -> Tensor:
    x = x.abs()
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _open_grid(
    positions: Tensor, native: tuple[int, int], grid: tuple[Any, Any], kind: Positions
) -> Tensor:
    """`by_products`, and for "bicubic_offset" the choice that hangs on the number of patches."""
    resampled = by_products(positions, native, grid, kind)
    if kind != "bicubic_offset":
        return resampled  # on the native grid the matrices are the identity
    count = torch.arange(resampled.shape[0])
    same = count[-1:] == positions.shape[0] - 1  # [1]
    return torch.where(same[:, None], positions[count.clamp(max=positions.shape[0] - 1)], resampled)
