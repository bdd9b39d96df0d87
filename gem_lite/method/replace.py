"""Where a faster way may stand in for a function of the network, without this folder knowing it."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

import torch
from torch.overrides import _get_current_function_mode

Function = TypeVar("Function", bound=Callable[..., Any])


def replaceable(function: Function) -> Function:
    """The function itself, unless a PyTorch mode is on that has a `replace` for it.

    A mode is on in one thread only. It is given the function and the arguments, and answers
    NotImplemented for a function whose code it does not know, which is then run as written.
    """

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not torch.compiler.is_compiling():
            replace = getattr(_get_current_function_mode(), "replace", None)
            if replace is not None:
                result = replace(function, *args, **kwargs)
                if result is not NotImplemented:
                    return result
        return function(*args, **kwargs)

    return cast(Function, call)
