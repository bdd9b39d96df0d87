"""VideoGEM: GEM's blocks summed with weights, the deeper ones counting more."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import attention as maths
from ..base import Heads, Method, Trunk


@dataclass(frozen=True, kw_only=True)
class VideoGEM(Method):
    """VideoGEM: GEM with a weight for each of seven blocks; the static weights, not the dynamic."""

    name: ClassVar[str] = "videogem"
    paper: ClassVar[str] = "Vogel et al., CVPR 2025"
    blocks: int = 0  # the stream is made in `combine`
    weights: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.9, 0.9, 0.9)  # where it starts, blocks

    def reads(self, layers: int) -> range:  # noqa: D102
        return range(max(0, layers + 1 - len(self.weights)), layers)

    def attention(self, heads: Heads) -> Tensor:
        """GEM's: self-self attention of q, k and v, one refinement, adaptive temperature."""
        inv_temp = maths.adaptive_inv_temp(heads.x, heads.q.shape[-1])
        return maths.self_self_attention(torch.stack(heads[:3]), heads.v, inv_temp, iters=1)

    def combine(self, gem: Tensor, trunk: Trunk) -> Tensor:
        """w_0 x + sum over the last blocks of w_i O(their attention), x what the first is given."""
        layers = len(trunk.blocks)
        first, *_ = blocks = self.reads(layers)
        gem = self.weights[0] * trunk.tokens[first]
        for weight, number in zip(self.weights[-len(blocks) :], blocks, strict=True):
            gem = gem + weight * trunk.dense(number + 1, self.attention)
        return gem
