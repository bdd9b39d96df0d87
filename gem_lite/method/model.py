"""The network: both towers, tensors in, tensors out. Nothing here knows of strings or pictures."""

import math
from typing import cast

import torch
from torch import Tensor, nn

from .blocks import Block
from .config import GEMConfig, ModelConfig
from .image import ImageEncoder, ImageFeatures
from .text import causal_blocks, end_of_text


class GEMNetwork(nn.Module):
    """CLIP with GEM's second stream in its image tower, under CLIP's own state-dict keys.

    The parameters are not initialised here: load weights (checkpoint.py) or call
    `initialize(network)`. The same weights serve every GEMConfig.
    Raises ValueError when `gem` asks for more dual blocks than the image tower has layers.
    """

    def __init__(self, config: ModelConfig, gem: GEMConfig) -> None:
        super().__init__()
        self.config = config
        self.gem = gem
        text = config.text
        self.visual = ImageEncoder(config.image, config.embed, config.activation, gem)
        # Not filled with random numbers first, which on the meta device would import the compiler.
        self.token_embedding = nn.Embedding.from_pretrained(
            torch.empty(text.vocab, text.width), freeze=False
        )
        self.positional_embedding = nn.Parameter(torch.empty(text.context, text.width))
        self.transformer = causal_blocks(text, config.activation)
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

    def encode_image(self, images: Tensor) -> ImageFeatures:
        """Both streams of each image, in the shared space, not normalised.

        images: [b, 3, h, w], normalised with the model's mean and std, of the network's dtype.
        Returns ImageFeatures; its clip[:, 0] is plain CLIP's image embedding.
        """
        return self.visual(images)

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
