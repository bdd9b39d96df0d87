"""From features to scores and heat maps: pure functions, all of them in float32 or wider."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

# Values of maps worked on together: on a CPU few enough to stay in its cache, elsewhere enough to
# fill the device.
VALUES_AT_ONCE = {"cpu": 1 << 18}
VALUES_ELSEWHERE = 1 << 26


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


def score_maps(
    scores: Tensor,
    grid: tuple[int, int],
    size: tuple[int, int],
    *,
    normalize: bool = True,
) -> Tensor:
    """One map per image and prompt: min-max in [0, 1], or with normalize=False the scores.

    scores: [b, p, n]; grid: patches (h, w); size: pixels (h, w), which with size = grid is one
    value for each patch. Returns [b, p, h, w].
    """
    b, p, _ = scores.shape
    maps = scores.new_empty((b, p, *size))
    # A few prompts at a time: beside the maps themselves hardly any memory is needed.
    values = VALUES_AT_ONCE.get(scores.device.type, VALUES_ELSEWHERE)
    prompts = max(1, values // (b * size[0] * size[1]))
    for start in range(0, p, prompts):
        chunk = slice(start, start + prompts)
        part = upsample(scores[:, chunk], grid, size)
        maps[:, chunk] = min_max(part) if normalize else part
    return maps


def heat_maps(
    features: Tensor,
    text: Tensor,
    grid: tuple[int, int],
    size: tuple[int, int],
    *,
    normalize: bool = True,
) -> Tensor:
    """`score_maps` of the cosines of patches and prompts.

    features: [b, n, e]; text: [p, e] or [b, p, e]. Returns [b, p, h, w].
    """
    return score_maps(similarity(features, text), grid, size, normalize=normalize)
