"""SC-CLIP: outlier tokens repaired, the affinities of middle layers, two branches."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..base import Heads, Method, Positions, Trunk, scaled, weights
from ..tokens import affinity, aggregate, cosines, outlier_scores, repair


@dataclass(frozen=True, kw_only=True)
class SCCLIP(Method):
    """SC-CLIP: outliers repaired, k-k and middle-layer affinity, layers fused; last block alone."""

    name: ClassVar[str] = "sc_clip"
    paper: ClassVar[str] = "Bai et al., IEEE TIP 2025, arXiv 2411.15869"
    blocks: int = 0  # the stream is made of kept tokens, in `combine`
    class_token: Literal["gem", "clip"] = "clip"
    positions: Positions = "bicubic_offset"
    at: tuple[int, int, int, int] = (9, 4, 4, 10)  # of 12 blocks: Z's, S's, first and last summed
    beta: float = 0.4  # cosine from which patches are aggregated
    class_share: float = 0.3  # of the class token, added to each branch

    def reads(self, layers: int) -> Collection[int]:
        """The blocks above, and the last but one."""
        z, s, first, last = scaled(self.at, layers)
        return {z, s, layers - 1, *range(first, last + 1)}

    def combine(self, gem: Tensor, trunk: Trunk) -> Tensor:
        """agg(D(agg(repair(h), Z)) + CLS, S) + agg(D(sum of h) + CLS, S): patches [b, n, d]."""
        h, grid, layers = trunk.tokens, trunk.grid, len(trunk.blocks)
        at_z, at_s, first, last = scaled(self.at, layers)
        scores = outlier_scores(h[layers - 1][:, 1:])
        outliers = scores > scores.float().quantile(0.95, dim=-1, keepdim=True)
        z = cosines(repair(h[at_z][:, 1:], outliers, grid))
        s = cosines(h[at_s][:, 1:])

        def attention(heads: Heads) -> Tensor:
            return (affinity(z) + weights(heads.k, heads.k)) / 2 @ heads.v

        def branch(x: Tensor, token: Tensor) -> Tensor:
            dense = trunk.dense(layers, attention, tokens=x)
            return aggregate(dense + self.class_share * token, s, self.beta)

        repaired = aggregate(repair(h[layers - 1][:, 1:], outliers, grid), z, self.beta)
        fused = torch.stack([h[number] for number in range(first, last + 1)]).sum(dim=0)
        return branch(repaired, h[layers - 1][:, :1]) + branch(fused[:, 1:], fused[:, :1])
