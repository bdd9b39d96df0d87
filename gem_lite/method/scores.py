"""Scores over a set of words, beyond the cosine of each: feature surgery, denoising, smoothing."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .heatmap import min_max, similarity


def feature_surgery(features: Tensor, text: Tensor, redundant: Tensor | None = None) -> Tensor:
    """Cosines less what all words have in common (CLIP Surgery, section 3.3).

    features: [b, n, e], class token first; text: [p, e]. With w_p = p softmax_p(2 cosine of the
    class token) and c the cosines, S = w c - mean_p(w c); with `redundant`, [1, e], the embedding
    of the empty prompt, S = c - c_redundant instead. One word alone without it gives zeros.
    Returns [b, p, n]. The result depends on the whole set of words.
    """
    cosines = similarity(features, text)  # [b, p, n]
    if redundant is not None:
        return cosines - similarity(features, redundant)
    weight = text.shape[0] * (2 * cosines[..., :1]).softmax(dim=1)  # [b, p, 1]
    weighted = weight * cosines
    return weighted - weighted.mean(dim=1, keepdim=True)


def prompt_denoising(scores: Tensor, threshold: float, scale: float = 100.0) -> Tensor:
    """MaskCLIP: a word that is nowhere surer than the threshold gets -scale everywhere.

    scores: cosines [b, p, n]. Returns [b, p, n].
    """
    sure = (scale * scores).softmax(dim=1).amax(dim=-1, keepdim=True) >= threshold
    return scores.where(sure, -scale)


def key_smoothing(scores: Tensor, keys: Tensor, threshold: float, scale: float = 100.0) -> Tensor:
    """MaskCLIP: probabilities [b, p, n]; unsure patches take those of patches with like keys.

    scores: cosines [b, p, n]; keys: [b, n, d], the last block's, after its out_proj. As in the
    authors' code keys are normalised along the patches and the weights are not.
    """
    p = (scale * scores).softmax(dim=1)
    keys = F.normalize(keys, dim=1)
    smooth = p @ (keys @ keys.mT)
    return smooth.where(p.amax(dim=1, keepdim=True) < threshold, p)


def similarity_map_to_points(
    similarity_map: Tensor,
    size: tuple[int, int],
    threshold: float = 0.8,
    down_sample: int = 2,
) -> tuple[Tensor, Tensor]:
    """Points on a thing and off it, as prompts for SAM (CLIP Surgery's code).

    similarity_map: [h, w] of one word, or [n] of a square grid; size: (h, w) of the picture in
    pixels. The map is made smaller by `down_sample`, bilinear, and stretched to [0, 1]; the m
    highest cells are on the thing, the m lowest off it, m being how many reach the threshold, at
    most half of all. Returns points int64 [2 m, 2] as (x, y), and labels int64 [2 m], 1 = on it,
    each half by rising score. Raises ValueError for a map without cells or of another shape.
    """
    if similarity_map.ndim == 1:
        side = math.isqrt(similarity_map.numel())
        if side * side != similarity_map.numel():
            raise ValueError(
                f"a map of {similarity_map.numel()} patches is not square; give it as [h, w]"
            )
        similarity_map = similarity_map.reshape(side, side)
    h, w = (side // down_sample for side in similarity_map.shape)
    if min(h, w) < 1:
        raise ValueError(
            f"a map of {list(similarity_map.shape)} has no cell left after down_sample"
            f" {down_sample}; expected a smaller one"
        )
    cells = F.interpolate(
        similarity_map[None, None].float(), size=(h, w), mode="bilinear", align_corners=False
    )
    cells = min_max(cells)[0, 0].flatten()
    m = min(int((cells >= threshold).sum()), cells.numel() // 2)
    rising = cells.argsort()
    chosen = torch.cat([rising[rising.numel() - m :], rising[:m]])
    x = ((chosen % w + 0.5) * size[1] / w).clamp(max=size[1] - 1)
    y = ((chosen // w + 0.5) * size[0] / h).clamp(max=size[0] - 1)
    labels = torch.cat([chosen.new_ones(m), chosen.new_zeros(m)])
    return torch.stack([x, y], dim=1).long(), labels
