"""The maths GEM adds, and the two attention layers that use it.

Dimension letters, here and in the whole package:
    b batch    n tokens (class token first)    d width    h heads    c channels per head
    s streams (some of q, k, v)    p prompts    e channels of the shared embedding space
Grids and sizes are (h, w), heights before widths.
"""

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .base import Heads, Method, Trunk, project
from .replace import replaceable


def adaptive_inv_temp(x: Tensor, head_channels: int) -> Tensor:
    """Inverse temperature of each image: mean token norm over sqrt(channels per head).

    x: [b, n, d], the layer-normed tokens that q, k and v are projected from, class token included.
    Returns [b, 1, 1, 1]. Source: GEM, section 3, adaptive temperature.
    """
    norm = torch.linalg.vector_norm(x, dim=-1, dtype=torch.promote_types(x.dtype, torch.float32))
    inv_temp = norm.mean(dim=-1) * head_channels**-0.5  # [b]
    return rearrange(inv_temp, "b -> b 1 1 1").to(x.dtype)


@replaceable
def self_self_attention(
    streams: Tensor,
    v: Tensor,
    inv_temp: Tensor | float,
    *,
    iters: int,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """Mean over streams of v read through each stream's attention to itself.

    With N(x) = L2 normalisation over channels and A(x) = softmax(inv_temp N(x) N(x)^T),
    each stream is refined `iters` times by x <- A(x) N(x), and then reads A(x) v.

    streams: [s, b, h, n, c]; v: [b, h, n, c]; inv_temp: a number or [b, 1, 1, 1]; iters >= 0;
    grid: patches (h, w), for edits that look at neighbours (token 0 is the class token).
    Returns [b, h, n, c]. Source: GEM, section 3, self-self attention.
    """
    s = streams.shape[0]
    if isinstance(inv_temp, Tensor):
        inv_temp = repeat(inv_temp, "b 1 1 1 -> (s b) 1 1 1", s=s)

    def attend(x: Tensor, values: Tensor) -> Tensor:
        # Folding inv_temp into the query leaves one fused kernel: softmax(inv_temp x x^T) values.
        return F.scaled_dot_product_attention(inv_temp * x, x, values, scale=1.0)

    x = F.normalize(rearrange(streams, "s b h n c -> (s b) h n c"), dim=-1)
    for _ in range(iters):
        x = F.normalize(attend(x, x), dim=-1)
    out = attend(x, repeat(v, "b h n c -> (s b) h n c", s=s))
    return rearrange(out, "(s b) h n c -> s b h n c", s=s).mean(dim=0)


class Attention(nn.Module):
    """CLIP's multi-head attention: softmax(q k^T / sqrt(c)) v."""

    def __init__(self, width: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads = heads
        self.causal = causal
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """x: [b, n, d] -> [b, n, d]."""
        q, k, v = project(self, x)  # each [b, h, n, c]
        out = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)  # [b, h, n, c]
        return self.out_proj(rearrange(out, "b h n c -> b n (h c)"))


class GEMAttention(nn.Module):
    """CLIP's attention and, from the same projections, the method's."""

    def __init__(self, width: int, heads: int, method: Method) -> None:
        super().__init__()
        self.heads = heads
        self.method = method
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor, trunk: Trunk) -> tuple[Tensor, Tensor]:
        """x: [b, n, d] -> what to add to the (clip, gem) streams, each [b, n, d]."""
        q, k, v = project(self, x)  # each [b, h, n, c]
        clip = F.scaled_dot_product_attention(q[:, :, : trunk.asked], k, v)
        gem = self.method.attention(Heads(q, k, v, x, trunk))
        out = self.out_proj(rearrange(torch.cat([clip, gem], dim=2), "b h n c -> b n (h c)"))
        return out[:, : clip.shape[2]], out[:, clip.shape[2] :]
