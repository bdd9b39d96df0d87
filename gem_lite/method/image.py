"""The image tower: patches, positions, plain blocks, dual blocks."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from .blocks import Block, GEMBlock, Transformer
from .config import Activation, GEMConfig, ImageConfig


class ImageFeatures(NamedTuple):
    """Both streams in the shared embedding space, not normalised, class token first."""

    clip: Tensor  # [b, 1 + grid h * grid w, e]
    gem: Tensor  # [b, 1 + grid h * grid w, e]
    grid: tuple[int, int]  # patches (h, w)


def resample_positions(positions: Tensor, native: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """Position embeddings for another patch grid; the class token's stays as it is.

    positions: [1 + native h * native w, d] -> [1 + grid h * grid w, d]. Bicubic with antialias,
    align_corners=False, computed in at least float32; returned untouched when the grids agree.
    """
    if grid == native:
        return positions
    patches = rearrange(positions[1:], "(h w) d -> 1 d h w", h=native[0])
    patches = F.interpolate(
        patches.to(torch.promote_types(patches.dtype, torch.float32)),
        size=grid,
        mode="bicubic",
        antialias=True,
        align_corners=False,
    )
    patches = rearrange(patches, "1 d h w -> (h w) d").to(positions.dtype)
    return torch.cat([positions[:1], patches])


class ImageEncoder(nn.Module):
    """CLIP's vision transformer whose last blocks carry GEM's second stream.

    Raises ValueError when `gem` asks for more dual blocks than there are layers.
    """

    def __init__(
        self, config: ImageConfig, embed: int, activation: Activation, gem: GEMConfig
    ) -> None:
        super().__init__()
        if gem.blocks > config.layers:
            raise ValueError(
                f"{gem.blocks} dual blocks (gem_depth={gem.blocks + 1}) in an image tower of"
                f" {config.layers} layers; expected 0 to {config.layers} dual blocks"
                f" (gem_depth 1 to {config.layers + 1})"
            )
        block = (config.width, config.heads, config.mlp_width, activation)
        self.patch = config.patch
        self.native_grid = config.grid
        self.plain_blocks = config.layers - gem.blocks
        self.conv1 = nn.Conv2d(3, config.width, config.patch, stride=config.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(config.width))
        self.positional_embedding = nn.Parameter(
            torch.empty(1 + config.grid[0] * config.grid[1], config.width)
        )
        self.ln_pre = nn.LayerNorm(config.width)
        plain = [Block(*block) for _ in range(self.plain_blocks)]
        dual = [GEMBlock(*block, gem) for _ in range(gem.blocks)]
        self.transformer = Transformer([*plain, *dual])
        self.ln_post = nn.LayerNorm(config.width)
        self.proj = nn.Parameter(torch.empty(config.width, embed))

    def forward(self, images: Tensor) -> ImageFeatures:
        """images: [b, 3, h, w], normalised, any size from one patch up.

        Pixels to the right and below that do not fill a patch are left out, as the patch
        convolution does.
        """
        x = self.conv1(images)  # [b, d, grid h, grid w]
        grid = (x.shape[-2], x.shape[-1])
        x = rearrange(x, "b d h w -> b (h w) d")
        x = torch.cat([repeat(self.class_embedding, "d -> b 1 d", b=len(x)), x], dim=1)  # [b, n, d]
        x = x + resample_positions(self.positional_embedding, self.native_grid, grid)
        clip = self.ln_pre(x)

        blocks = self.transformer.resblocks
        for block in blocks[: self.plain_blocks]:
            clip = block(clip)
        gem = clip
        for block in blocks[self.plain_blocks :]:
            clip, gem = block(clip, gem)

        clip = self.ln_post(clip) @ self.proj  # [b, n, e]
        gem = self.ln_post(gem) @ self.proj  # [b, n, e]
        return ImageFeatures(clip, gem, grid)
