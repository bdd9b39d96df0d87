"""Transformer blocks: CLIP's own, and one with two streams. Both have the same parameters."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, GEMAttention
from .base import Method, Trunk
from .config import Activation
from .replace import replaceable


class Streams(NamedTuple):
    """The two residual streams, each [b, n, d]."""

    clip: Tensor
    gem: Tensor


class QuickGELU(nn.Module):
    """OpenAI's approximation of GELU: x sigmoid(1.702 x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return x * torch.sigmoid(1.702 * x)


class GELU(nn.Module):
    """The exact GELU: x Phi(x)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same."""
        return F.gelu(x)


ACTIVATION_LAYERS: dict[Activation, type[nn.Module]] = {"quick_gelu": QuickGELU, "gelu": GELU}


class MLP(nn.Module):
    """Two linear layers with the activation between them; each token by itself."""

    def __init__(self, width: int, mlp_width: int, activation: Activation) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, mlp_width)
        self.act = ACTIVATION_LAYERS[activation]()
        self.c_proj = nn.Linear(mlp_width, width)

    @replaceable
    def forward(self, x: Tensor) -> Tensor:
        """x: [b, n, d] -> [b, n, d]."""
        return self.c_proj(self.act(self.c_fc(x)))


class Transformer(nn.Module):
    """A tower's blocks, under the name that CLIP gives them."""

    def __init__(self, blocks: Iterable[nn.Module]) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(blocks)


class Block(nn.Module):
    """CLIP's pre-norm transformer block."""

    def __init__(
        self,
        width: int,
        heads: int,
        mlp_width: int,
        activation: Activation,
        *,
        causal: bool = False,
    ) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, causal=causal)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_width, activation)

    def forward(self, x: Tensor) -> Tensor:
        """x: [b, n, d] -> [b, n, d]."""
        x = x + self.attn(self.ln_1(x))
        x = x + self.mlp(self.ln_2(x))
        return x


class GEMBlock(nn.Module):
    """CLIP's block with a second stream beside it (GEM, section 3).

    The clip stream runs exactly as in `Block`. The gem stream reads the clip stream and gathers
    what the method's attention returns; nothing flows from it to the clip stream. GEM has no MLP
    on it.
    """

    def __init__(
        self, width: int, heads: int, mlp_width: int, activation: Activation, method: Method
    ) -> None:
        super().__init__()
        self.method = method
        self.ln_1 = nn.LayerNorm(width)
        self.attn = GEMAttention(width, heads, method)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = MLP(width, mlp_width, activation)

    def forward(self, clip: Tensor, gem: Tensor, trunk: Trunk) -> Streams:
        """clip, gem: [b, n, d] -> the same, one block further; of clip the tokens asked for."""
        clip_attn, gem_attn = self.attn(self.ln_1(clip), trunk)
        clip = clip[:, : trunk.asked] + clip_attn
        clip = clip + self.mlp(self.ln_2(clip))
        gem = gem + gem_attn if self.method.residual else gem_attn
        if self.method.mlp:
            gem = gem + self.mlp(self.ln_2(gem))
        return Streams(clip, gem)
