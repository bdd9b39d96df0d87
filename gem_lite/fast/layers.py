"""Faster ways through whole layers, for as long as their code is what `forms.py` holds."""

import math
from collections.abc import Callable
from functools import cache
from types import CodeType, FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as registry

from . import forms
from .products import FAR_BELOW, exponential, pays, product, rows_at_once, usable

# From so many tokens on, half of the symmetric scores and a copy are less work than all of them.
SYMMETRIC = 1500
# Rows of such scores at once.
ROWS = 400
# Bytes between an MLP's two layers at once: malloc keeps blocks of up to 32 MiB for the next layer.
BYTES_BETWEEN = 16 * 2**20


def faster(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What `function` returns, by a faster way; NotImplemented where there is none."""
    if same(function, forms.self_self_attention):
        return self_self_attention(*args, **kwargs)
    if same(function, forms.MLP.forward) and len(args) == 2 and not kwargs:
        return mlp(*args)
    return NotImplemented


def same(function: Any, form: Any) -> bool:
    """Whether two functions have the same code, and mean the same by the names in it."""
    if not isinstance(function, FunctionType) or function.__closure__:
        return False
    if not _same_code(function.__code__, form.__code__):
        return False
    ours, theirs = form.__globals__, function.__globals__
    return (
        function.__defaults__ == form.__defaults__
        and function.__kwdefaults__ == form.__kwdefaults__
        and all(ours.get(name) is theirs.get(name) for name in _names(form.__code__) & {*ours})
    )


@cache
def _same_code(code: CodeType, form: CodeType) -> bool:
    """Line numbers, comments and docstrings aside."""
    facts = ("co_code", "co_names", "co_varnames", "co_freevars", "co_cellvars", "co_flags")
    if any(getattr(code, fact) != getattr(form, fact) for fact in facts):
        return False
    if len(code.co_consts) != len(form.co_consts):
        return False
    pairs = list(zip(code.co_consts, form.co_consts, strict=True))
    if isinstance(code.co_consts[0], str) and isinstance(form.co_consts[0], str):
        pairs = pairs[1:]  # docstrings
    return all(
        _same_code(a, b) if isinstance(a, CodeType) and isinstance(b, CodeType) else (a == b)
        for a, b in pairs
    )


@cache
def _names(code: CodeType) -> frozenset[str]:
    inner = [each for each in code.co_consts if isinstance(each, CodeType)]
    return frozenset(code.co_names).union(*map(_names, inner))


def mlp(module: Any, x: Tensor) -> Tensor:
    """c_proj(act(c_fc(x))), the activation applied while its argument is in registers."""
    fc, act, proj = module.c_fc, module.act, module.c_proj
    if not (type(fc) is type(proj) is nn.Linear and as_defined(fc, act, proj)):
        return NotImplemented
    if fc.bias is None or proj.bias is None or x.ndim < 2:
        return NotImplemented
    if not usable(x, fc.weight, fc.bias, proj.weight, proj.bias):
        return NotImplemented
    if same(type(act).forward, forms.GELU.forward):
        run = _gelu_mlp
    elif same(type(act).forward, forms.QuickGELU.forward):
        run = _quick_gelu_mlp
    else:
        return NotImplemented
    tokens = x.flatten(0, -2)  # [b n, d]
    pieces = max(1, math.ceil(len(tokens) * fc.out_features * x.element_size() / BYTES_BETWEEN))
    out = [run(fc, proj, part) for part in tokens.split(math.ceil(len(tokens) / pieces) or 1)]
    return (torch.cat(out) if len(out) > 1 else out[0]).view(*x.shape[:-1], proj.out_features)


def _gelu_mlp(fc: nn.Linear, proj: nn.Linear, x: Tensor) -> Tensor:
    return product(product(x, fc.weight, fc.bias, "gelu", "none"), proj.weight, proj.bias)


def _quick_gelu_mlp(fc: nn.Linear, proj: nn.Linear, x: Tensor) -> Tensor:
    """QuickGELU is x sigmoid(a x); oneDNN has x sigmoid(x), so a factor goes before and after."""
    hidden = product(1.702 * x, fc.weight, 1.702 * fc.bias, "swish")
    out = product(hidden, proj.weight)
    return torch.add(proj.bias, out, alpha=1 / 1.702, out=out)


GLOBAL_HOOKS = ("forward", "forward_pre", "backward", "backward_pre")


def as_defined(*modules: nn.Module) -> bool:
    """Whether calling these runs their class's forward and nothing else."""
    if any(getattr(registry, f"_global_{kind}_hooks") for kind in GLOBAL_HOOKS):
        return False
    return not any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
        or type(module).__call__ is not nn.Module.__call__
        or module._compiled_call_impl is not None
        for module in modules
    )


def self_self_attention(
    streams: Tensor,
    v: Tensor,
    inv_temp: Tensor | float,
    *,
    iters: int,
    grid: tuple[int, int] | None = None,
) -> Tensor:
    """GEM's attention with less arithmetic; see method/attention.py for what it computes.

    A refined stream is normalised at once, so that softmax's sums cancel; no score is larger than
    inv_temp, so that one shift fits all; and the mean over streams of A v is (mean of A) v.
    """
    if not usable(streams, v) or not pays(v):
        return NotImplemented
    b, h, _, c = v.shape
    temps = inv_temp.flatten().tolist() if isinstance(inv_temp, Tensor) else [inv_temp] * b
    x, v = F.normalize(streams, dim=-1), v.contiguous()
    heads = [
        _of_one_head(x[:, j, k], v[j, k], temps[j], iters=iters) for j in range(b) for k in range(h)
    ]
    images = [torch.cat(heads[j * h : (j + 1) * h], dim=-1) for j in range(b)]  # [n, h c]
    out = torch.stack(images)
    if not math.isfinite(float(out.sum())):
        return NotImplemented
    # In memory [b, n, h, c], as the layer after it reads them.
    return out.unflatten(-1, (h, c)).transpose(1, 2)


def _of_one_head(x: Tensor, v: Tensor, temp: float, *, iters: int) -> Tensor:
    """x: [s, n, c], normalised; v: [n, c] -> [n, c]."""
    shift = v.new_full((len(v),), -temp - FAR_BELOW)
    streams = list(x)
    for _ in range(iters):
        refined = [_refined(stream, temp, shift) for stream in streams]
        streams = [
            stream.div_(torch.linalg.vector_norm(stream, dim=-1, keepdim=True))
            for stream in refined
        ]
    return _read(streams, v, temp, shift)


def _refined(x: Tensor, temp: float, shift: Tensor) -> Tensor:
    """softmax(temp x x^T) x up to a factor of each row. x: [n, c] -> [n, c]."""
    n, scaled = len(x), temp * x
    if n < SYMMETRIC:
        rows = rows_at_once(n)
        out = [product(exponential(part, x, shift), x.T) for part in scaled.split(rows)]
        return torch.cat(out) if len(out) > 1 else out[0]
    total = torch.zeros_like(x)
    for start in range(0, n, ROWS):
        end = min(n, start + ROWS)
        weights = exponential(scaled[start:end], x[start:], shift[start:])  # [rows, n - start]
        total[start:end] += product(weights, x[start:].T)
        if end < n:  # what lies below the diagonal is what lies above it
            total[end:].addmm_(weights[:, end - start :].T, x[start:end])
    return total


def _read(streams: list[Tensor], v: Tensor, temp: float, shift: Tensor) -> Tensor:
    """Mean over streams of softmax(temp x x^T) v. streams: [n, c] each; v: [n, c] -> [n, c]."""
    rows = rows_at_once(len(v))
    out = []
    for start in range(0, len(v), rows):
        mean: Tensor | None = None
        for x in streams:
            weights = exponential(temp * x[start : start + rows], x, shift)
            sums = weights.sum(dim=-1, keepdim=True)
            mean = weights.div_(sums) if mean is None else mean.addcdiv_(weights, sums)
        assert mean is not None
        out.append(product(mean, v.T).div_(len(streams)))
    return torch.cat(out) if len(out) > 1 else out[0]
