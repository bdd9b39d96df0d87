"""Resampling as products with two small matrices, against PyTorch's own."""

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from gem_lite.method import positions as place
from gem_lite.method.base import Positions

GRIDS = [(9, 9), (3, 17), (1, 1), (30, 2), (14, 7), (7, 8), (28, 28), (64, 97), (1, 9)]


def table(native: tuple[int, int], dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1 + native[0] * native[1], 6, generator=generator, dtype=dtype)


@pytest.mark.parametrize("kind", get_args(Positions))
@pytest.mark.parametrize("native", [(7, 7), (5, 24), (1, 16)])
def test_products_equal_pytorchs(kind: Any, native: tuple[int, int]) -> None:
    """In float64 to its rounding; in float32 PyTorch's own roundings are the difference."""
    for grid in GRIDS:
        double = place.by_products(table(native), native, grid, kind)
        expected = place.resample_positions(table(native), native, grid, kind)
        assert (double - expected).abs().max() <= 1e-12, grid
        single = place.by_products(table(native).float(), native, grid, kind)
        assert single.dtype == torch.float32
        assert (single - expected).abs().max() / expected.abs().max() <= 1e-6, grid  # seen 2e-7


@pytest.mark.parametrize("kind", [kind for kind in get_args(Positions) if "offset" not in kind])
def test_products_on_the_native_grid_change_nothing(kind: Any) -> None:
    positions = table((7, 9), torch.float32)
    assert torch.equal(place.by_products(positions, (7, 9), (7, 9), kind), positions)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_are_resampled_in_float32(dtype: torch.dtype) -> None:
    positions = table((7, 7)).to(dtype)
    found = place.by_products(positions, (7, 7), (9, 4), "bicubic_antialias")
    single = place.by_products(positions.float(), (7, 7), (9, 4), "bicubic_antialias")
    assert found.dtype == dtype and torch.equal(found, single.to(dtype))


class OnMPS(Tensor):
    """Stands in for a tensor on a device without antialiased bicubic."""

    @property
    def device(self) -> Any:  # type: ignore[override]
        return torch.device("mps")

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.interpolate:
            raise NotImplementedError("aten::_upsample_bicubic2d_aa.out on MPS")
        return super().__torch_function__(func, types, args, kwargs)


def test_mps_has_no_antialiased_bicubic(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = table((7, 7), torch.float32)
    to, moved = Tensor.to, []

    def to_mps(self: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if kwargs.get("device") == torch.device("mps"):
            moved.append(kwargs["dtype"])  # such a device has no float64, either
            kwargs = {**kwargs, "device": "cpu"}
        return to(self, *args, **kwargs)

    monkeypatch.setattr(Tensor, "to", to_mps)
    found = place.resample_positions(positions.as_subclass(OnMPS), (7, 7), (28, 20))
    expected = place.resample_positions(positions, (7, 7), (28, 20))
    assert moved == [torch.float32] * 2
    difference = found.as_subclass(Tensor) - expected
    assert difference.abs().max() / expected.abs().max() <= 2e-6
    with pytest.raises(NotImplementedError, match="aa"):
        torch.nn.functional.interpolate(positions.as_subclass(OnMPS), 2)
