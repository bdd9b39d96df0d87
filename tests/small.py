"""A small random model made without any file, for the tests of the layers above the network."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from gem_lite.checkpoints.header import Header
from gem_lite.method.config import OPENAI_MEAN, OPENAI_STD, ImageConfig, ModelConfig, TextConfig
from gem_lite.method.methods.gem import GEMConfig
from gem_lite.method.model import GEMNetwork, initialize
from gem_lite.predictor import GEMPredictor
from gem_lite.tokenizer import Tokenizer

# Exporting, and compiling a whole model, want a later PyTorch than the rest.
tracing = pytest.mark.skipif(
    tuple(int(part) for part in torch.__version__.split(".")[:2]) < (2, 13),
    reason="of PyTorch 2.13; older ones cannot trace all of it",
)

# Every size differs from the others, so that mixed-up axes cannot fit.
CONFIG = ModelConfig(
    embed=20,
    activation="quick_gelu",
    image=ImageConfig(size=40, patch=8, width=48, layers=3, heads=4, mlp_width=56),
    text=TextConfig(context=30, vocab=1500, width=36, layers=2, heads=3, mlp_width=44),
)
GEM = GEMConfig(blocks=2)


def small_network(
    gem: GEMConfig = GEM, *, seed: int = 0, text_layers: int = 2, **image: Any
) -> GEMNetwork:
    """The network in eval mode; `image` replaces fields of the image tower's configuration."""
    text = replace(CONFIG.text, layers=text_layers)
    config = replace(CONFIG, image=replace(CONFIG.image, **image), text=text)
    network = GEMNetwork(config, gem)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        initialize(network)
        # The random start has biases of zero; here none may be forgotten.
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
    return network.eval()


def small_header(**changes: Any) -> Header:
    header = Header(
        model="small",
        pretrained="random",
        config=CONFIG,
        gem=GEM,
        size=64,
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        source="random weights",
        sha256="",
        verified="unverified",
        licence="none",
    )
    return replace(header, **changes)


def small_model(gem: GEMConfig = GEM, *, seed: int = 0, **changes: Any) -> GEMPredictor:
    """What `create_gem_model` returns, in eval mode."""
    network = small_network(gem, seed=seed, **changes)
    text = network.config.text
    tokenizer = Tokenizer(vocab_size=text.vocab, context_length=text.context)
    header = small_header(config=network.config, gem=gem)
    return GEMPredictor(network, header, tokenizer).eval()


def random_images(batch: int, h: int, w: int, *, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, h, w, generator=generator)
