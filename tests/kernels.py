"""What the tests of the faster kernels share."""

from typing import Any

import pytest
import torch
from torch import Tensor

from gem_lite.fast import products
from gem_lite.fast import switch as fast

WORDS = ["cat", "a remote control of an old television", "dog"]
# 17 x 19 patches and the class token, more than the blocks' smallest size; a part patch is left.
LARGE = (136, 155)

needs_onednn = pytest.mark.skipif(
    not fast.available(torch.zeros(1)), reason="this processor has no faster kernels"
)


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What follows each linear layer that oneDNN is asked for."""
    asked = []
    real = products.onednn_linear()
    assert real is not None

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None, then: str, *more: Any) -> Tensor:
        asked.append(then)
        return real(x, weight, bias, then, *more)

    monkeypatch.setattr(products, "onednn_linear", lambda: spy)
    return asked
