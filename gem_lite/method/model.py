"""The network: both towers, tensors in, tensors out. Nothing here knows of strings or pictures."""

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from .base import Method, Trunk, weights
from .blocks import Block, Transformer
from .config import ModelConfig
from .image import ImageEncoder, ImageFeatures


class BlockState(NamedTuple):
    """What one block of the image tower is given, and its projections, head by head."""

    tokens: Tensor  # [b, n, d], class token first
    q: Tensor  # [b, h, n, c]
    k: Tensor  # [b, h, n, c]
    v: Tensor  # [b, h, n, c]
    grid: tuple[int, int]  # patches (h, w)

    @property
    def attention(self) -> Tensor:
        """Plain CLIP's attention weights [b, h, n, n]; computed when asked for."""
        return weights(self.q, self.k)


class GEMNetwork(nn.Module):
    """CLIP with GEM's second stream in its image tower, under CLIP's own state-dict keys.

    The parameters are not initialised here: load weights (checkpoint.py) or call
    `initialize(network)`. The same weights serve every method.
    Raises ValueError when the method asks for more dual blocks than the image tower has layers.
    """

    def __init__(self, config: ModelConfig, method: Method) -> None:
        super().__init__()
        self.config = config
        self.method = method
        text = config.text
        self.visual = ImageEncoder(config.image, config.embed, config.activation, method)
        # Not filled with random numbers first, which on the meta device would import the compiler.
        self.token_embedding = nn.Embedding.from_pretrained(
            torch.empty(text.vocab, text.width), freeze=False
        )
        self.positional_embedding = nn.Parameter(torch.empty(text.context, text.width))
        block = (text.width, text.heads, text.mlp_width, config.activation)
        self.transformer = Transformer(Block(*block, causal=True) for _ in range(text.layers))
        self.ln_final = nn.LayerNorm(text.width)
        self.text_projection = nn.Parameter(torch.empty(text.width, config.embed))
        self.logit_scale = nn.Parameter(torch.empty(()))

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return self.text_projection.dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.text_projection.device

    def encode_image(
        self, images: Tensor, keep: Collection[int] = (), *, both: bool = True
    ) -> ImageFeatures:
        """Both streams of each image, in the shared space, not normalised.

        images: [b, 3, h, w], normalised with the model's mean and std, of the network's dtype.
        keep: numbers of blocks, counted from 1, whose tokens are returned too (0 = the first's
        input). both=False: only the method's stream is needed. Returns ImageFeatures; its
        clip[:, 0] is plain CLIP's image embedding.
        """
        return self.visual(images, keep) if both else self.visual(images, keep, both=False)

    def block_states(self, images: Tensor, blocks: Sequence[int]) -> list[BlockState]:
        """Tokens, queries, keys, values and attention of the image tower's blocks asked for.

        images: as in `encode_image`; blocks: numbers from 1 to the number of layers.
        Raises ValueError for another number.
        """
        layers = self.config.image.layers
        for number in blocks:
            if not 1 <= number <= layers:
                raise ValueError(f"block {number}; the image tower has blocks 1 to {layers}")
        features = self.visual(images, {number - 1 for number in blocks})
        trunk = Trunk(self.visual.transformer.resblocks, features.grid, features.tokens)
        heads = [trunk.heads(number) for number in blocks]
        return [
            BlockState(trunk.tokens[number - 1], each.q, each.k, each.v, trunk.grid)
            for number, each in zip(blocks, heads, strict=True)
        ]

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Text embeddings, not normalised.

        tokens: [p, n] int64, n up to the context length; each row has the end-of-text token. What
        follows that token changes nothing (the blocks are causal), so rows may be cut behind it.
        Returns [p, e]. Raises ValueError for rows longer than the context.
        """
        if tokens.shape[1] > self.config.text.context:
            raise ValueError(
                f"rows of {tokens.shape[1]} tokens; the text tower takes up to"
                f" {self.config.text.context}"
            )
        x = self.token_embedding(tokens)  # [p, n, d]
        x = x + self.positional_embedding[: tokens.shape[1]]
        for block in self.transformer.resblocks:
            x = block(x)
        x = end_of_text(self.ln_final(x), tokens)  # [p, d]
        return x @ self.text_projection  # [p, e]

    def forward(self, images: Tensor, tokens: Tensor) -> tuple[ImageFeatures, Tensor]:
        """`encode_image(images)` and `encode_text(tokens)`, for training and for DataParallel."""
        return self.encode_image(images), self.encode_text(tokens)


def end_of_text(x: Tensor, tokens: Tensor) -> Tensor:
    """The token at the end-of-text position, the first one that holds the row's largest id.

    x: [p, n, d]; tokens: [p, n] -> [p, d].
    """
    rows = torch.arange(x.shape[0], device=x.device)
    return x[rows, tokens.argmax(dim=-1)]


def initialize(network: GEMNetwork) -> None:
    """Fill the parameters with CLIP's random start (CLIP, section 2.5; seeded by torch)."""
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
    for tower, config in (
        (network.visual.transformer, network.config.image),
        (network.transformer, network.config.text),
    ):
        std = config.width**-0.5
        out_std = std * (2 * config.layers) ** -0.5
        for block in cast(list[Block], list(tower.resblocks)):  # or GEMBlock: same parameters
            nn.init.normal_(block.attn.in_proj_weight, std=std)
            nn.init.zeros_(block.attn.in_proj_bias)
            nn.init.normal_(block.attn.out_proj.weight, std=out_std)
            nn.init.zeros_(block.attn.out_proj.bias)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * config.width) ** -0.5)
            nn.init.zeros_(block.mlp.c_fc.bias)
            nn.init.normal_(block.mlp.c_proj.weight, std=out_std)
            nn.init.zeros_(block.mlp.c_proj.bias)
    image, text = network.config.image, network.config.text
    nn.init.normal_(network.visual.conv1.weight, std=(3 * image.patch**2) ** -0.5)
    nn.init.normal_(network.visual.class_embedding, std=image.width**-0.5)
    nn.init.normal_(network.visual.positional_embedding, std=image.width**-0.5)
    nn.init.normal_(network.visual.proj, std=image.width**-0.5)
    nn.init.normal_(network.token_embedding.weight, std=0.02)
    nn.init.normal_(network.positional_embedding, std=0.01)
    nn.init.normal_(network.text_projection, std=text.width**-0.5)
    nn.init.constant_(network.logit_scale, math.log(1 / 0.07))
