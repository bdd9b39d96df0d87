"""What happens to patch tokens between blocks: outliers found and repaired, patches aggregated.

Patches are [b, n, d] without the class token, n = grid h * grid w.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from .base import Trunk, weights


def outlier_scores(x: Tensor, neighbours: int = 30) -> Tensor:
    """How much farther from its neighbours a patch is than they are from theirs: [b, n].

    Mean over a patch's nearest `neighbours` j of kd / kd_j, kd being the squared distance to the
    last of them (SC-CLIP's code; a local outlier factor whose reach distance is the point's own).
    x: [b, n, d]; with fewer patches than that, all others are neighbours.
    """
    if x.shape[1] < 2:
        return x.new_ones(x.shape[:2])
    # By a product, ten times as fast as differences; in float64, since tokens that are nearly alike
    # would drown in its rounding.
    precise = (x - x.mean(dim=1, keepdim=True)).to(_most_precise(x.device))
    distances = torch.cdist(precise, precise, compute_mode="use_mm_for_euclid_dist").square().to(x)
    itself = torch.eye(x.shape[1], dtype=torch.bool, device=x.device)
    distances = distances.masked_fill(itself, torch.inf)
    near, index = distances.topk(min(neighbours, x.shape[1] - 1), largest=False)  # [b, n, k]
    reach = near[..., -1]  # [b, n]
    others = reach[torch.arange(x.shape[0], device=x.device)[:, None, None], index]
    return (reach[..., None] / others).mean(dim=-1)


def _most_precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def outliers(x: Tensor, quantile: float = 0.95) -> Tensor:
    """Patches whose `outlier_scores` exceed a quantile of their image's: [b, n] bool.

    By more than rounding: where all patches are neighbours, the two that are farthest apart tie.
    """
    scores = outlier_scores(x.float())
    return scores > scores.quantile(quantile, dim=-1, keepdim=True) * (1 + 1e-6)


def sinks(trunk: Trunk, finder: str = "sinks", count: int = 10) -> Tensor:
    """The patches that draw attention to themselves before the last block: [b, n] bool.

    Of those to which the class token attends more (1.5 times its weight, mean over heads, in the
    block before the last) than they do themselves, the `count` to which it attends most; or with
    finder "norms" the `count` longest tokens (SFP's code).
    """
    before_last = max(1, len(trunk.blocks) - 1)
    if finder == "norms":
        strength = trunk.tokens[len(trunk.blocks) - 1][:, 1:].norm(dim=-1)  # [b, n]
        candidates = torch.ones_like(strength, dtype=torch.bool)
    else:
        heads = trunk.heads(before_last)
        attention = weights(heads.q, heads.k).mean(dim=1)  # [b, 1 + n, 1 + n]
        strength = attention[:, 0, 1:]
        candidates = 1.5 * strength > attention.diagonal(dim1=1, dim2=2)[:, 1:]
    strongest = strength.where(candidates, -torch.inf).topk(min(count, strength.shape[1])).indices
    return candidates & torch.zeros_like(candidates).scatter(1, strongest, True)


def repair(
    x: Tensor, outliers: Tensor, grid: tuple[int, int], *, lonely_zero: bool = False
) -> Tensor:
    """Patches whose outliers take the mean of the others among their 3 x 3 neighbours: [b, n, d].

    outliers: [b, n] bool. One among outliers only stays as it is, or becomes 0 (`lonely_zero`).
    """
    good = rearrange((~outliers).to(x.dtype), "b (h w) -> b 1 h w", h=grid[0])
    maps = rearrange(x, "b (h w) d -> b d h w", h=grid[0])
    total = F.avg_pool2d(maps * good, 3, stride=1, padding=1)
    share = F.avg_pool2d(good, 3, stride=1, padding=1)
    mean = rearrange(total / share.clamp(min=1e-6), "b d h w -> b (h w) d")
    lonely = rearrange(share == 0, "b 1 h w -> b (h w) 1")
    mean = mean.where(~lonely, torch.zeros_like(x) if lonely_zero else x)
    return mean.where(outliers[..., None], x)


def sum_of(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of tensors of one shape. Raises ValueError where there are none."""
    total = None
    for tensor in tensors:
        total = tensor if total is None else total + tensor
    if total is None:
        raise ValueError("no layers to sum; expected the first one not to lie behind the last")
    return total


def cosines(x: Tensor, least: float = -1.0) -> Tensor:
    """Cosines of patches with patches, below `least` 0: [b, n, d] -> [b, n, n]."""
    x = F.normalize(x, dim=-1)
    alike = x @ x.mT
    return alike if least <= -1 else alike.where(alike >= least, 0.0)


def aggregate(x: Tensor, similarity: Tensor, threshold: float) -> Tensor:
    """Patches as means of like ones: rows of the similarity from the threshold on, divided by sums.

    x: [b, n, d]; similarity: [b, n, n] -> [b, n, d].
    """
    kept = similarity.where(similarity >= threshold, 0.0)
    return kept / (kept.sum(dim=-1, keepdim=True) + 1e-6) @ x


def affinity(similarity: Tensor) -> Tensor:
    """Attention weights from cosines: softmax(3 (S - mean S)) over what lies above the mean.

    similarity: [b, n, n] -> [b, 1, n, n], the same for all heads.
    """
    scores = 3 * (similarity - similarity.mean(dim=(-2, -1), keepdim=True))
    itself = torch.eye(scores.shape[-1], dtype=torch.bool, device=scores.device)
    return scores.masked_fill((scores < 0) & ~itself, -torch.inf).softmax(dim=-1)[:, None]


def gaussian_window(grid: tuple[int, int], std: float, like: Tensor) -> Tensor:
    """exp(-distance^2 / (2 std^2)) of each two patches; 0 for the class token: [n, n].

    In the dtype and on the device of `like`, computed in at least float32.
    """
    dtype = torch.promote_types(like.dtype, torch.float32)
    sides = [torch.arange(side, dtype=dtype, device=like.device) for side in grid]
    places = torch.cartesian_prod(*sides)
    distances = (places[:, None] - places).square().sum(dim=-1)
    return F.pad((-distances / (2 * std**2)).exp(), (1, 0, 1, 0)).to(like.dtype)
