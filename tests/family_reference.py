"""The training-free CLIP segmentation methods, written plainly: one picture, one method at a time.

Sharing no code with the package, so that the two can be held against each other. Any float dtype;
weights are a state dict with CLIP's names under `visual.`.

L blocks, counted from 1; h_0 enters block 1, h_l leaves block l. Token 0 is the class token (CLS).
A method returns its tokens as they enter ln_post; `project` turns them into features. Letters: n
patches, t = 1 + n tokens, d width, c channels per head, e embedding.
"""

import math
from collections.abc import Callable, Mapping
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


def entropies(tower: Tower, image: Tensor) -> Tensor:
    """Mean entropy of a patch's row / log(t) of A(q, k), A(q, q), A(k, k), A(v, v): [blocks, 4]."""
    h = stream(tower, image, "bicubic_offset")
    rows = []
    for block in range(1, tower.layers + 1):
        q, k, v = qkv(tower, block, h[block - 1])
        weights = torch.stack([attend(q, k), attend(q, q), attend(k, k), attend(v, v)])[:, :, 1:]
        rows.append(torch.special.entr(weights).sum(-1).mean((1, 2)) / math.log(len(h[0])))
    return torch.stack(rows)


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


def clip_surgery(tower: Tower, image: Tensor, blocks: int = 6) -> Tensor:
    """CLIP Surgery: h_{L-6} + sum of O(A(v, v) v) over the last 6 blocks; CLS of h_L."""
    h = stream(tower, image, "bilinear")
    first = tower.layers - blocks
    result = h[first]
    for block in range(first + 1, tower.layers + 1):
        v = qkv(tower, block, h[block - 1])[2]
        result = result + out(tower, block, attend(v, v) @ v)
    return torch.cat([h[-1][:1], result[1:]])


def feature_surgery(features: Tensor, texts: Tensor, redundant: Tensor | None = None) -> Tensor:
    """CLIP Surgery's S [t, p] of features [t, e] and p unit texts.

    S = w c - mean over texts of w c, c the cosines, w = p softmax(2 c of CLS); with the vector of
    a redundant text [1, e], S = c - f . r without weights.
    """
    f = unit(features)
    c = f @ texts.T
    if redundant is not None:
        return c - f @ redundant.T
    weighted = len(texts) * (2 * c[0]).softmax(-1) * c
    return weighted - weighted.mean(-1, keepdim=True)


def min_max(x: Tensor) -> Tensor:
    """(x - min) / (max - min) of every row."""
    low, high = x.min(-1, keepdim=True).values, x.max(-1, keepdim=True).values
    return (x - low) / (high - low)


def surgery_map(similarity: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """CLIP Surgery's heat maps [h, w, p] of S [t, p]: min-max over the patches, then bilinear."""
    maps = min_max(similarity[1:].T).reshape(-1, *grid)
    return resize(maps, size).permute(1, 2, 0)


def similarity_map_to_points(
    similarity: Tensor, size: tuple[int, int], threshold: float, down_sample: int
) -> tuple[Tensor, Tensor]:
    """CLIP Surgery's points [2 m, (x, y)] and labels [2 m] from S [n] of one text, a square map.

    Bilinear to side // down_sample, min-max; m = min(cells >= threshold, half of them); the m
    highest cells get label 1, the m lowest 0; a point is floor((cell + 0.5) picture / cells).
    """
    side = math.isqrt(len(similarity))
    cells = side // down_sample
    small = min_max(resize(similarity.reshape(side, side), (cells, cells)).flatten())
    m = min(int((small >= threshold).sum()), cells * cells // 2)
    rising = small.argsort().tolist()
    points = []
    for cell in rising[len(rising) - m :] + rising[:m]:
        x = min((cell % cells + 0.5) * size[1] / cells, size[1] - 1)
        y = min((cell // cells + 0.5) * size[0] / cells, size[0] - 1)
        points.append((int(x), int(y)))
    return torch.tensor(points).reshape(-1, 2), torch.tensor([1] * m + [0] * m)


# ------------------------------------------------------------------------------ SC-CLIP and SFP


def local_outlier_scores(x: Tensor, neighbours: int = 30) -> Tensor:
    """SC-CLIP's scores [n] of patches [n, d]: mean over i's neighbours j of kd_i / kd_j.

    kd is the squared distance to the 30th neighbour; a patch is no neighbour of its own.
    """
    distances = (x[:, None] - x).square().sum(-1).fill_diagonal_(math.inf)
    near, who = distances.topk(neighbours, largest=False)
    kd = near[:, -1]
    return (kd[:, None] / kd[who]).mean(-1)


def repair(x: Tensor, outliers: Tensor, grid: tuple[int, int], lonely_zero: bool = False) -> Tensor:
    """Patches [n, d] whose outliers take the mean of their 3 x 3 neighbours that are none.

    An outlier among outliers only is kept, or with `lonely_zero` (SFP) becomes 0.
    """
    bad = set(outliers.tolist())
    result = x.clone()
    for i in bad:
        row, column = divmod(i, grid[1])
        good = [
            r * grid[1] + c
            for r in range(max(row - 1, 0), min(row + 2, grid[0]))
            for c in range(max(column - 1, 0), min(column + 2, grid[1]))
            if r * grid[1] + c not in bad
        ]
        if good:
            result[i] = x[good].mean(0)
        elif lonely_zero:
            result[i] = 0
    return result


def similarities(x: Tensor) -> Tensor:
    """Cosines of patches with patches [n, n]."""
    return unit(x) @ unit(x).T


def aggregate(x: Tensor, similarity: Tensor, beta: float) -> Tensor:
    """agg(X, S): rows of S, entries below beta set to 0, over their sum + 1e-6, times X."""
    kept = torch.where(similarity < beta, 0.0, similarity)
    return kept / (kept.sum(-1, keepdim=True) + 1e-6) @ x


def similarity_attention(z: Tensor) -> Tensor:
    """softmax(G), G = 3 (Z - mean Z), negative entries -> -inf."""
    g = 3 * (z - z.mean())
    return torch.where(g < 0, -math.inf, g).softmax(-1)


def scclip_outliers(tower: Tower, image: Tensor) -> tuple[Tensor, Tensor]:
    """SC-CLIP's outliers, and the scores [n] of h_{L-1}: outliers exceed their 0.95 quantile."""
    lof = local_outlier_scores(stream(tower, image, "bicubic_offset")[-2][1:])
    return (lof > lof.quantile(0.95)).nonzero().flatten(), lof


def scclip(
    tower: Tower,
    image: Tensor,
    beta: float = 0.4,
    res_cls: float = 0.3,
    pre_adjust: int = 9,
    post_adjust: int = 4,
    multi: tuple[int, int] = (4, 10),
) -> Tensor:
    """SC-CLIP, patches only [n, d]: agg(y1, S4) + agg(y2, S4); blocks counted from 1.

    Z cosines of repair(h_9), S4 cosines of h_4; D(X) = O(((softmax(G) + A(k, k)) / 2) v) of X;
    y1 = D(agg(repair(h_{L-1}), Z)) + 0.3 CLS(h_{L-1}); y2 = D(H) + 0.3 CLS(H), H = h_4 + .. + h_10.
    """
    h, grid = stream(tower, image, "bicubic_offset"), patch_grid(tower, image)
    outliers = scclip_outliers(tower, image)[0]
    z = similarities(repair(h[pre_adjust][1:], outliers, grid))

    def branch(x: Tensor, cls: Tensor) -> Tensor:
        k = qkv(tower, tower.layers, x)[1]
        mixed = (similarity_attention(z) + attend(k, k)) / 2
        return finish(tower, tower.layers, x, mixed, residual=False) + res_cls * cls

    total = torch.stack(h[multi[0] : multi[1] + 1]).sum(0)
    y1 = branch(aggregate(repair(h[-2][1:], outliers, grid), z, beta), h[-2][0])
    y2 = branch(total[1:], total[0])
    shallow = similarities(h[post_adjust][1:])
    return aggregate(y1, shallow, beta) + aggregate(y2, shallow, beta)


# -------------------------------------------------------------------------------------------- PAMR


def neighbours(x: Tensor, dilations: tuple[int, ...]) -> Tensor:
    """The 8 neighbours of every pixel at every dilation, [8 dilations, c, h, w]; edges repeat."""
    h, w = x.shape[1:]
    found = []
    for step in dilations:
        for dy in (-step, 0, step):
            for dx in (-step, 0, step):
                if dy or dx:
                    rows = (torch.arange(h) + dy).clamp(0, h - 1)
                    columns = (torch.arange(w) + dx).clamp(0, w - 1)
                    found.append(x[:, rows][:, :, columns])
    return torch.stack(found)


def pamr(image: Tensor, maps: Tensor, steps: int, dilations: tuple[int, ...]) -> Tensor:
    """PAMR of maps [p, ., .] on a picture [3, h, w]: steps of the mean of the neighbours.

    Weights softmax over neighbours of mean over channels of -|x - neighbour| / (1e-8 + 0.1 std),
    std over 9 x dilations, the pixel itself being counted once in each.
    """
    maps = resize(maps, (image.shape[1], image.shape[2]), "corners")
    around = neighbours(image, dilations)
    std = torch.cat([around, image.expand(len(dilations), -1, -1, -1)]).std(0)
    affinity = (-(image - around).abs() / (1e-8 + 0.1 * std)).mean(1).softmax(0)
    for _ in range(steps):
        maps = (affinity[:, None] * neighbours(maps, dilations)).sum(0)
    return maps


# ------------------------------------------------------------------------------------------ ResCLIP


class Residual(NamedTuple):
    """ResCLIP's settings: its base, its two modules (RCS, SFR) and what they mix."""

    base: str = "naclip"
    rcs: bool = True
    sfr: bool = True
    delete_same_entity: bool = True
    rcs_temperature: float = 2.0
    rcs_share: float = 0.4
    sfr_temperature: float = 1.8
    sfr_share: float = 0.7
    temp_thd: float = 0.3
    logit_scale: float = 40.0
    std: float = 5.0
    residual: bool = False
    blocks: tuple[int, ...] = (6, 7, 8, 9)


def resclip_pass(
    tower: Tower, image: Tensor, settings: Residual, semantic: Tensor | None
) -> Tensor:
    """t_r ((1 - l_r) B + l_r R) in block L, R the mean of A(q, k) over blocks 6 to 9.

    B is the base's softmax(t_s ((1 - l_s) s k k^T + l_s M) + W), M = `semantic`; without M plainly
    softmax(s k k^T + W). Bases: naclip; clearclip (q q^T, no W); vanilla (q k^T, no W); sclip, the
    sum of both softmaxes of q q^T and k k^T, no W.
    """
    h = stream(tower, image, "bicubic_offset")
    q, k, _ = qkv(tower, tower.layers, h[-2])
    window = gaussian_window(patch_grid(tower, image), settings.std).to(q)

    def mixed(score: Tensor) -> Tensor:
        if semantic is None:
            return score
        share = settings.sfr_share
        # M is float16, and so is its product with the share.
        extra = (share * semantic).to(score)
        return settings.sfr_temperature * ((1 - share) * score + extra)

    attention = {
        "naclip": (mixed(scores(k, k)) + window).softmax(-1),
        "clearclip": mixed(scores(q, q)).softmax(-1),
        "vanilla": mixed(scores(q, k)).softmax(-1),
        "sclip": mixed(scores(q, q)).softmax(-1) + mixed(scores(k, k)).softmax(-1),
    }[settings.base]
    if settings.rcs:
        plain = [attend(*qkv(tower, block, h[block - 1])[:2]) for block in settings.blocks]
        share = settings.rcs_share
        attention = (1 - share) * attention + share * sum(plain) / len(plain)
        attention = settings.rcs_temperature * attention
    return finish(tower, tower.layers, h[-2], attention, settings.residual)


def resclip_classes(tower: Tower, image: Tensor, texts: Tensor, settings: Residual) -> Tensor:
    """The class of each patch [*grid]: the most frequent label of its pixels after a first pass.

    The first pass has no SFR (and RCS as set); cosines, bilinear to the picture, PAMR,
    softmax(scale x), argmax over texts, 0 where the largest is below temp_thd.
    """
    grid, p = patch_grid(tower, image), tower.patch
    features = project(tower, resclip_pass(tower, image, settings, None))
    maps = resize(cosines(features, texts, grid), (image.shape[1], image.shape[2]))
    sure = (settings.logit_scale * pamr(image, maps, 10, (8, 16))).softmax(0).max(0)
    labels = torch.where(sure.values < settings.temp_thd, 0, sure.indices)
    cells = labels[: grid[0] * p, : grid[1] * p].reshape(grid[0], p, grid[1], p)
    return cells.transpose(1, 2).flatten(2).mode(-1).values


def resclip_matrix(classes: Tensor, settings: Residual) -> Tensor:
    """ResCLIP's SFR matrix [t, t] of patch classes, before it is divided by its largest value.

    1 where two patches agree; with `delete_same_entity` times exp(-d / D) where the straight path
    leaves the class, d Chebyshev, D the largest d, the path looked at in d + 1 points i / D, which
    is its first d / D only. Each row is convolved along the flat index with a Gaussian of 31 taps
    and divided by its sum + 1e-8; CLS row and column are 0.
    """
    h, w = classes.shape
    labels = classes.flatten().tolist()
    n, longest = h * w, max(h, w) - 1
    matrix = torch.zeros(n, n, dtype=torch.float64)
    for a in range(n):
        for b in range(n):
            if labels[a] != labels[b]:
                continue
            dy, dx = b // w - a // w, b % w - a % w
            d = max(abs(dy), abs(dx))
            # Rows and columns of the grid; a half is rounded to the even neighbour.
            path = [
                round(a // w + dy * i / longest) * w + round(a % w + dx * i / longest)
                for i in range(d + 1 if longest else 0)
            ]
            leaves = any(labels[cell] != labels[a] for cell in path)
            damped = settings.delete_same_entity and leaves
            matrix[a, b] = math.exp(-d / longest) if damped else 1.0
    taps = min(31, n - 1 + n % 2)
    places = torch.arange(taps, dtype=torch.float64) - taps // 2
    kernel = torch.exp(-places.square() / (2 * settings.std**2))
    kernel = kernel / kernel.sum()
    smooth = torch.nn.functional.conv1d(matrix[:, None], kernel[None, None], padding=taps // 2)
    smooth = smooth[:, 0] / (smooth[:, 0].sum(-1, keepdim=True) + 1e-8)
    return torch.nn.functional.pad(smooth, (1, 0, 1, 0))


def resclip(tower: Tower, image: Tensor, texts: Tensor, settings: Residual) -> Tensor:
    """ResCLIP: M = the SFR matrix of a first pass, over its largest value, in float16."""
    if not settings.sfr:
        return resclip_pass(tower, image, settings, None)
    classes = resclip_classes(tower, image, texts, settings)
    matrix = resclip_matrix(classes, settings)
    return resclip_pass(tower, image, settings, (matrix / matrix.max()).half())


# --------------------------------------------------------------------------------------------- SFP


def sfp_outliers(tower: Tower, image: Tensor, finder: str) -> Tensor:
    """SFP's outliers: the 10 longest of h_{L-1} (L2), SC-CLIP's (LOF), or SOM from block L-1's map.

    SOM: mean A(q, k) over heads; of the patches that 1.5 x CLS's weight exceeds their own weight
    of, the 10 with the largest weight from CLS.
    """
    x, y = stream(tower, image, "bicubic_offset")[-3:-1]
    if finder == "LOF":
        return scclip_outliers(tower, image)[0]
    if finder == "L2":
        return y[1:].norm(dim=-1).topk(10).indices
    q, k, _ = qkv(tower, tower.layers - 1, x)
    weights = attend(q, k).mean(0)
    from_cls, own = weights[0, 1:], weights.diagonal()[1:]
    candidates = (1.5 * from_cls > own).nonzero().flatten()
    return candidates[from_cls[candidates].argsort(descending=True)[:10]]


def sfp(
    tower: Tower,
    image: Tensor,
    finder: str = "SOM",
    beta: float = 0.4,
    res_cls: float = 0.3,
    pre_adjust: int = 9,
    post_adjust: int = 4,
    multi: tuple[int, int] = (4, 10),
) -> Tensor:
    """SFP, patches only [n, d]: as SC-CLIP, lonely outliers becoming 0 and Z cut at beta before G.

    The first branch's attention is (A(k, k) + A(q, q) + softmax(G)) / 3, the second's softmax(G).
    """
    h, grid = stream(tower, image, "bicubic_offset"), patch_grid(tower, image)
    outliers = sfp_outliers(tower, image, finder)
    z = similarities(repair(h[pre_adjust][1:], outliers, grid, lonely_zero=True))
    z = torch.where(z < beta, 0.0, z)
    g = similarity_attention(z)
    x = aggregate(repair(h[-2][1:], outliers, grid, lonely_zero=True), z, beta)
    q, k, _ = qkv(tower, tower.layers, x)
    mixed = (attend(k, k) + attend(q, q) + g) / 3
    y1 = finish(tower, tower.layers, x, mixed, residual=False) + res_cls * h[-2][0]
    total = torch.stack(h[multi[0] : multi[1] + 1]).sum(0)
    y2 = finish(tower, tower.layers, total[1:], g, residual=False) + res_cls * total[0]
    shallow = similarities(h[post_adjust][1:])
    return aggregate(y1, shallow, beta) + aggregate(y2, shallow, beta)


# ----------------------------------------------------------------------------------------- ITACLIP


def itaclip(
    tower: Tower, image: Tensor, attn_self: bool = True, blocks: tuple[int, ...] = (7, 8, 10)
) -> Tensor:
    """ITACLIP: x_L + O((0.5 B_L + 0.5 mean(B_7, B_8, B_10)) v), B_l = A(q_l, q_l) + A(k_l, k_l).

    Without `attn_self` B_l = A(q_l, k_l).
    """
    h = stream(tower, image, "bicubic_offset")

    def self_map(block: int) -> Tensor:
        q, k, _ = qkv(tower, block, h[block - 1])
        return attend(q, q) + attend(k, k) if attn_self else attend(q, k)

    middle = sum(self_map(block) for block in blocks) / len(blocks)
    attention = (self_map(tower.layers) + middle) / 2
    return h[-2] + finish(tower, tower.layers, h[-2], attention, residual=False)


def blurred(image: Tensor, size: int = 11, sigma: float = 5.0) -> Tensor:
    """A Gaussian blur of size x size taps of a picture [3, h, w] mirrored at its edges."""
    places = torch.arange(size, dtype=torch.float64) - size // 2
    taps = torch.exp(-places.square() / (2 * sigma**2))
    taps = (taps / taps.sum()).to(image)
    wide = torch.nn.functional.pad(image, [size // 2] * 4, mode="reflect")
    across = torch.nn.functional.conv2d(wide[:, None], taps[None, None, None])
    return torch.nn.functional.conv2d(across, taps[None, None, :, None])[:, 0]


def itaclip_logits(tower: Tower, image: Tensor, texts: Tensor, share: float) -> Tensor:
    """ITACLIP's engineered logits [p, h, w]: c pictures + (1 - c) flips, c = `share`.

    Pictures: mean unit feature of the picture, its grey and its blurred copy, times the texts.
    Flips: cosines of both mirrored pictures, bilinear to its size, mirrored back, averaged.
    """
    grid, size = patch_grid(tower, image), (image.shape[1], image.shape[2])

    def features(x: Tensor) -> Tensor:
        return unit(project(tower, itaclip(tower, x))[1:])

    def maps(x: Tensor) -> Tensor:
        return resize((texts @ x.T).reshape(-1, *grid), size)

    grey = (0.2989 * image[0] + 0.587 * image[1] + 0.114 * image[2]).expand(3, -1, -1)
    pictures = (features(image) + features(grey) + features(blurred(image))) / 3
    flips = [maps(features(image.flip(axis))).flip(axis) for axis in (1, 2)]
    return share * maps(pictures) + (1 - share) * (flips[0] + flips[1]) / 2


# ------------------------------------------------------------------------------------------ LeGrad


def legrad(tower: Tower, image: Tensor, texts: Tensor, layer_index: int = -2) -> Tensor:
    """LeGrad's maps [p, h, w] from the blocks `layer_index` on: min-max of the sum of relevances.

    f_l = unit(P(mean of all tokens of h_l)), g = d (f_l . t) / d (attention of block l) through
    that block alone; relevance = mean over heads and query rows of max(g, 0), CLS column dropped,
    bilinear to the picture.
    """
    h = stream(tower, image, "bicubic_antialias")
    grid, size = patch_grid(tower, image), (image.shape[1], image.shape[2])
    total = torch.zeros(len(texts), *size).to(image)
    for block in range(tower.layers + layer_index + 1, tower.layers + 1):
        x = h[block - 1]
        q, k, v = qkv(tower, block, x)
        weights = attend(q, k).requires_grad_()
        y = x + out(tower, block, weights @ v)
        feature = unit(project(tower, (y + mlp(tower, block, y)).mean(0)))
        for i, text in enumerate(texts):
            gradient = torch.autograd.grad(feature @ text, weights, retain_graph=True)[0]
            relevance = gradient.clamp(min=0).mean((0, 1))[1:]
            total[i] += resize(relevance.reshape(grid), size)
    return min_max(total.flatten(1)).reshape(total.shape)


# ------------------------------------------------------------------------- from picture to labels


def padded(image: Tensor, patch: int) -> tuple[Tensor, int, int]:
    """A picture with zeros around it up to whole patches, and the rows above and columns left."""
    down, across = -image.shape[1] % patch, -image.shape[2] % patch
    top, left = down // 2, across // 2
    wide = torch.nn.functional.pad(image, (left, across - left, top, down - top))
    return wide, top, left


def window_starts(size: int, window: int, stride: int) -> list[int]:
    """Where windows begin along an axis: every stride, the last moved back to end at the edge."""
    count = max(size - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride + window, size) - window, 0) for i in range(count)]


def windowed(logits: Callable[[Tensor], Tensor], image: Tensor, window: int, stride: int) -> Tensor:
    """Logits [p, h, w] of a picture: mean of `logits`, drawn at its size, of every window."""
    total, counts = torch.zeros(()).to(image), torch.zeros(image.shape[1:]).to(image)
    for top in window_starts(image.shape[1], window, stride):
        for left in window_starts(image.shape[2], window, stride):
            part = image[:, top : top + window, left : left + window]
            h, w = part.shape[1:]
            right, bottom = image.shape[2] - left - w, image.shape[1] - top - h
            drawn = resize(logits(part), (h, w))
            total = total + torch.nn.functional.pad(drawn, (left, right, top, bottom))
            counts[top : top + h, left : left + w] += 1
    return total / counts


def probabilities(logits: Tensor, classes: list[int], scale: float) -> Tensor:
    """Softmax(scale x) over texts, then the largest of a class: [p, h, w] -> [classes, h, w]."""
    p = (scale * logits).softmax(0)
    members = [[i for i, c in enumerate(classes) if c == k] for k in range(max(classes) + 1)]
    return torch.stack([p[index].max(0).values for index in members])


def without_small_areas(p: Tensor, area_thd: float) -> Tensor:
    """Classes but 0 whose share of the pixels that are not class 0 is <= area_thd get 0."""
    areas = torch.stack([(p.argmax(0) == k).sum() for k in range(1, len(p))])
    large = areas > area_thd * areas.sum()
    return torch.cat([p[:1], p[1:] * large[:, None, None]])


def labelled(p: Tensor, prob_thd: float) -> Tensor:
    """Argmax over classes; below prob_thd -> 0."""
    best = p.max(0)
    return torch.where(best.values < prob_thd, 0, best.indices)


def closed(labels: Tensor) -> Tensor:
    """A 3 x 3 closing of labels [h, w]: the largest, then the smallest neighbour."""
    x = torch.nn.functional.max_pool2d(labels[None].double(), 3, 1, 1)
    return -torch.nn.functional.max_pool2d(-x, 3, 1, 1)[0].long()
