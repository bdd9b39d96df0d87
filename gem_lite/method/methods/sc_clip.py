"""SC-CLIP: outlier tokens repaired, the affinities of middle layers, two branches."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..base import Method, Positions, Trunk, scaled, weights
from ..tokens import affinity, aggregate, cosines, outliers, repair, sum_of


@dataclass(frozen=True, kw_only=True)
class SCCLIP(Method):
    """SC-CLIP: outliers repaired, k-k and middle-layer affinity, layers fused; last block alone."""

    name: ClassVar[str] = "sc_clip"
    paper: ClassVar[str] = "Bai et al., IEEE TIP 2025, arXiv 2411.15869"
    blocks: int = 0  # the stream is made of kept tokens, in `combine`
    positions: Positions = "bicubic_offset"
    at: tuple[int, int, int, int] = (9, 4, 4, 10)  # of 12 blocks: Z's, S's, first and last summed
    beta: float = 0.4  # cosine from which patches are aggregated
    class_share: float = 0.3  # of the class token, added to each branch

    def reads(self, layers: int) -> set[int]:  # noqa: D102
        z, s, first, last = scaled(self.at, layers)
        return {z, s, layers - 1, *range(first, last + 1)}

    def combine(self, gem: Tensor, trunk: Trunk) -> Tensor:
        """agg(D(agg(repair(h), Z)) + CLS, S) + agg(D(H) + CLS, S), H the sum of layers."""
        h, layers = trunk.tokens, len(trunk.blocks)
        at_z, at_s, first, last = scaled(self.at, layers)
        deep, fused = h[layers - 1], sum_of(h[number] for number in range(first, last + 1))
        bad = outliers(deep[:, 1:])
        alike, near = (repair(x[:, 1:], bad, trunk.grid) for x in (h[at_z], deep))
        z, s, gem = cosines(alike), cosines(h[at_s][:, 1:]), near.new_zeros(near.shape)
        for x, cls in [(aggregate(near, z, self.beta), deep[:, :1]), (fused[:, 1:], fused[:, :1])]:
            _, k, v, *_ = trunk.heads(layers, x)
            dense = trunk.out(layers, (affinity(z) + weights(k, k)) / 2 @ v)
            gem = gem + aggregate(dense + self.class_share * cls, s, self.beta)
        return gem
