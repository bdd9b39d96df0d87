"""How a call runs: where, on which kernels, and with how many images at a time."""

import torch
from torch import Tensor, nn

from .fast import switch as fast
from .method.image import ImageFeatures
from .method.model import GEMNetwork


def best_device() -> str:
    """CUDA where this PyTorch finds it, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


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


def encode_images(network: GEMNetwork, images: Tensor, kernels: str) -> ImageFeatures:
    """`network.encode_image` on these kernels, with as many images at a time as pay."""
    with fast.mode(kernels):
        if kernels == "torch" or fast.watched(network):
            return network.encode_image(images)
        at_once = fast.images_at_once(images, network.config.image.patch)
        first, *rest = [network.encode_image(part) for part in images.split(at_once)]
    return first.joined(rest)
