"""Plain CLIP: no second stream."""

from dataclasses import dataclass
from typing import ClassVar

from ..base import Method


@dataclass(frozen=True, kw_only=True)
class CLIP(Method):
    """Plain CLIP: the gem stream is CLIP's own."""

    name: ClassVar[str] = "clip"
    paper: ClassVar[str] = "Radford et al., ICML 2021, arXiv 2103.00020"

    blocks: int = 0
