"""ClearCLIP: q-q attention alone, without the last block's residual and MLP."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..base import Heads, Method, Positions, Trunk, attend


@dataclass(frozen=True, kw_only=True)
class ClearCLIP(Method):
    """ClearCLIP: q-q attention of the last block, its residual and MLP dropped."""

    name: ClassVar[str] = "clearclip"
    paper: ClassVar[str] = "Lan et al., ECCV 2024, arXiv 2407.12442"

    residual: bool = False
    class_token: Literal["gem", "clip"] = "clip"
    positions: Positions = "bicubic_offset"
    last: int = 1  # blocks whose own outputs are summed; each feeds the next one plainly

    def attention(self, heads: Heads) -> Tensor:
        """softmax(q q^T / sqrt(c)) v (section 3.3)."""
        return attend(heads.q, heads.q, heads.v)

    def reads(self, layers: int) -> range:
        """What the blocks before the last one are given."""
        if not 1 <= self.last <= layers:
            raise ValueError(f"last is {self.last}; expected 1 to {layers} blocks")
        return range(layers - self.last, layers - 1)

    def combine(self, gem: Tensor, trunk: Trunk) -> Tensor:
        """The sum of what each of the last blocks gives by itself."""
        layers = len(trunk.blocks)
        for number in range(layers - self.last + 1, layers):
            gem = gem + trunk.dense(number, self.attention, residual=self.residual, mlp=self.mlp)
        return gem
