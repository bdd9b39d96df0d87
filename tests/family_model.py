"""Model A of golden/family.md, its pictures and texts, and other small random image towers."""

import zlib
from functools import cache
from pathlib import Path

import numpy as np
import torch
from family_reference import Tower

GOLDEN = Path(__file__).parent / "golden" / "family.npz"
SEED = 21
SIZES = {"native": (112, 112), "large": (144, 144), "wide": (96, 160), "scene": (144, 176)}


@cache
def arrays() -> dict[str, np.ndarray]:
    """Every array of family.npz by its key."""
    with np.load(GOLDEN) as stored:
        return {key: stored[key] for key in stored.files}


def random(name: str, seed: int = SEED) -> np.random.RandomState:
    """The generator that belongs to a name: the order of drawing never matters."""
    return np.random.RandomState((zlib.crc32(name.encode()) + seed) % 2**32)


def weight(name: str, shape: tuple[int, ...], seed: int, gain: float, depth: float) -> torch.Tensor:
    """The float32 weight called `name`, by the first rule of family.md's table that fits."""
    x = random(name, seed).standard_normal(shape)
    if name.endswith(("out_proj.bias", "c_proj.bias")):
        x = 0.1 * depth * x
    elif name.endswith("bias"):
        x = 0.1 * x
    elif "ln_" in name:
        x = 1 + 0.1 * x
    elif name.endswith(("positional_embedding", "class_embedding")):
        x = 0.5 * x
    elif name.endswith("conv1.weight"):
        x = x / np.sqrt(np.prod(shape[1:]))
    elif name == "visual.proj":
        x = x / np.sqrt(shape[0])
    elif name.endswith("in_proj_weight"):
        x = gain * x / np.sqrt(shape[1])
    elif name.endswith(("out_proj.weight", "c_proj.weight")):
        x = depth * x / np.sqrt(shape[1])
    else:
        x = x / np.sqrt(shape[1])
    return torch.from_numpy(x.astype(np.float32))


def shapes(
    width: int, layers: int, patch: int, grid: int, mlp: int, embed: int
) -> dict[str, tuple[int, ...]]:
    """Names and shapes of an image tower's tensors, its native grid being grid x grid."""
    result: dict[str, tuple[int, ...]] = {
        "class_embedding": (width,),
        "positional_embedding": (1 + grid * grid, width),
        "conv1.weight": (width, 3, patch, patch),
        "proj": (width, embed),
    }
    norms = ["ln_pre", "ln_post"]
    for layer in range(layers):
        block = f"transformer.resblocks.{layer}"
        norms += [f"{block}.ln_1", f"{block}.ln_2"]
        result[f"{block}.attn.in_proj_weight"] = (3 * width, width)
        result[f"{block}.attn.in_proj_bias"] = (3 * width,)
        for name, rows, columns in (
            ("attn.out_proj", width, width),
            ("mlp.c_fc", mlp, width),
            ("mlp.c_proj", width, mlp),
        ):
            result[f"{block}.{name}.weight"] = (rows, columns)
            result[f"{block}.{name}.bias"] = (rows,)
    for name in norms:
        result[f"{name}.weight"] = result[f"{name}.bias"] = (width,)
    return {f"visual.{name}": shape for name, shape in result.items()}


def random_tower(
    seed: int,
    width: int,
    layers: int,
    heads: int,
    patch: int,
    grid: int,
    mlp: int,
    embed: int,
    activation: str = "quick_gelu",
    eps: float = 1e-5,
    gain: float = 1.2,
    depth: float = 0.5,
    dtype: torch.dtype = torch.float64,
) -> Tower:
    """A small image tower drawn by model A's rule."""
    sizes = shapes(width, layers, patch, grid, mlp, embed)
    state = {n: weight(n, shape, seed, gain, depth).to(dtype) for n, shape in sizes.items()}
    return Tower(state, patch, heads, layers, activation, eps)


def model_a(
    activation: str = "quick_gelu", eps: float = 1e-5, dtype: torch.dtype = torch.float64
) -> Tower:
    """Model A; the arguments are what `maskclip_original` changes."""
    return random_tower(SEED, 128, 12, 2, 16, 7, 512, 32, activation, eps, dtype=dtype)


def random_picture(
    name: str, size: tuple[int, int], seed: int = SEED, dtype: torch.dtype = torch.float64
) -> torch.Tensor:
    """Squares of 24 pixels plus noise, [3, h, w]: the network's input as it stands."""
    r = random(name, seed)
    h, w = size
    squares = r.standard_normal((3, -(-h // 24), -(-w // 24)))
    x = np.kron(squares, np.ones((1, 24, 24)))[:, :h, :w] + 0.35 * r.standard_normal((3, h, w))
    return torch.from_numpy(x.astype(np.float32)).to(dtype)


def picture(size: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Model A's picture called `size`: native, large, wide or scene."""
    return random_picture(size, SIZES[size], dtype=dtype)


def texts(name: str = "texts", dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """The text vectors [6, 32], or those called `empty` [1, 32]."""
    return torch.from_numpy(arrays()[name]).to(dtype)
