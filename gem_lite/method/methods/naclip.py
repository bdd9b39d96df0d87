"""NACLIP: k-k attention that prefers neighbours, alone."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import Heads, Method, Positions, attend, positive


@dataclass(frozen=True, kw_only=True)
class NACLIP(Method):
    """NACLIP: k-k attention with a Gaussian window on the patch grid, last block alone."""

    name: ClassVar[str] = "naclip"
    paper: ClassVar[str] = "Hajimiri et al., WACV 2025, arXiv 2404.08181"

    residual: bool = False
    positions: Positions = "bicubic_offset"
    std: float = 5.0  # of the Gaussian, in patches

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("std", self.std)

    def attention(self, heads: Heads) -> Tensor:
        """softmax(k k^T / sqrt(c) + window) v (section 3.2)."""
        window = gaussian_window(heads.trunk.grid, self.std).to(heads.k)
        return attend(heads.k, heads.k, heads.v, bias=window)


def gaussian_window(grid: tuple[int, int], std: float) -> Tensor:
    """exp(-distance^2 / (2 std^2)) of each two patches; 0 for the class token: [n, n]."""
    places = torch.cartesian_prod(*(torch.arange(side, dtype=torch.float32) for side in grid))
    distances = (places[:, None] - places).square().sum(dim=-1)
    return F.pad((-distances / (2 * std**2)).exp(), (1, 0, 1, 0))
