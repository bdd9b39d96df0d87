"""SCLIP: correlative self-attention in the last block."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..base import Heads, Method, Positions, attend


@dataclass(frozen=True, kw_only=True)
class SCLIP(Method):
    """SCLIP: the sum of q-q and k-k attention in the last block; residual and MLP kept."""

    name: ClassVar[str] = "sclip"
    paper: ClassVar[str] = "Wang et al., ECCV 2024, arXiv 2312.01597"

    mlp: bool = True
    positions: Positions = "bicubic_offset"

    def attention(self, heads: Heads) -> Tensor:
        """(softmax(q q^T / sqrt(c)) + softmax(k k^T / sqrt(c))) v: rows sum to 2 (equation 3)."""
        q, k, v = heads[:3]
        return attend(q, q, v) + attend(k, k, v)
