"""How a call runs: on which kernels, and with how many images at a time."""

from typing import Any

import torch
from torch import Tensor, nn

from .fast import switch as fast
from .method.image import ImageEncoder, ImageFeatures
from .method.model import GEMNetwork


def call_kernels(model: nn.Module, device: torch.device) -> str:
    """The kernels of a call: PyTorch's own in training and where something is recorded."""
    recorded = (
        model.training
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled(device.type)
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
    )
    return "torch" if recorded else str(model.kernels)


def encode_images(
    network: GEMNetwork, images: Tensor, kernels: str, *, both: bool = True
) -> ImageFeatures:
    """`network.encode_image` on these kernels, with as many images at a time as pay.

    both=False: the method's stream alone is read. A tower or an `encode_image` of one's own, and
    hooks, need not know of it: they compute both.
    """
    watched = fast.watched(network)
    own = type(network.visual) is not ImageEncoder or "encode_image" in vars(network)
    asked: dict[str, Any] = {} if both or own or watched else {"both": False}
    with fast.mode(kernels):
        if kernels == "torch" or watched:
            return network.encode_image(images, **asked)
        at_once = fast.images_at_once(images, network.config.image.patch)
        first, *rest = [network.encode_image(part, **asked) for part in images.split(at_once)]
    return first.joined(rest)
