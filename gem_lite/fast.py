"""Faster kernels beneath the network, for inference on a CPU: the same maths, other operators.

Nothing here knows the model. `Kernels` is a mode of PyTorch's: while it is on, `F.linear`, `@` with
a matrix and `F.scaled_dot_product_attention` run on oneDNN, a library of matrix kernels that
PyTorch carries, wherever a fixed rule says that this pays; so an edit of attention.py or blocks.py
needs no second edit here. PyTorch's own choice for float32 is a BLAS that leaves half of some
processors unused, and its fused attention leaves more. The rule looks at dtype, processor, threads
and shape only, never at a clock, so results repeat. benchmarks/RESULTS.md has the figures.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, wrap_torch_function

Layer = Callable[[Any, Tensor], Tensor]
TOKENWISE: dict[Callable[..., Any], Layer] = {}

Setting = Literal["auto", "torch"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)

# Attention in blocks pays from this many tokens on, and up to so many threads: with more, one
# block is too little work for all of them.
TOKENS = {torch.float32: 256, torch.bfloat16: 192}
THREADS = 8
# Scores in one block: small enough to stay in the processor's cache.
SCORES = 1 << 20
# Tokens that a layer works on together where each stands for itself: in float32 they should stay
# in the cache, in bfloat16 few large products count for more.
TOKENS_TOGETHER = {torch.float32: 200, torch.bfloat16: 1024}
# Bytes of the largest block that glibc's malloc learns from, itself included.
MALLOC_LEARNS = 32 * 2**20 - 2**14
# Bytes of tokens, one channel of each, in one pass through the image tower; more only need memory.
BYTES_AT_ONCE = 4096


def kernels(setting: Setting, parameter: Tensor) -> str:
    """The kernels for inference with weights like `parameter`: "onednn" or "torch".

    setting: "auto" = by the rule, "torch" = always PyTorch's own.
    """
    return "onednn" if setting == "auto" and usable(parameter) else "torch"


def usable(x: Tensor) -> bool:
    """Whether this machine and this PyTorch have faster kernels for x's device and dtype."""
    return (
        x.device.type == "cpu"
        and x.dtype in TOKENS
        and bool(torch.backends.mkldnn.enabled)
        and _processor_has(x.dtype)
    )


@cache
def _processor_has(dtype: torch.dtype) -> bool:
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or _onednn_linear() is None:
        return False
    try:
        return dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):
        return False


@cache
def _onednn_linear() -> Callable[..., Tensor] | None:
    """oneDNN's linear layer, the operator that torch.compile calls; None where it is missing."""
    try:
        return torch.ops.mkldnn._linear_pointwise.default
    except (AttributeError, RuntimeError):
        return None


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` on oneDNN. x: [..., d]; weight: [m, d]; bias: [m] -> [..., m].

    The weight is read as it lies. A copy in oneDNN's own layout would save another 3 % and cost
    the tower's size in memory.
    """
    return _linear(x, weight, bias) if usable(x) else F.linear(x, weight, bias)


def matmul(x: Tensor, other: Tensor) -> Tensor:
    """`x @ other`, on oneDNN where other is a matrix: [..., d] @ [d, m] -> [..., m]."""
    if x.ndim < 2 or other.ndim != 2:
        return torch.matmul(x, other)
    return linear(x, other.T)


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
        or not usable(q)
        or q.shape[-2] < TOKENS[q.dtype]
        or torch.get_num_threads() > THREADS
        # In bfloat16 q can be multiplied beforehand by a power of two only.
        or (q.dtype != torch.float32 and math.frexp(factor)[0] != 0.5)
    )
    if plain:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    n = q.shape[-2]
    # Cut out of wider matrices, oneDNN would take its slow reference.
    q, k = q.contiguous(), k.contiguous()
    q = q if factor == 1 else factor * q
    out = q.new_empty(q.shape)
    bounds = _largest_norms(q) * _largest_norms(k)  # [b, h]: no score is larger
    rows = min(n, max(1, SCORES // n))
    rows = math.ceil(n / math.ceil(n / rows))  # blocks of one size
    for image in zip(q, k, v, bounds.tolist(), out, strict=True):
        for head in zip(*image, strict=True):
            _attend(*head, rows)
    return out


def _attend(q: Tensor, k: Tensor, v: Tensor, bound: float, out: Tensor, rows: int) -> None:
    """Attention of one head, some rows of scores at a time. q, k, v, out: [n, c]."""
    # In bfloat16 PyTorch's own product is oneDNN's; its float32 one is not.
    columns = None if v.dtype == torch.bfloat16 else v.T.contiguous()
    for queries, result in zip(q.split(rows), out.split(rows), strict=True):
        weights = _softmax_without_sums(queries, k, bound)
        sums = weights.sum(dim=-1, keepdim=True)
        if columns is None:
            torch.mm(weights, v, out=result).div_(sums)
        else:
            torch.div(_linear(weights, columns), sums, out=result)


def _largest_norms(x: Tensor) -> Tensor:
    """The longest of each head's vectors, or a little more: [b, h, n, c] -> [b, h]."""
    norms = torch.linalg.vector_norm(x, dim=-1).amax(dim=-1).float()
    return norms * (1 + torch.finfo(x.dtype).eps)


def _softmax_without_sums(q: Tensor, k: Tensor, bound: float) -> Tensor:
    """exp(q k^T) up to a factor for each row: [rows, c], [n, c] -> [rows, n]; scores <= bound.

    oneDNN applies a sigmoid to the scores while they are in registers, and far below zero a
    sigmoid is the exponential: sigmoid(x) = exp(x) / (1 + exp(x)), so that at x <= -17 they differ
    by less than float32 resolves. One pass over the scores is saved, and bfloat16 rounds weights
    only. Where scores may be so far apart that a row underflows, it is softmax as usual.
    """
    shift = bound + 17.0
    if bound + shift < 80.0:
        return _linear(q, k, q.new_full((len(k),), -shift), "sigmoid")
    scores = _linear(q.float(), k.float())
    return torch.softmax(scores, dim=-1, out=scores).to(q.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, then: str = "none") -> Tensor:
    run = _onednn_linear()
    if run is None:
        raise RuntimeError("this PyTorch has no oneDNN linear layer")
    return run(x, weight, bias, then, [], "")


REPLACEMENTS: Mapping[Callable[..., Any], Callable[..., Tensor]] = {
    F.linear: linear,
    torch.matmul: matmul,
    Tensor.matmul: matmul,
    Tensor.__matmul__: matmul,
    F.scaled_dot_product_attention: attention,
}


def tokenwise(layer: Layer) -> Layer:
    """Tells `Kernels` that a layer's forward takes each token by itself.

    It may then be given some of the tokens at a time: x: [b, n, d] -> [b, n, d].
    """
    known: Layer = wrap_torch_function(lambda module, x: (x,))(cast(Any, layer))
    TOKENWISE[known] = layer
    return known


def in_blocks(layer: Layer, module: nn.Module, x: Tensor) -> Tensor:
    """`layer(module, x)`, some tokens at a time, so that little lies between."""
    tokens = x.flatten(0, -2)[None]  # [1, b n, d]
    blocks = [layer(module, some) for some in tokens.split(TOKENS_TOGETHER[x.dtype], dim=1)]
    return torch.cat(blocks, dim=1).view(x.shape)


class Kernels(TorchFunctionMode):
    """While this is on, in this thread, some operators run on the kernels above."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by PyTorch for every operator."""
        if func in TOKENWISE:
            with self:
                return in_blocks(TOKENWISE[func], *args)
        return REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))


def mode(name: str) -> AbstractContextManager[Any]:
    """The context in which the network runs on the named kernels."""
    if name != "onednn":
        return nullcontext()
    keep_freed_memory()
    return Kernels()


@cache
def keep_freed_memory() -> None:
    """Have the C library keep what one layer frees for the next one, up to 64 MiB a thread.

    By default glibc's malloc takes blocks above a threshold from the system and gives them back
    when freed; each return costs page faults, on some virtual machines half the time of a call. It
    raises the threshold to the largest block it has seen freed, 32 MiB at most (mallopt(3),
    M_MMAP_THRESHOLD). So one block is taken and freed, untouched, as any program does that has had
    a large tensor. With another C library, or where the threshold was set, this changes nothing.
    """
    torch.empty(MALLOC_LEARNS, dtype=torch.uint8)


def images_at_once(images: Tensor, patch: int) -> int:
    """How many images [b, 3, h, w] to send through the tower together: as many as pay."""
    tokens = 1 + (images.shape[-2] // patch) * (images.shape[-1] // patch)
    return max(1, BYTES_AT_ONCE // (tokens * images.element_size()))


def watched(module: nn.Module) -> bool:
    """Whether hooks are registered inside, which should see a batch as it was given."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())
