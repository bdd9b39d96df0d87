"""The training-free CLIP segmentation methods, written plainly: one picture, one method at a time.

Sharing no code with the package, so that the two can be held against each other. Any float dtype;
weights are a state dict with CLIP's names under `visual.`.

L blocks, counted from 1; h_0 enters block 1, h_l leaves block l. Token 0 is the class token (CLS).
A method returns its tokens as they enter ln_post; `project` turns them into features. Letters: n
patches, t = 1 + n tokens, d width, c channels per head, e embedding.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Tower(NamedTuple):
    """An image tower: its weights, and what the weights don't tell."""

    state: Mapping[str, Tensor]
    patch: int
    heads: int
    layers: int
    activation: str = "quick_gelu"
    eps: float = 1e-5


# ------------------------------------------------------------------------------------ resampling


def cubic(x: float, a: float) -> float:
    """The cubic convolution kernel: a = -0.75 in plain bicubic, -0.5 in the antialiased one."""
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    if x < 2:
        return a * (((x - 5) * x + 8) * x - 4)
    return 0.0


def line(old: int, new: int, kind: str) -> Tensor:
    """The matrix [new, old] that resamples a line of pixels: i samples (i + 0.5) ratio - 0.5.

    `bicubic_offset` takes ratio = old / (new + 0.1); `bicubic_antialias` widens the kernel by the
    ratio when it shrinks and cuts it at the edges, the others repeat the edge; `corners` is
    bilinear with the first and last pixels' centres kept in place.
    """
    matrix = torch.zeros(new, old, dtype=torch.float64)
    ratio = old / (new + 0.1) if kind == "bicubic_offset" else old / new
    for i in range(new):
        place = (i + 0.5) * ratio - 0.5
        if kind == "bicubic_antialias":
            stretch = max(ratio, 1.0)
            row = [cubic((j - place) / stretch, -0.5) for j in range(old)]
            matrix[i] = torch.tensor(row, dtype=torch.float64) / sum(row)
            continue
        if kind == "corners":
            place = i * (old - 1) / max(new - 1, 1)
        elif kind == "bilinear":
            place = max(place, 0.0)
        low = math.floor(place)
        if kind in ("bilinear", "corners"):
            taps = {low: 1 - (place - low), low + 1: place - low}
        else:
            taps = {j: cubic(j - place, -0.75) for j in range(low - 1, low + 3)}
        for j, share in taps.items():
            matrix[i, min(max(j, 0), old - 1)] += share
    return matrix


def resize(x: Tensor, size: tuple[int, int], kind: str = "bilinear") -> Tensor:
    """x [..., h, w] at another size: D x A^T, D and A the matrices of the columns and the rows."""
    down = line(x.shape[-2], size[0], kind).to(x)
    across = line(x.shape[-1], size[1], kind).to(x)
    return down @ x @ across.T


def positions(table: Tensor, grid: tuple[int, int], kind: str) -> Tensor:
    """Position embeddings [1 + G G, d] for another grid, [1 + n, d]; CLS keeps its row."""
    side = math.isqrt(len(table) - 1)
    # The offset kind is skipped where the counts of tokens are equal, whatever the shapes.
    same = grid[0] * grid[1] == side * side if kind == "bicubic_offset" else grid == (side, side)
    if same:
        return table
    square = table[1:].T.reshape(-1, side, side)
    return torch.cat([table[:1], resize(square, grid, kind).flatten(1).T])


# ----------------------------------------------------------------------------------------- tower


def unit(x: Tensor, axis: int = -1) -> Tensor:
    """x divided by its norm along an axis."""
    return x / x.norm(dim=axis, keepdim=True)


def norm(tower: Tower, name: str, x: Tensor) -> Tensor:
    """Layer norm: (x - mean) / sqrt(variance + eps) * weight + bias."""
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + tower.eps).sqrt()
    return scaled * tower.state[f"visual.{name}.weight"] + tower.state[f"visual.{name}.bias"]


def linear(tower: Tower, name: str, x: Tensor) -> Tensor:
    """x W^T + b."""
    return x @ tower.state[f"visual.{name}.weight"].T + tower.state[f"visual.{name}.bias"]


def block_name(block: int) -> str:
    """The name of a block counted from 1."""
    return f"transformer.resblocks.{block - 1}"


def qkv(tower: Tower, block: int, x: Tensor) -> list[Tensor]:
    """q, k, v of ln_1(x), [heads, t, c] each, bias included."""
    name = f"visual.{block_name(block)}.attn.in_proj"
    joint = norm(tower, f"{block_name(block)}.ln_1", x) @ tower.state[f"{name}_weight"].T
    joint = joint + tower.state[f"{name}_bias"]
    return [part.reshape(len(x), tower.heads, -1).transpose(0, 1) for part in joint.chunk(3, -1)]


def out(tower: Tower, block: int, heads: Tensor) -> Tensor:
    """O: the heads [heads, t, c] side by side, then out_proj."""
    joint = heads.transpose(0, 1).flatten(1)
    return linear(tower, f"{block_name(block)}.attn.out_proj", joint)


def scores(a: Tensor, b: Tensor) -> Tensor:
    """s a b^T with s = 1 / sqrt(c), head by head."""
    return a @ b.transpose(-1, -2) / math.sqrt(a.shape[-1])


def attend(a: Tensor, b: Tensor) -> Tensor:
    """A(a, b) = softmax(s a b^T)."""
    return scores(a, b).softmax(-1)


def mlp(tower: Tower, block: int, x: Tensor) -> Tensor:
    """MLP(ln_2(x)), without the residual."""
    name = block_name(block)
    hidden = linear(tower, f"{name}.mlp.c_fc", norm(tower, f"{name}.ln_2", x))
    if tower.activation == "quick_gelu":
        hidden = hidden * torch.sigmoid(1.702 * hidden)
    else:
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return linear(tower, f"{name}.mlp.c_proj", hidden)


def plain_block(tower: Tower, block: int, x: Tensor) -> Tensor:
    """y + MLP(ln_2(y)), y = x + O(A(q, k) v)."""
    q, k, v = qkv(tower, block, x)
    y = x + out(tower, block, attend(q, k) @ v)
    return y + mlp(tower, block, y)


def patch_grid(tower: Tower, image: Tensor) -> tuple[int, int]:
    """Rows and columns of whole patches of a picture [3, h, w]."""
    return image.shape[1] // tower.patch, image.shape[2] // tower.patch


def stem(tower: Tower, image: Tensor, kind: str) -> Tensor:
    """h_0 [t, d]: ln_pre of the class token and the patches, positions added."""
    p, grid = tower.patch, patch_grid(tower, image)
    cut = image[:, : grid[0] * p, : grid[1] * p].reshape(3, grid[0], p, grid[1], p)
    patches = cut.permute(1, 3, 0, 2, 4).reshape(grid[0] * grid[1], -1)
    kernel = tower.state["visual.conv1.weight"].flatten(1)
    tokens = torch.cat([tower.state["visual.class_embedding"][None], patches @ kernel.T])
    return norm(
        tower, "ln_pre", tokens + positions(tower.state["visual.positional_embedding"], grid, kind)
    )


def stream(tower: Tower, image: Tensor, kind: str) -> list[Tensor]:
    """h_0 ... h_L of plain CLIP."""
    h = [stem(tower, image, kind)]
    for block in range(1, tower.layers + 1):
        h.append(plain_block(tower, block, h[-1]))
    return h


def project(tower: Tower, x: Tensor) -> Tensor:
    """P(x) = ln_post(x) proj."""
    return norm(tower, "ln_post", x) @ tower.state["visual.proj"]


def cosines(features: Tensor, texts: Tensor, grid: tuple[int, int]) -> Tensor:
    """Cosine of each text [p, e] with each patch, [p, *grid]; a CLS row is left out."""
    patches = features[-grid[0] * grid[1] :]
    return (unit(texts) @ unit(patches).T).reshape(-1, *grid)


# -------------------------------------------------------------- methods that change the last block


def finish(tower: Tower, block: int, x: Tensor, attention: Tensor, residual: bool) -> Tensor:
    """A block whose attention is given: O(attention v), or with residual and MLP around it."""
    result = out(tower, block, attention @ qkv(tower, block, x)[2])
    if not residual:
        return result
    return x + result + mlp(tower, block, x + result)


def clip(tower: Tower, image: Tensor, kind: str = "bicubic_offset") -> Tensor:
    """Plain CLIP: h_L."""
    return stream(tower, image, kind)[-1]


def maskclip(tower: Tower, image: Tensor) -> Tensor:
    """MaskCLIP as its authors wrote it: v + MLP(ln_2(v)), v = x_L + O(v)."""
    x = stream(tower, image, "bicubic")[-2]
    return finish(tower, tower.layers, x, torch.eye(len(x)).to(x), residual=True)


def denoised(logits: Tensor, threshold: float) -> Tensor:
    """MaskCLIP's prompt denoising of logits [p, n]: rows never above a threshold become -100.

    The threshold holds for the largest softmax(100 logits) of a class over the picture.
    """
    sure = (100 * logits).softmax(0).max(1).values
    return torch.where((sure < threshold)[:, None], -100.0, logits)


def smoothed(tower: Tower, image: Tensor, logits: Tensor, threshold: float) -> Tensor:
    """MaskCLIP's key smoothing of logits [p, n], as probabilities p = softmax(100 logits).

    Patches whose largest p is below the threshold take sum_j (k_i . k_j) p_j, k = O(keys of block
    L), every channel divided by its norm over the patches.
    """
    x = stream(tower, image, "bicubic")[-2]
    keys = unit(out(tower, tower.layers, qkv(tower, tower.layers, x)[1])[1:], axis=0)
    p = (100 * logits).softmax(0)
    return torch.where(p.max(0).values < threshold, p @ (keys @ keys.T).to(p), p)


def sclip(tower: Tower, image: Tensor) -> Tensor:
    """SCLIP: attention A(q, q) + A(k, k) in block L, residual and MLP kept."""
    x = stream(tower, image, "bicubic_offset")[-2]
    q, k, _ = qkv(tower, tower.layers, x)
    return finish(tower, tower.layers, x, attend(q, q) + attend(k, k), residual=True)


def clearclip(
    tower: Tower, image: Tensor, model_type: str, residual: bool, last_n_layers: int = 1
) -> Tensor:
    """ClearCLIP: sum over the last blocks of O(attention v), each block feeding the next plainly.

    Attention by model_type: vanilla A(q, k), MaskCLIP the identity, SCLIP A(q, q) + A(k, k),
    ClearCLIP A(q, q). `residual` keeps the residual and the MLP of each of these blocks.
    """
    h = stream(tower, image, "bicubic_offset")
    total = torch.zeros_like(h[0])
    for block in range(tower.layers - last_n_layers + 1, tower.layers + 1):
        x = h[block - 1]
        q, k, _ = qkv(tower, block, x)
        attention = {
            "vanilla": attend(q, k),
            "MaskCLIP": torch.eye(len(x)).to(x),
            "SCLIP": attend(q, q) + attend(k, k),
            "ClearCLIP": attend(q, q),
        }[model_type]
        total = total + finish(tower, block, x, attention, residual)
    return total


def gaussian_window(grid: tuple[int, int], std: float) -> Tensor:
    """NACLIP's W [t, t]: exp(-(dy^2 + dx^2) / (2 std^2)) of two patches, 0 for CLS."""
    rows, columns = (
        axis.flatten().double()
        for axis in torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    )
    square = (rows[:, None] - rows).square() + (columns[:, None] - columns).square()
    window = torch.zeros(1 + len(rows), 1 + len(rows), dtype=torch.float64)
    window[1:, 1:] = torch.exp(-square / (2 * std**2))
    return window


def naclip(
    tower: Tower, image: Tensor, arch: str = "reduced", strategy: str = "naclip", std: float = 5.0
) -> Tensor:
    """NACLIP: softmax(s k k^T + W) in block L; arch `reduced` drops residual and MLP.

    Other strategies: nonly softmax(c W), c = s mean over heads of (mean |q|)(mean |k|); kk A(k, k);
    csa A(q, q) + A(k, k); vanilla A(q, k).
    """
    x = stream(tower, image, "bicubic_offset")[-2]
    q, k, _ = qkv(tower, tower.layers, x)
    window = gaussian_window(patch_grid(tower, image), std).to(x)
    strength = (q.norm(dim=-1).mean(-1) * k.norm(dim=-1).mean(-1)).mean() / math.sqrt(q.shape[-1])
    attention = {
        "naclip": (scores(k, k) + window).softmax(-1),
        "nonly": (strength * window).softmax(-1),
        "kk": attend(k, k),
        "csa": attend(q, q) + attend(k, k),
        "vanilla": attend(q, k),
    }[strategy]
    return finish(tower, tower.layers, x, attention, residual=arch == "vanilla")


# --------------------------------------------------------------- methods with a second stream: GEM


def gem_attention(tower: Tower, block: int, x: Tensor) -> Tensor:
    """GEM's term of one block: O of the mean over z = q, k, v of softmax(m z' z'^T) v.

    One iteration: z' = unit(softmax(m z z^T) z) with z unit vectors per head; the adaptive inverse
    temperature m = mean |ln_1(x)| / sqrt(c).
    """
    parts = qkv(tower, block, x)
    c = parts[0].shape[-1]
    m = norm(tower, f"{block_name(block)}.ln_1", x).norm(dim=-1).mean() / math.sqrt(c)
    total = torch.zeros_like(parts[2])
    for part in parts:
        z = unit(part)
        z = unit((m * z @ z.transpose(-1, -2)).softmax(-1) @ z)
        total = total + (m * z @ z.transpose(-1, -2)).softmax(-1) @ parts[2] / 3
    return out(tower, block, total)


def gem(tower: Tower, image: Tensor, residual: bool = True, blocks: int = 6) -> Tensor:
    """GEM: h_{L-blocks} plus the GEM terms of the last blocks, each read from the plain stream.

    Without `residual` (ClearCLIP's copy) the last block's term alone.
    """
    h = stream(tower, image, "bicubic_antialias")
    first = tower.layers - blocks
    terms = [gem_attention(tower, block + 1, h[block]) for block in range(first, tower.layers)]
    return h[first] + sum(terms) if residual else terms[-1]
