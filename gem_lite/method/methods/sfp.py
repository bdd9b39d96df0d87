"""SFP: as SC-CLIP, with sinks of the class token's attention as outliers."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..base import Method, Positions, Trunk, scaled, weights
from ..tokens import affinity, aggregate, cosines, outliers, repair, sinks, sum_of


@dataclass(frozen=True, kw_only=True)
class SFP(Method):
    """SFP: sinks of attention repaired once, as in the code (the paper: at each layer)."""

    name: ClassVar[str] = "sfp"
    paper: ClassVar[str] = "Jin et al., ICCV 2025"
    blocks: int = 0  # the stream is made of kept tokens, in `combine`
    positions: Positions = "bicubic_offset"
    finder: Literal["sinks", "norms", "scores"] = "sinks"  # SOM, L2 and LOF in the code
    at: tuple[int, int, int, int] = (9, 4, 4, 10)  # as SC-CLIP's
    beta: float = 0.4  # cosine from which patches are alike
    class_share: float = 0.3  # of the class token, added to each branch

    def reads(self, layers: int) -> set[int]:  # noqa: D102
        z, s, first, last = scaled(self.at, layers)
        return {z, s, max(0, layers - 2), layers - 1, *range(first, last + 1)}

    def combine(self, gem: Tensor, trunk: Trunk) -> Tensor:
        """agg(O((A(k, k) + A(q, q) + A(G)) / 3 v) + O(A(G) v) + CLS, S), two branches."""
        h, end = trunk.tokens, len(trunk.blocks)
        at_z, at_s, first, last = scaled(self.at, end)
        deep, fused = h[end - 1], sum_of(h[i] for i in range(first, last + 1))
        bad = outliers(deep[:, 1:]) if self.finder == "scores" else sinks(trunk, self.finder)
        alike, x = (repair(y[:, 1:], bad, trunk.grid, lonely_zero=True) for y in (h[at_z], deep))
        z, s = cosines(alike, least=self.beta), cosines(h[at_s][:, 1:])
        q, k, v, *_ = trunk.heads(end, aggregate(x, z, self.beta))
        one = trunk.out(end, (weights(k, k) + weights(q, q) + (g := affinity(z))) / 3 @ v)
        two = trunk.out(end, g @ trunk.heads(end, fused[:, 1:]).v)
        return aggregate(one + two + self.class_share * (deep + fused)[:, :1], s, self.beta)
