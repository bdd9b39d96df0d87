"""Matrix products and attention on oneDNN, a library of matrix kernels that PyTorch carries."""

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

# Attention in blocks pays from this many tokens on, and up to so many threads: with more, one
# block is too little work for all of them.
TOKENS = {torch.float32: 256, torch.bfloat16: 192}
THREADS = 8
# Scores in one block: small enough to stay in the processor's cache.
SCORES = 1 << 20
# Below this, sigmoid(x) and exp(x) differ by less than float32 resolves.
FAR_BELOW = 17.0


def usable(*tensors: Tensor) -> bool:
    """Whether oneDNN's kernels may take these: plain CPU tensors of one dtype that it is fast in.

    Not where something is recorded or transformed: gradients, vmap, torch.compile, subclasses
    such as quantised weights.
    """
    dtype = tensors[0].dtype
    return (
        dtype in TOKENS
        and not torch.compiler.is_compiling()
        and all(_plain(x) and x.dtype == dtype for x in tensors)
        and not torch.is_grad_enabled()
        and forward_ad._current_level < 0
        and bool(torch.backends.mkldnn.enabled)
        and processor_has(dtype)
    )


def _plain(x: Tensor) -> bool:
    return (
        type(x) in (Tensor, nn.Parameter)
        and x.device.type == "cpu"
        and x.layout == torch.strided
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
    )


@cache
def processor_has(dtype: torch.dtype) -> bool:
    """Whether this processor and this PyTorch have the kernels."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or onednn_linear() is None:
        return False
    try:
        return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        return False


@cache
def onednn_linear() -> Callable[..., Tensor] | None:
    """oneDNN's linear layer, the operator that torch.compile calls; None where it is missing."""
    try:
        return torch.ops.mkldnn._linear_pointwise.default
    except (AttributeError, RuntimeError):
        return None


def product(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    then: str = "none",
    algorithm: str | None = None,
) -> Tensor:
    """`then(x @ weight.T + bias)` by oneDNN; weight lies in memory by rows or by columns, dense."""
    run = onednn_linear()
    if run is None:
        raise RuntimeError("this PyTorch has no oneDNN linear layer")
    return run(x, weight, bias, then, [], algorithm)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` on oneDNN. x: [..., d]; weight: [m, d]; bias: [m] -> [..., m].

    The weight is read as it lies. A copy in oneDNN's own layout would save another 3 % and cost
    the tower's size in memory.
    """
    tensors = (x, weight) if bias is None else (x, weight, bias)
    return product(*tensors) if usable(*tensors) else F.linear(x, weight, bias)


def matmul(x: Tensor, other: Tensor) -> Tensor:
    """`x @ other`, on oneDNN where other is a matrix: [..., d] @ [d, m] -> [..., m]."""
    if x.ndim < 2 or other.ndim != 2 or not usable(x, other):
        return torch.matmul(x, other)
    return product(x, other.T)


def pays(x: Tensor) -> bool:
    """Whether attention over so many tokens is faster in blocks. x: [..., n, c]."""
    return x.shape[-2] >= TOKENS[x.dtype] and torch.get_num_threads() <= THREADS


def rows_at_once(n: int) -> int:
    """Rows of n scores each in one block; all blocks have one size."""
    return math.ceil(n / math.ceil(n * n / SCORES))


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """`F.scaled_dot_product_attention`, in blocks of scores that stay in the cache.

    q, k, v: [..., n, c] -> [..., n, c].
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    plain = (
        attn_mask is not None
        or is_causal
        or dropout_p
        or q.ndim != 4
        or not (q.shape == k.shape == v.shape)
        or not usable(q, k, v)
        or not pays(q)
        # In bfloat16 q can be multiplied beforehand by a power of two only.
        or (q.dtype != torch.float32 and math.frexp(factor)[0] != 0.5)
    )
    if plain:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    # Cut out of wider matrices, oneDNN would take its slow reference.
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    q = q if factor == 1 else factor * q
    bounds = _largest_norms(q) * _largest_norms(k)  # [b, h]: no score is larger
    rows = rows_at_once(q.shape[-2])
    images = [
        torch.cat([_attend(*head, rows) for head in zip(*image, strict=True)], dim=-1)
        for image in zip(q, k, v, bounds.tolist(), strict=True)
    ]
    # In memory [b, n, h, c], as the layer after it reads them.
    return torch.stack(images).unflatten(-1, (q.shape[1], q.shape[3])).transpose(1, 2)


def _attend(q: Tensor, k: Tensor, v: Tensor, bound: float, rows: int) -> Tensor:
    """Attention of one head, some rows of scores at a time. q, k, v: [n, c] -> [n, c]."""
    out = []
    for queries in q.split(rows):
        weights = _softmax_without_sums(queries, k, bound)
        out.append(product(weights, v.T).div_(weights.sum(dim=-1, keepdim=True)))
    return torch.cat(out) if len(out) > 1 else out[0]


def _largest_norms(x: Tensor) -> Tensor:
    """The longest of each head's vectors, or a little more: [b, h, n, c] -> [b, h]."""
    norms = torch.linalg.vector_norm(x, dim=-1).amax(dim=-1).float()
    return norms * (1 + torch.finfo(x.dtype).eps)


def _softmax_without_sums(q: Tensor, k: Tensor, bound: float) -> Tensor:
    """exp(q k^T) up to a factor for each row: [rows, c], [n, c] -> [rows, n]; scores <= bound.

    Where scores may be so far apart that a row underflows, it is softmax as usual.
    """
    if 2 * bound + FAR_BELOW < 80.0:
        return exponential(q, k, q.new_full((len(k),), -bound - FAR_BELOW))
    scores = product(q.float(), k.float())
    return torch.softmax(scores, dim=-1, out=scores).to(q.dtype)


def exponential(q: Tensor, k: Tensor, shift: Tensor) -> Tensor:
    """exp(q k^T + shift), where that is at most exp(-17). q: [rows, c]; k: [n, c]; shift: [n].

    oneDNN applies a sigmoid to the scores while they are in registers, and far below zero a
    sigmoid is the exponential: sigmoid(x) = exp(x) / (1 + exp(x)). One pass over the scores is
    saved, and bfloat16 rounds weights only.
    """
    return product(q, k, shift, "sigmoid")
