"""MaskCLIP: the last block's values, without attention."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from ..base import Heads, Method, Positions


@dataclass(frozen=True, kw_only=True)
class MaskCLIP(Method):
    """MaskCLIP: each patch reads its own value; residual and MLP kept, as in the authors' code.

    Their configuration runs plain GELU and layer norms of eps 1e-6 on QuickGELU weights; here the
    activation is the weights' own. Later papers use the name for `residual=False, mlp=False`.
    """

    name: ClassVar[str] = "maskclip"
    paper: ClassVar[str] = "Zhou et al., ECCV 2022, arXiv 2112.01071"

    mlp: bool = True
    class_token: Literal["gem", "clip"] = "clip"
    positions: Positions = "bicubic"

    def attention(self, heads: Heads) -> Tensor:
        """The values themselves (section 3.3)."""
        return heads.v
