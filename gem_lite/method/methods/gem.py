"""GEM: queries, keys and values attend to themselves, through the last blocks."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .. import attention as maths
from ..base import Heads, Method, letters, positive


@dataclass(frozen=True, kw_only=True)
class GEMConfig(Method):
    """GEM: mean over q, k, v of iterated self-self attention, last six blocks.

    Raises ValueError or TypeError for a value out of range. None of it touches the weights.
    """

    name: ClassVar[str] = "gem"
    paper: ClassVar[str] = "Bousselham et al., CVPR 2024, arXiv 2312.00878"

    blocks: int = 6  # dual blocks, counted from the last one; 0 = plain CLIP
    iters: int = 1  # refinements of each stream before it reads the values
    inv_temp: float | None = None  # inverse temperature; None = from the mean token norm
    streams: str = "qkv"  # which projections attend to themselves

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inv_temp is not None:
            positive("inverse temperature", self.inv_temp, "or None for the adaptive one")
        letters("streams", self.streams, "qkv")

    def attention(self, heads: Heads) -> Tensor:
        """Self-self attention of the streams (section 3): [b, h, n, c]."""
        streams = torch.stack([getattr(heads, stream) for stream in self.streams])
        inv_temp = self.inv_temp or maths.adaptive_inv_temp(heads.x, heads.q.shape[-1])
        return maths.self_self_attention(
            streams, heads.v, inv_temp, iters=self.iters, grid=heads.trunk.grid
        )
