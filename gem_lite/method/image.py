"""The image tower: patches, positions, plain blocks, dual blocks."""

from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from .base import Method, Trunk
from .blocks import Block, GEMBlock, Transformer
from .config import Activation, ImageConfig
from .positions import resample_positions


class ImageFeatures(NamedTuple):
    """Both streams in the shared embedding space, not normalised, class token first."""

    clip: Tensor  # [b, 1 + grid h * grid w, e]; where it was not asked for, without patches
    gem: Tensor  # [b, 1 + grid h * grid w, e]
    grid: tuple[int, int]  # patches (h, w)
    tokens: dict[int, Tensor]  # after so many blocks, [b, n, d]: those that were asked for

    def cut(self, images: slice) -> "ImageFeatures":
        """The same of some images, whatever fields there are."""
        return type(self)(*(_over_images(lambda x: x[0][images], [field]) for field in self))

    def joined(self, others: Sequence["ImageFeatures"]) -> "ImageFeatures":
        """These images and others' behind them, whatever fields there are."""
        if not others:
            return self
        fields = zip(self, *others, strict=True)
        return type(self)(*(_over_images(lambda x: torch.cat(list(x)), field) for field in fields))


def _over_images(change: Callable[[Sequence[Tensor]], Tensor], fields: Sequence[Any]) -> Any:
    """Tensors, alone or in mappings, changed along the batch; of all else the first."""
    first = fields[0]
    if isinstance(first, Tensor):
        return change(fields)
    if isinstance(first, dict):
        return {key: _over_images(change, [field[key] for field in fields]) for key in first}
    return first


class ImageEncoder(nn.Module):
    """CLIP's vision transformer whose last blocks carry the method's second stream.

    Raises ValueError when the method asks for more dual blocks than there are layers.
    """

    def __init__(
        self, config: ImageConfig, embed: int, activation: Activation, method: Method
    ) -> None:
        super().__init__()
        if method.blocks > config.layers:
            raise ValueError(
                f"{method.blocks} dual blocks (gem_depth={method.blocks + 1}) in an image tower of"
                f" {config.layers} layers; expected 0 to {config.layers} dual blocks"
                f" (gem_depth 1 to {config.layers + 1})"
            )
        block = (config.width, config.heads, config.mlp_width, activation)
        self.method = method
        self.reads = frozenset(method.reads(config.layers))
        # Of what CLIP's last block returns, the method's stream needs the class token at most.
        own = method.class_token == "gem" and type(method).combine is Method.combine
        self.ends_with = None if config.layers in self.reads else 0 if own else 1
        self.patch = config.patch
        self.native_grid = config.grid
        self.plain_blocks = config.layers - method.blocks
        self.conv1 = nn.Conv2d(3, config.width, config.patch, stride=config.patch, bias=False)
        self.class_embedding = nn.Parameter(torch.empty(config.width))
        self.positional_embedding = nn.Parameter(
            torch.empty(1 + config.grid[0] * config.grid[1], config.width)
        )
        self.ln_pre = nn.LayerNorm(config.width)
        plain = [Block(*block) for _ in range(self.plain_blocks)]
        dual = [GEMBlock(*block, method) for _ in range(method.blocks)]
        self.transformer = Transformer([*plain, *dual])
        self.ln_post = nn.LayerNorm(config.width)
        self.proj = nn.Parameter(torch.empty(config.width, embed))

    def forward(
        self, images: Tensor, keep: Collection[int] = (), *, both: bool = True
    ) -> ImageFeatures:
        """images: [b, 3, h, w], normalised, any size from one patch up.

        keep: numbers of blocks whose tokens are returned too; 0 = what the first block is given.
        both=False: the method's stream alone is asked for, so CLIP's half of the last block, a
        twentieth of the work, is left out where nothing reads it.
        Pixels to the right and below that do not fill a patch are left out, as the patch
        convolution does.
        """
        x = self.conv1(images)  # [b, d, grid h, grid w]
        grid = (x.shape[-2], x.shape[-1])
        x = rearrange(x, "b d h w -> b (h w) d")
        token = repeat(self.class_embedding, "d -> b 1 d", b=x.shape[0])
        x = torch.cat([token, x], dim=1)  # [b, n, d]
        positions = self.positional_embedding
        x = x + resample_positions(positions, self.native_grid, grid, self.method.positions)
        clip = self.ln_pre(x)

        blocks = self.transformer.resblocks
        kept = self.reads.union(keep)
        trunk = Trunk(blocks, grid, tokens := {0: clip} if 0 in kept else {}, self.ln_pre)
        gem = clip
        for number, block in enumerate(blocks, start=1):
            if number <= self.plain_blocks:
                clip = gem = block(clip)
            else:
                if number == len(blocks) and not (both or number in kept):
                    trunk = trunk._replace(asked=self.ends_with)
                clip, gem = block(clip, gem, trunk)
            if number in kept:
                tokens[number] = clip
        gem = self.method.combine(gem, trunk)
        if self.method.class_token == "clip" or gem.shape[1] == grid[0] * grid[1]:
            gem = torch.cat([clip[:, :1], gem[:, -grid[0] * grid[1] :]], dim=1)

        return ImageFeatures(self.project(clip), self.project(gem), grid, tokens)

    def project(self, x: Tensor) -> Tensor:
        """Tokens in the shared embedding space: [b, n, d] -> [b, n, e]."""
        return self.ln_post(x) @ self.proj
