"""The text tower's parts: causal blocks, end-of-text pooling.

CLIP keeps the text tower's parameters at the root of its state dict, beside `visual`. The network
in model.py therefore owns them, and this file has what is worth a name of its own.
"""

import torch
from torch import Tensor

from .blocks import Block, Transformer
from .config import Activation, TextConfig


def causal_blocks(config: TextConfig, activation: Activation) -> Transformer:
    """The transformer of the text tower, in which a token sees itself and what stands before."""
    return Transformer(
        Block(config.width, config.heads, config.mlp_width, activation, causal=True)
        for _ in range(config.layers)
    )


def end_of_text(x: Tensor, tokens: Tensor) -> Tensor:
    """The token at the end-of-text position, the first one that holds the row's largest id.

    x: [p, n, d]; tokens: [p, n] -> [p, d].
    """
    rows = torch.arange(len(x), device=x.device)
    return x[rows, tokens.argmax(dim=-1)]
