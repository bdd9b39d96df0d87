"""When the faster kernels are on: a mode of PyTorch's, and the rule for it.

While `Kernels` is on, `F.linear`, `@` with a matrix and `F.scaled_dot_product_attention` run on
oneDNN wherever a fixed rule says that this pays, so that an edit of the network needs no second
edit here; and functions that the network declares replaceable may be run another way. PyTorch's own
choice for float32 is a BLAS that leaves half of some processors unused, and its fused attention
leaves more. The rule looks at dtype, processor, threads and shape only, never at a clock, so
results repeat. benchmarks/RESULTS.md has the figures.
"""

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .layers import faster
from .products import attention, linear, matmul, processor_has

Setting = Literal["auto", "torch"]
SETTINGS: tuple[Setting, ...] = get_args(Setting)

# Bytes of the largest block that glibc's malloc learns from, itself included.
MALLOC_LEARNS = 32 * 2**20 - 2**14
# Bytes of tokens, one channel of each, in one pass through the image tower; more only need memory.
BYTES_AT_ONCE = 4096


def chosen(setting: str) -> Setting:
    """A user's setting; "onednn" leaves the choice to the rule. Raises ValueError for others."""
    choices = (*SETTINGS, "onednn")
    if setting not in choices:
        raise ValueError(f"kernels is {setting!r}; expected one of {list(choices)}")
    return "torch" if setting == "torch" else "auto"


def kernels(setting: Setting, parameter: Tensor) -> str:
    """The kernels for inference with weights like `parameter`: "onednn" or "torch".

    setting: "auto" = by the rule, "torch" = always PyTorch's own.
    """
    return "onednn" if setting == "auto" and available(parameter) else "torch"


def available(x: Tensor) -> bool:
    """Whether this machine and this PyTorch have faster kernels for x's device and dtype."""
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.bfloat16)
        and bool(torch.backends.mkldnn.enabled)
        and processor_has(x.dtype)
    )


REPLACEMENTS: Mapping[Callable[..., Any], Callable[..., Tensor]] = {
    F.linear: linear,
    torch.matmul: matmul,
    Tensor.matmul: matmul,
    Tensor.__matmul__: matmul,
    F.scaled_dot_product_attention: attention,
}


class Kernels(TorchFunctionMode):
    """While this is on, in this thread, some operators run on faster kernels."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by PyTorch for every operator."""
        if torch.compiler.is_compiling():  # a compiled part: its graph holds PyTorch's operators
            return func(*args, **(kwargs or {}))
        return REPLACEMENTS.get(func, func)(*args, **(kwargs or {}))

    def replace(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Called by functions that are declared replaceable; NotImplemented = run it as written."""
        with torch._C.DisableTorchFunction():
            return faster(function, *args, **kwargs)


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
