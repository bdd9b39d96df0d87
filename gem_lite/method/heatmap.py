"""From features to heat maps: pure tensor functions, all of them in float32 or wider."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

# Maps worked on together: few enough values to stay in a processor's cache.
VALUES_AT_ONCE = 1 << 18


def similarity(features: Tensor, text: Tensor) -> Tensor:
    """Cosine similarity of every patch with every prompt.

    features: [b, n, e], patches only; text: [p, e], or [b, p, e] for prompts of each image's own.
    Neither needs unit norm. Returns [b, p, n] in [-1, 1].
    """
    dtype = torch.promote_types(torch.promote_types(features.dtype, text.dtype), torch.float32)
    features = F.normalize(features.to(dtype), dim=-1)
    text = F.normalize(text.to(dtype), dim=-1)
    return text @ rearrange(features, "b n e -> b e n")


def upsample(scores: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Patch scores as maps of the image's size, bilinear with align_corners=False.

    scores: [b, p, n] with n = grid h * grid w; size: (h, w) in pixels. Returns [b, p, h, w].
    """
    maps = rearrange(scores, "b p (h w) -> b p h w", h=grid[0])
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def min_max(maps: Tensor) -> Tensor:
    """Each map stretched to [0, 1]; a map that is constant up to rounding becomes zeros.

    maps: [..., h, w]. Returns the same shape.
    """
    low = maps.amin(dim=(-2, -1), keepdim=True)
    span = maps.amax(dim=(-2, -1), keepdim=True) - low
    # Upsampling a constant leaves a few roundings, which must not be blown up to [0, 1].
    rounding = 4 * torch.finfo(maps.dtype).eps * low.abs()
    constant = span <= rounding
    return (maps - low) / torch.where(constant, torch.inf, span)


def heat_maps(
    features: Tensor,
    text: Tensor,
    grid: tuple[int, int],
    size: tuple[int, int],
    *,
    normalize: bool = True,
) -> Tensor:
    """One map per image and prompt: min-max in [0, 1], or with normalize=False the cosine.

    features: [b, n, e]; text: [p, e] or [b, p, e]; grid: patches (h, w); size: pixels (h, w), which
    with size = grid is one value for each patch. Returns [b, p, h, w].
    """
    scores = similarity(features, text)  # [b, p, n]
    b, p, _ = scores.shape
    maps = scores.new_empty((b, p, *size))
    # A few prompts at a time: beside the maps themselves hardly any memory is needed.
    at_once = max(1, VALUES_AT_ONCE // (b * size[0] * size[1]))
    for start in range(0, p, at_once):
        some = slice(start, start + at_once)
        part = upsample(scores[:, some], grid, size)
        maps[:, some] = min_max(part) if normalize else part
    return maps
