"""ITACLIP: q-q and k-k attention of the last block and of middle ones."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..base import Heads, Method, Positions, scaled, weights


@dataclass(frozen=True, kw_only=True)
class ITACLIP(Method):
    """ITACLIP: q-q plus k-k attention averaged with three middle blocks' own; MLP dropped.

    The attention alone: the authors' grey, blurred and mirrored pictures and their definitions of
    words are left to the caller.
    """

    name: ClassVar[str] = "itaclip"
    paper: ClassVar[str] = "Aydin et al., CVPR Workshops 2025, arXiv 2411.12044"
    positions: Positions = "bicubic_offset"
    self_self: bool = True  # False: B = A(q, k), CLIP's own ("attn_self" off)
    middle: tuple[int, ...] = (7, 8, 10)  # of 12 blocks; in proportion in other towers

    def reads(self, layers: int) -> list[int]:
        """What the middle blocks are given."""
        return [number - 1 for number in scaled(self.middle, layers, fixed=True)]

    def attention(self, heads: Heads) -> Tensor:
        """(B_last + mean of B_middle) / 2 v, B = A(q, q) + A(k, k) (section 3.1)."""
        layers = len(heads.trunk.blocks)
        middle = map(heads.trunk.heads, scaled(self.middle, layers, fixed=True))
        mean = torch.stack([self._own(each) for each in middle]).mean(dim=0)
        return (self._own(heads) + mean) / 2 @ heads.v

    def _own(self, heads: Heads) -> Tensor:
        if not self.self_self:
            return weights(heads.q, heads.k)
        return weights(heads.q, heads.q) + weights(heads.k, heads.k)
