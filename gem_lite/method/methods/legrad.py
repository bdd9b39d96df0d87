"""LeGrad: where attention would have to grow for the picture to resemble the word more."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..base import Method, Trunk, weights


@dataclass(frozen=True, kw_only=True)
class LeGrad(Method):
    """LeGrad: the gradient of each word's cosine with respect to the last blocks' attention."""

    name: ClassVar[str] = "legrad"
    paper: ClassVar[str] = "Bousselham et al., ICCV 2025, arXiv 2404.03214"
    blocks: int = 0  # the network stays plain CLIP
    last: int = 2  # blocks looked at; the code's default, the abstract says all

    def reads(self, layers: int) -> range:  # noqa: D102
        return range(max(0, layers - max(1, self.last)), layers)

    def scores(self, visual: Any, images: Tensor, features: Any, text: Tensor) -> Tensor:
        """Sum over blocks of the mean over heads and queries of max(gradient, 0): [b, p, n]."""
        with torch.inference_mode(False), torch.enable_grad():
            tokens = {number: x.detach().clone() for number, x in features.tokens.items()}
            trunk = Trunk(visual.transformer.resblocks, features.grid, tokens)
            maps = [_relevance(visual, trunk, number + 1, text.clone()) for number in tokens]
            return torch.stack(maps).sum(dim=0)


def _relevance(visual: Any, trunk: Trunk, block: int, text: Tensor) -> Tensor:
    heads = trunk.heads(block)
    attention = weights(heads.q, heads.k).detach().requires_grad_()
    out = trunk.dense(block, lambda heads: attention @ heads.v, residual=True, mlp=True)
    cosine = F.normalize(visual.project(out.mean(dim=1)).float(), dim=-1) @ text.mT  # [b, p]
    grads = (torch.autograd.grad(each, attention, retain_graph=True)[0] for each in cosine.sum(0))
    return torch.stack([grad.clamp(min=0).mean(dim=(1, 2))[:, 1:] for grad in grads], dim=1)
