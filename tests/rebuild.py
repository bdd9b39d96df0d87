"""Rebuild the weights and the inputs of the two golden models, as tests/golden/README.md tells."""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
TEMPLATE = "a photo of a {}."
PROMPTS = ("cat", "remote control", "a très long château, naïve café &amp; 犬 🐱!", "elon musk")
SIZES = ("native", "larger", "wide")


@dataclass(frozen=True, kw_only=True)
class GoldenModel:
    """One row of the table of models; sizes in pixels."""

    name: str
    seed: int
    activation: Literal["quick_gelu", "gelu"]
    embed: int
    patch: int
    image_size: int
    image_width: int
    image_layers: int
    image_heads: int
    text_width: int
    text_layers: int
    text_heads: int
    context: int = 77
    vocab: int = 49408

    def image_hw(self, size: str) -> tuple[int, int]:
        """Height and width in pixels of the inputs called `size`."""
        return {
            "native": (self.image_size, self.image_size),
            "larger": (7 * self.patch, 7 * self.patch),
            "wide": (5 * self.patch, 9 * self.patch),
        }[size]


MODELS = {
    "quickgelu_p16": GoldenModel(
        name="quickgelu_p16",
        seed=1,
        activation="quick_gelu",
        embed=64,
        patch=16,
        image_size=64,
        image_width=128,
        image_layers=8,
        image_heads=2,
        text_width=64,
        text_layers=3,
        text_heads=1,
    ),
    "gelu_p32": GoldenModel(
        name="gelu_p32",
        seed=2,
        activation="gelu",
        embed=96,
        patch=32,
        image_size=128,
        image_width=192,
        image_layers=7,
        image_heads=3,
        text_width=128,
        text_layers=2,
        text_heads=2,
    ),
}


def random_tensor(name: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    """The float32 weight called `name`: drawn from its own name, so the order never matters."""
    if name == "logit_scale":
        return torch.tensor(4.6052)
    random = np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)
    x = random.standard_normal(shape)
    if name.endswith("bias"):
        x = 0.1 * x
    elif "ln_" in name:
        x = 1 + 0.1 * x
    elif name.endswith(("token_embedding.weight", "positional_embedding", "class_embedding")):
        x = 0.5 * x
    elif name == "visual.conv1.weight":
        x = x * float(np.prod(shape[1:])) ** -0.5
    elif name in ("text_projection", "visual.proj"):
        x = x * shape[0] ** -0.5
    else:
        x = x * shape[1] ** -0.5
    return torch.from_numpy(x.astype(np.float32))


def random_state(shapes: Mapping[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """A whole state dict drawn by the golden rule, for the names and shapes given."""
    return {name: random_tensor(name, tuple(shape), seed) for name, shape in shapes.items()}


@cache
def golden_arrays() -> dict[str, np.ndarray]:
    """Every array of golden.npz by its key."""
    with np.load(GOLDEN / "golden.npz") as arrays:
        return {key: arrays[key] for key in arrays.files}


def golden(model: GoldenModel, key: str) -> torch.Tensor:
    """One golden output in its stored dtype: `golden(model, "default/wide/gem")`."""
    return torch.from_numpy(golden_arrays()[f"{model.name}/{key}"])


@cache
def golden_state(model: GoldenModel) -> dict[str, torch.Tensor]:
    """The weights of one golden model, under CLIP's own names."""
    shapes = json.loads((GOLDEN / "shapes.json").read_text())[model.name]
    return random_state(shapes, model.seed)


@cache
def golden_images(model: GoldenModel, size: str) -> torch.Tensor:
    """The two images [2, 3, h, w] of one size, already normalised."""
    random = np.random.RandomState(zlib.crc32((model.name + size).encode()) % 2**32)
    return torch.from_numpy(
        random.standard_normal((2, 3, *model.image_hw(size))).astype(np.float32)
    )
