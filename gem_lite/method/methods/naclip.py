"""NACLIP: k-k attention that prefers neighbours, alone."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..base import Heads, Method, Positions, attend
from ..tokens import gaussian_window


@dataclass(frozen=True, kw_only=True)
class NACLIP(Method):
    """NACLIP: k-k attention with a Gaussian window on the patch grid, last block alone."""

    name: ClassVar[str] = "naclip"
    paper: ClassVar[str] = "Hajimiri et al., WACV 2025, arXiv 2404.08181"

    residual: bool = False
    positions: Positions = "bicubic_offset"
    std: float = 5.0  # of the Gaussian, in patches

    def attention(self, heads: Heads) -> Tensor:
        """softmax(k k^T / sqrt(c) + window) v (section 3.2)."""
        window = gaussian_window(heads.trunk.grid, self.std, heads.k)
        return attend(heads.k, heads.k, heads.v, bias=window)
