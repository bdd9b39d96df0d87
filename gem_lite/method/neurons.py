"""Neurons of the MLPs that make patches into outliers, and how to move what they do elsewhere."""

from typing import Any

import torch
from torch import Tensor

from .base import Heads, Trunk, attend


def activations(trunk: Trunk, block: int, tokens: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The tokens between a block's attention and its MLP [b, n, d], and the MLP's neurons there.

    tokens: [b, n, d] in place of those that the block was given. Neurons are [b, n, mlp width].
    """
    layer: Any = trunk.blocks[block - 1]
    x = trunk.dense(block, _own, residual=True, tokens=tokens)
    return x, layer.mlp.act(layer.mlp.c_fc(layer.ln_2(x)))


def register_neurons(trunk: Trunk, blocks: int, outliers: Tensor, count: int) -> Tensor:
    """The neurons of the first blocks, all together, that are most active at outliers.

    outliers: [b, n] bool, class token included. A neuron's score is its mean |activation| over
    them. Returns [b, blocks, mlp width] bool, `count` of them true where a picture has outliers.
    """
    share = outliers.float() / outliers.sum(dim=1, keepdim=True).clamp(min=1)  # [b, n]
    each = [activations(trunk, block)[1].abs().float() for block in range(1, blocks + 1)]
    scores = torch.stack([torch.einsum("b n m, b n -> b m", x, share) for x in each], dim=1)
    best = scores.flatten(1).topk(min(count, scores[0].numel())).indices
    chosen = torch.zeros_like(scores.flatten(1), dtype=torch.bool).scatter(1, best, True)
    return (chosen & outliers.any(dim=1, keepdim=True)).unflatten(1, scores.shape[1:])


def with_register(trunk: Trunk, chosen: Tensor) -> Tensor:
    """CLIP's last tokens with a register behind them that takes over neurons: [b, n + 1, d].

    chosen: [b, blocks, mlp width] bool. Of these neurons the register has the largest activation
    of all tokens, and patches have 0; the class token keeps its own. The register begins as what
    ln_pre makes of zeros.
    """
    assert trunk.ln_pre is not None
    start = trunk.tokens[0]
    x = torch.cat([start, trunk.ln_pre(torch.zeros_like(start[:, :1]))], dim=1)
    for number in range(1, 1 + len(trunk.blocks)):
        layer: Any = trunk.blocks[number - 1]
        x, neurons = activations(trunk, number, x)
        if number <= chosen.shape[1]:
            largest = neurons.amax(dim=1, keepdim=True)
            patches = torch.zeros_like(neurons[:, 1:-1])
            moved = torch.cat([neurons[:, :1], patches, largest], dim=1)
            neurons = moved.where(chosen[:, number - 1, None], neurons)
        x = x + layer.mlp.c_proj(neurons)
    return x


def _own(heads: Heads) -> Tensor:
    return attend(heads.q, heads.k, heads.v)
