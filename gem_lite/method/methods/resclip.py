"""ResCLIP: attention of middle blocks mixed in (RCS), a first segmentation fed back (SFR)."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..base import Heads, Method, Positions, scaled
from ..semantic import mixed_weights, second_pass


@dataclass(frozen=True, kw_only=True)
class ResCLIP(Method):
    """ResCLIP: middle blocks' q-k attention, and a first segmentation, mixed into NACLIP's."""

    name: ClassVar[str] = "resclip"
    paper: ClassVar[str] = "Yang et al., CVPR 2025, arXiv 2411.15851"
    residual: bool = False
    positions: Positions = "bicubic_offset"
    pairs: tuple[str, ...] = ("kk",)  # on ClearCLIP ("qq",), on SCLIP ("qq", "kk"), on CLIP ("qk",)
    std: float | None = 5.0  # of the Gaussian window in patches; None = no window
    rcs: tuple[float, float] | None = (2.0, 0.4)  # temperature, share of the middle blocks
    sfr: tuple[float, float] | None = (1.8, 0.7)  # temperature, share of the segmentation
    middle: tuple[int, ...] = (6, 7, 8, 9)  # blocks, whatever the depth
    damped: bool = True  # far pieces of one class count less ("delete_same_entity")
    scale: float = 40.0  # of the first segmentation's softmax
    threshold: float = 0.3  # below which it says class 0

    def reads(self, layers: int) -> set[int]:  # noqa: D102
        return {number - 1 for number in scaled(self.middle, layers, fixed=True)} | {layers - 1}

    def attention(self, heads: Heads) -> Tensor:
        """t_r ((1 - l_r) softmax(s k k^T + W) + l_r mean of middle blocks' A(q, k)) v."""
        return mixed_weights(self, heads) @ heads.v

    def scores(self, visual: Any, images: Tensor, features: Any, text: Tensor) -> Tensor:
        """Cosines; with SFR of a second pass, s k k^T mixed with M of a first segmentation."""
        first = super().scores(visual, images, features, text)
        return second_pass(self, visual, images, features, text, first) if self.sfr else first
