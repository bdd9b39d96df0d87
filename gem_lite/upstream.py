"""The attributes of a model that programs written for gem_torch reach into."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from .inference import encode_images
from .method.model import GEMNetwork


class Visual(nn.Module):
    """gem_torch's `model.model.visual`: the image tower, called with images alone."""

    def __init__(self, network: GEMNetwork, kernels: Callable[[], str]) -> None:
        super().__init__()
        self.network = network
        self._kernels = kernels
        image = network.config.image
        self.patch_size = (image.patch, image.patch)
        self.image_size = (image.size, image.size)
        self.grid_size = image.grid
        self.output_dim = network.config.embed

    @property
    def proj(self) -> Any:
        """The projection into the space shared with text; tells the device and the dtype."""
        return self.network.visual.proj

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [b, 3, h, w] -> (gem, clip), each [b, 1 + n, e], class token first, not normalised."""
        x = x.to(device=self.network.device, dtype=self.network.dtype)
        features = encode_images(self.network, x, self._kernels())
        return features.gem, features.clip


class Towers(nn.Module):
    """gem_torch's `model.model`: open_clip's object there, here a view on `model.network`.

    It shares the network's weights; what is assigned to it is lost with it. Edit `model.network`.
    """

    def __init__(self, network: GEMNetwork, kernels: Callable[[], str]) -> None:
        super().__init__()
        self.visual = Visual(network, kernels)

    @property
    def logit_scale(self) -> Tensor:
        """CLIP's, before `exp`."""
        return self.visual.network.logit_scale

    def encode_text(self, text: Tensor, normalize: bool = False) -> Tensor:
        """Text embeddings: [p, n] tokens -> [p, e], of unit norm where asked for."""
        network = self.visual.network
        embeddings = network.encode_text(text.to(network.device))
        return nn.functional.normalize(embeddings, dim=-1) if normalize else embeddings

    def encode_image(self, image: Tensor, normalize: bool = False) -> tuple[Tensor, Tensor]:
        """`visual(image)`, as gem_torch's: (gem, clip)."""
        both = self.visual(image)
        if not normalize:
            return both
        gem, clip = (nn.functional.normalize(each, dim=-1) for each in both)
        return gem, clip
