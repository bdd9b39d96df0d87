"""A method of your own: keys and queries have to agree.

gem-lite bench-quality --method clip sclip examples/own_method.py examples/own_method.py:blocks=3
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gem_lite.method.base import Heads, Method, attend


@dataclass(frozen=True, kw_only=True)
class Agreement(Method):
    """Agreement: softmax(s (q q^T + k k^T)) v, where SCLIP adds up two softmaxes."""

    blocks: int = 5  # last blocks that feed the stream
    sharpness: float = 2.0  # of the scores, beside s

    def attention(self, heads: Heads) -> Tensor:
        """What the stream reads: [b, h, n, c]."""
        both = torch.cat([heads.q, heads.k], dim=-1)  # its products are q q^T + k k^T
        scale = self.sharpness * 2**0.5  # attend divides by the square root of 2 c
        return attend(scale * both, both, heads.v)
