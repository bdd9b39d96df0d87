"""CLIP Surgery: values attend to themselves; and scores without what all words share."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..base import Heads, Method, Positions, attend, one_of
from ..scores import feature_surgery


@dataclass(frozen=True, kw_only=True)
class CLIPSurgery(Method):
    """CLIP Surgery: v-v attention through the last six blocks, optional feature surgery."""

    name: ClassVar[str] = "clip_surgery"
    paper: ClassVar[str] = "Li et al., Pattern Recognition 2025, arXiv 2304.05653"

    blocks: int = 6
    class_token: Literal["gem", "clip"] = "clip"
    positions: Positions = "bilinear"
    features: str = "plain"  # "surgery": a word's score less what all words have in common

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("features", self.features, ("plain", "surgery"))

    def attention(self, heads: Heads) -> Tensor:
        """softmax(v v^T / sqrt(c)) v (section 3.2, architecture surgery)."""
        return attend(heads.v, heads.v, heads.v)

    def scores(self, visual: Any, images: Tensor, features: Any, text: Tensor) -> Tensor:
        """Cosines, or with `features="surgery"` feature surgery over the words of this call."""
        if self.features == "surgery":
            return feature_surgery(features.gem, text)[..., 1:]
        return super().scores(visual, images, features, text)
