"""NACLIP: k-k attention that prefers neighbours, alone."""

from dataclasses import dataclass
from typing import ClassVar, Literal

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
    strategy: Literal["naclip", "nonly", "kk"] = "naclip"  # the window alone; k-k alone

    def attention(self, heads: Heads) -> Tensor:
        """softmax(k k^T / sqrt(c) + window) v (section 3.2)."""
        q, k, v = heads[:3]
        if self.strategy == "kk":
            return attend(k, k, v)
        window = gaussian_window(heads.trunk.grid, self.std, k)
        if self.strategy == "naclip":
            return attend(k, k, v, bias=window)
        lengths = q.norm(dim=-1).mean(dim=-1) * k.norm(dim=-1).mean(dim=-1)  # [b, h]
        strength = q.shape[-1] ** -0.5 * lengths.mean(dim=1)[:, None, None, None]
        return (strength * window).softmax(dim=-1) @ v
