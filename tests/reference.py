"""Naive CLIP and GEM: one image, one head, one stream at a time; slow, plain, in any float dtype.

Written from the method's description only and sharing no code with the package, so that the two
can be held against each other. Weights come as a state dict with CLIP's own keys; gradients flow
to every tensor in it.

b batch, n patches, d width, c channels per head, e embedding, p prompts.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch

State = Mapping[str, torch.Tensor]


class Streams(NamedTuple):
    """Both streams after ln_post and the projection, [b, 1 + n, e], and the patch grid."""

    clip: torch.Tensor
    gem: torch.Tensor
    grid: tuple[int, int]


# ------------------------------------------------------------------------------------- pieces


def layer_norm(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    variance = (centred * centred).mean(-1, keepdim=True)
    return centred / (variance + 1e-5).sqrt() * state[f"{name}.weight"] + state[f"{name}.bias"]


def linear(state: State, name: str, x: torch.Tensor) -> torch.Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    if activation == "quick_gelu":
        return x / (1 + torch.exp(-1.702 * x))
    if activation == "gelu":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    raise ValueError(f"unknown activation {activation!r}")


def softmax(scores: torch.Tensor) -> torch.Tensor:
    powers = torch.exp(scores - scores.max(-1, keepdim=True).values.detach())
    return powers / powers.sum(-1, keepdim=True)


def unit(x: torch.Tensor) -> torch.Tensor:
    return x / (x * x).sum(-1, keepdim=True).sqrt()


def heads_qkv(state: State, name: str, x: torch.Tensor, heads: int) -> list[list[torch.Tensor]]:
    """[q, k, v] of every head, each [tokens, c], for one sequence x [tokens, d]."""
    d = x.shape[1]
    c = d // heads
    joint = x @ state[f"{name}.in_proj_weight"].T + state[f"{name}.in_proj_bias"]
    return [
        [joint[:, which * d + head * c : which * d + (head + 1) * c] for which in range(3)]
        for head in range(heads)
    ]


def attention(
    state: State, name: str, x: torch.Tensor, heads: int, causal: bool = False
) -> torch.Tensor:
    """Plain attention of one sequence x [tokens, d]."""
    outputs = []
    for q, k, v in heads_qkv(state, name, x, heads):
        scores = q @ k.T / math.sqrt(q.shape[1])
        if causal:
            future = torch.ones(scores.shape, device=x.device).triu(1).bool()
            scores = scores.masked_fill(future, -math.inf)
        outputs.append(softmax(scores) @ v)
    return linear(state, f"{name}.out_proj", torch.cat(outputs, -1))


def self_self(
    state: State,
    name: str,
    x: torch.Tensor,
    heads: int,
    iters: int,
    inv_temp: float | None,
    streams: str,
) -> torch.Tensor:
    """GEM's self-self attention of one sequence x [tokens, d]."""
    c = x.shape[1] // heads
    scale = (x * x).sum(-1).sqrt().mean() / math.sqrt(c) if inv_temp is None else inv_temp
    outputs = []
    for q, k, v in heads_qkv(state, name, x, heads):
        reads = []
        for letter in streams:
            s = {"q": q, "k": k, "v": v}[letter]
            for _ in range(iters):
                s = softmax(scale * unit(s) @ unit(s).T) @ unit(s)
            reads.append(softmax(scale * unit(s) @ unit(s).T) @ v)
        outputs.append(sum(reads[1:], reads[0]) / len(reads))
    return linear(state, f"{name}.out_proj", torch.cat(outputs, -1))


def block(
    state: State, name: str, x: torch.Tensor, heads: int, activation: str, causal: bool = False
) -> torch.Tensor:
    """One plain CLIP block on one sequence."""
    x = x + attention(state, f"{name}.attn", layer_norm(state, f"{name}.ln_1", x), heads, causal)
    hidden = linear(state, f"{name}.mlp.c_fc", layer_norm(state, f"{name}.ln_2", x))
    return x + linear(state, f"{name}.mlp.c_proj", activate(hidden, activation))


def layers(state: State, prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


# ------------------------------------------------------------------------------- resampling


def cubic(x: float) -> float:
    """The cubic kernel with a = -0.5."""
    x = abs(x)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    if x < 2:
        return ((-0.5 * x + 2.5) * x - 4) * x + 2
    return 0.0


def antialias_bicubic(old: int, new: int) -> torch.Tensor:
    """The matrix [new, old] that resamples a line of pixels, kernel widened when shrinking."""
    ratio = old / new
    stretch = max(ratio, 1.0)
    rows = []
    for i in range(new):
        centre = (i + 0.5) * ratio
        row = [cubic((j + 0.5 - centre) / stretch) for j in range(old)]
        rows.append([weight / sum(row) for weight in row])
    return torch.tensor(rows, dtype=torch.float64)


def bilinear(old: int, new: int) -> torch.Tensor:
    """The matrix [new, old] of bilinear resampling, align_corners=False, edges repeated."""
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for i in range(new):
        place = max((i + 0.5) * old / new - 0.5, 0.0)
        low = min(math.floor(place), old - 1)
        high = min(low + 1, old - 1)
        matrix[i, low] += 1 - (place - low)
        matrix[i, high] += place - low
    return matrix


def positions(table: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Position embeddings [1 + old, d] for another grid: [1 + gh * gw, d]."""
    side = math.isqrt(table.shape[0] - 1)
    if (side, side) == tuple(grid):
        return table
    down = antialias_bicubic(side, grid[0]).to(table)
    across = antialias_bicubic(side, grid[1]).to(table)
    square = table[1:].reshape(side, side, -1)
    resampled = torch.einsum("yi,xj,ijd->yxd", down, across, square)
    return torch.cat([table[:1], resampled.reshape(grid[0] * grid[1], -1)])


# ------------------------------------------------------------------------------------ towers


def encode_image(
    state: State,
    images: torch.Tensor,
    *,
    heads: int,
    activation: str,
    blocks: int = 6,
    iters: int = 1,
    inv_temp: float | None = None,
    streams: str = "qkv",
    residual: bool = True,
) -> Streams:
    """Both streams of images [b, 3, h, w]; `blocks` is the number of dual blocks."""
    kernel = state["visual.conv1.weight"]
    patch = kernel.shape[-1]
    grid = (images.shape[2] // patch, images.shape[3] // patch)
    prefix = "visual.transformer.resblocks."
    total = layers(state, prefix)
    clips, gems = [], []
    for image in images:
        tokens = [state["visual.class_embedding"]]
        for row in range(grid[0]):
            for column in range(grid[1]):
                top, left = row * patch, column * patch
                square = image[:, top : top + patch, left : left + patch]
                tokens.append(kernel.flatten(1) @ square.flatten())
        clip = torch.stack(tokens) + positions(state["visual.positional_embedding"], grid)
        clip = layer_norm(state, "visual.ln_pre", clip)
        gem = None
        for layer in range(total):
            name = f"{prefix}{layer}"
            if layer >= total - blocks:
                if gem is None:
                    gem = clip
                normed = layer_norm(state, f"{name}.ln_1", clip)
                added = self_self(state, f"{name}.attn", normed, heads, iters, inv_temp, streams)
                gem = gem + added if residual else added
            clip = block(state, name, clip, heads, activation)
        gem = clip if gem is None else gem
        clips.append(layer_norm(state, "visual.ln_post", clip) @ state["visual.proj"])
        gems.append(layer_norm(state, "visual.ln_post", gem) @ state["visual.proj"])
    return Streams(torch.stack(clips), torch.stack(gems), grid)


def encode_text(state: State, tokens: torch.Tensor, *, heads: int, activation: str) -> torch.Tensor:
    """Text embeddings [p, e], not normalised, of token ids [p, t]."""
    prefix = "transformer.resblocks."
    embeddings = []
    for ids in tokens.tolist():
        x = torch.stack([state["token_embedding.weight"][i] for i in ids])
        x = x + state["positional_embedding"][: len(ids)]
        for layer in range(layers(state, prefix)):
            x = block(state, f"{prefix}{layer}", x, heads, activation, causal=True)
        x = layer_norm(state, "ln_final", x)
        embeddings.append(x[ids.index(max(ids))] @ state["text_projection"])
    return torch.stack(embeddings)


# --------------------------------------------------------------------------------- heat maps


def cosine_maps(
    features: torch.Tensor, text: torch.Tensor, grid: tuple[int, int], size: tuple[int, int]
) -> torch.Tensor:
    """Cosine of patch features [b, 1 + n, e] with text [p, e], drawn at (h, w): [b, p, h, w]."""
    down = bilinear(grid[0], size[0]).to(features)
    across = bilinear(grid[1], size[1]).to(features)
    maps = []
    for image in features:
        for prompt in text:
            small = (unit(image[1:]) @ unit(prompt)).reshape(grid)
            maps.append(down @ small @ across.T)
    return torch.stack(maps).reshape(len(features), len(text), *size)


def heat_maps(cosine: torch.Tensor) -> torch.Tensor:
    """Min-max of each map [b, p, h, w] on its own; a constant map gives zeros."""
    result = []
    for one in cosine.flatten(0, 1):
        low, high = one.min(), one.max()
        result.append((one - low) / (high - low) if high > low else torch.zeros_like(one))
    return torch.stack(result).reshape(cosine.shape)
