"""The code that `layers.py` has a faster way for, as it was written when that way was.

A layer's function is replaced only while it is this code; edited, it runs as written.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor


def self_self_attention(
    streams: Tensor,
    v: Tensor,
    inv_temp: Tensor | float,
    *,
    iters: int,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """GEM's attention: method/attention.py explains it."""
    s = streams.shape[0]
    if isinstance(inv_temp, Tensor):
        inv_temp = repeat(inv_temp, "b 1 1 1 -> (s b) 1 1 1", s=s)

    def attend(x: Tensor, values: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(inv_temp * x, x, values, scale=1.0)

    x = F.normalize(rearrange(streams, "s b h n c -> (s b) h n c"), dim=-1)
    for _ in range(iters):
        x = F.normalize(attend(x, x), dim=-1)
    out = attend(x, repeat(v, "b h n c -> (s b) h n c", s=s))
    return rearrange(out, "(s b) h n c -> s b h n c", s=s).mean(dim=0)


class MLP:
    """Two linear layers with an activation between them."""

    def forward(self, x: Tensor) -> Tensor:
        """Each token by itself."""
        return self.c_proj(self.act(self.c_fc(x)))  # type: ignore[attr-defined]


class QuickGELU:
    """OpenAI's approximation of GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return x * torch.sigmoid(1.702 * x)


class GELU:
    """The exact GELU."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return F.gelu(x)
