"""The kernels beneath the network: as exact as PyTorch's own."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernels import LARGE, WORDS, needs_onednn, relative, spied
from small import random_images, small_model
from torch import Tensor

from gem_lite.fast import layers, products
from gem_lite.fast import switch as fast
from gem_lite.method.attention import self_self_attention
from gem_lite.method.blocks import MLP
from gem_lite.method.methods.gem import GEMConfig

pytestmark = needs_onednn


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


GEMS = {
    "adaptive": GEMConfig(blocks=2),
    "no refinement": GEMConfig(blocks=2, iters=0),
    "two refinements": GEMConfig(blocks=3, iters=2),
    "temperature 5": GEMConfig(blocks=2, inv_temp=5.0),
    "too hot for one pass": GEMConfig(blocks=2, inv_temp=60.0),
    "values only": GEMConfig(blocks=2, streams="v"),
    "no residual": GEMConfig(blocks=2, residual=False),
    "no dual block": GEMConfig(blocks=0),
}


@pytest.mark.parametrize("size", [LARGE, (40, 40), (8, 8), (8, 2104)])
@pytest.mark.parametrize("gem", list(GEMS))
def test_float32(gem: str, size: tuple[int, int]) -> None:
    model = small_model(GEMS[gem])
    images = random_images(3, *size)
    found, maps = model.encode_image(images), model(images, WORDS)
    model.kernels = "torch"
    expected = model.encode_image(images)
    assert relative(found.clip, expected.clip) < 5e-6
    assert relative(found.gem, expected.gem) < 5e-6
    assert relative(found.class_embedding, expected.class_embedding) < 5e-6
    assert float((maps - model(images, WORDS)).abs().max()) < 1e-4


@pytest.mark.parametrize("size", [LARGE, (40, 40), (8, 8)])
@pytest.mark.parametrize("gem", list(GEMS))
def test_bfloat16(gem: str, size: tuple[int, int]) -> None:
    """As near to float32 as PyTorch's own bfloat16 is, or within the tolerance for maps."""
    model = small_model(GEMS[gem])
    images = random_images(2, *size)
    model.kernels = "torch"
    exact = model(images, WORDS, normalize=False)
    model.bfloat16()
    plain = model(images, WORDS, normalize=False)
    model.kernels = "auto"
    assert model.kernels == "onednn"
    found = model(images, WORDS, normalize=False)
    error, usual = (float((maps - exact).abs().max()) for maps in (found, plain))
    assert error < max(2e-2, 1.5 * usual)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 30.0])
@pytest.mark.parametrize(("n", "scale"), [(256, None), (301, 1.0), (1100, 0.5)])
def test_attention(
    dtype: torch.dtype,
    spread: float,
    n: int,
    scale: float | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(products, "SCORES", 100_000)  # several blocks, the last one smaller
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, n, 16, generator=generator).mul(spread).to(dtype)
    asked = spied(monkeypatch)
    found = products.attention(q, k, v, scale=scale)
    assert asked
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=scale)
    plain = F.scaled_dot_product_attention(q, k, v, scale=scale)
    assert relative(found, expected) < max(3 * relative(plain, expected), 5e-6)


def test_scores_far_apart_take_the_ordinary_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spied(monkeypatch)
    x = F.normalize(torch.randn(1, 1, 300, 16), dim=-1)
    products.attention(5 * x, x, x, scale=1.0)
    assert "sigmoid" in asked
    asked.clear()
    products.attention(90 * x, x, x, scale=1.0)
    assert asked and "sigmoid" not in asked


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stays_visible(value: float) -> None:
    q = torch.randn(1, 1, 300, 16)
    q[0, 0, 7] = value
    found = products.attention(q, q, q)
    assert not bool(found.isfinite().all())


@pytest.mark.parametrize(
    "changes",
    [
        {"is_causal": True},
        {"attn_mask": torch.zeros(300, 300)},
        {"dropout_p": 1.0},
        {"attn_mask": torch.ones(300, 300, dtype=torch.bool).tril()},
    ],
)
def test_other_attention_is_pytorchs(changes: dict[str, Any]) -> None:
    q, k, v = torch.randn(3, 1, 2, 300, 16)
    with fast.Kernels():
        found = F.scaled_dot_product_attention(q, k, v, **changes)
    assert torch.equal(found, F.scaled_dot_product_attention(q, k, v, **changes))


def test_bfloat16_keeps_its_scale_exact() -> None:
    q, k, v = torch.randn(3, 1, 2, 300, 16, dtype=torch.bfloat16)
    found = products.attention(q, k, v, scale=0.3)
    assert torch.equal(found, F.scaled_dot_product_attention(q, k, v, scale=0.3))


@pytest.mark.parametrize("shape", [(3, 5), (7, 3, 5), (2, 7, 3, 5), (0, 5), (5,)])
def test_linear_of_any_shape(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(shape), torch.randn(4, 5), torch.randn(4)
    with fast.Kernels():
        results = [F.linear(x, weight, bias), F.linear(x, weight), x @ weight.T]
    expected = [F.linear(x, weight, bias), F.linear(x, weight), x @ weight.T]
    for found, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_texts_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short texts are encoded together, long ones apart, and each as if it were alone."""
    monkeypatch.setattr("gem_lite.prompts.TOKENS_AT_ONCE", 40)
    model = small_model()
    words = ["cat", " ".join(["dog"] * 15), "a bee", "x" * 30, "cat sat", "zebra", "cat"]
    found = model.encode_text(words)[0]
    for word, embedding in zip(words, found, strict=True):
        model.clear_text_cache()
        torch.testing.assert_close(embedding, model.encode_text([word])[0, 0], rtol=0, atol=2e-6)


def test_results_repeat() -> None:
    model = small_model()
    images = random_images(2, *LARGE)
    assert torch.equal(model(images, WORDS), model(images, WORDS))


# ---- whole layers


def read(
    streams: Tensor, v: Tensor, inv_temp: Tensor | float, iters: int
) -> tuple[Tensor, Tensor, Tensor]:
    """By the faster way, as written, and as written in float64."""
    found = layers.self_self_attention(streams, v, inv_temp, iters=iters)
    plain = self_self_attention(streams, v, inv_temp, iters=iters)
    exact_temp = inv_temp.double() if isinstance(inv_temp, Tensor) else inv_temp
    exact = self_self_attention(streams.double(), v.double(), exact_temp, iters=iters)
    return found, plain, exact


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_self_self_attention(
    seed: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Random shapes, streams, temperatures and iterations, with and without symmetric blocks."""
    generator = torch.Generator().manual_seed(seed)

    def one_of(*values: int) -> int:
        return values[int(torch.randint(len(values), (1,), generator=generator))]

    monkeypatch.setattr(layers, "SYMMETRIC", one_of(1, 10_000))
    monkeypatch.setattr(layers, "ROWS", one_of(64, 100, 4000))
    monkeypatch.setattr(products, "SCORES", one_of(20_000, 1 << 20))
    s, b, h, c = one_of(1, 2, 3), one_of(1, 3), one_of(1, 2), one_of(8, 20, 64)
    n = int(torch.randint(256, 500, (1,), generator=generator))
    streams = torch.randn(s, b, h, n, c, generator=generator).to(dtype)
    v = torch.randn(b, n, h, c, generator=generator).to(dtype).transpose(1, 2)
    inv_temp: Tensor | float = 0.5 + 9 * torch.rand(b, 1, 1, 1, generator=generator).to(dtype)
    if seed % 3 == 0:
        inv_temp = 4.0
    found, plain, exact = read(streams, v, inv_temp, iters=one_of(0, 1, 3))
    limit = 3e-6 if dtype == torch.float32 else 2e-2
    assert relative(found, exact) < max(limit, 1.5 * relative(plain, exact))


EXTREMES: dict[str, Tensor] = {
    "equal": torch.ones(1, 300, 16),
    "two kinds": torch.eye(2, 16).repeat_interleave(150, dim=0)[None],
    "opposite": torch.cat([torch.ones(1, 150, 16), -torch.ones(1, 150, 16)], dim=1),
    "zeros": torch.zeros(1, 300, 16),
    "some zeros": torch.cat([torch.zeros(1, 40, 16), torch.eye(16).repeat(1, 20, 1)], dim=1),
    "tiny": 1e-30 * torch.ones(1, 300, 16),
    "huge": 1e15 * torch.eye(16).repeat(1, 20, 1),
}


@pytest.mark.parametrize("inv_temp", [0.0, 1e-3, 1.0, 100.0, 1000.0])
@pytest.mark.parametrize("symmetric", [1, 10_000])
@pytest.mark.parametrize("what", list(EXTREMES))
def test_extreme_tokens(
    what: str, symmetric: int, inv_temp: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the whole path: where the faster way gives up, the plain form is run."""
    monkeypatch.setattr(layers, "SYMMETRIC", symmetric)
    streams = EXTREMES[what].expand(3, 2, 1, -1, -1).clone()
    v = torch.randn(2, 1, *streams.shape[3:], generator=torch.Generator().manual_seed(0))
    with fast.Kernels():
        found = self_self_attention(streams, v, inv_temp, iters=1)
    expected = self_self_attention(streams.double(), v.double(), inv_temp, iters=1)
    assert float((found - expected).abs().max()) < 3e-6


@pytest.mark.parametrize("inv_temp", [None, 100.0])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_images(value: float, inv_temp: float | None) -> None:
    model = small_model(GEMConfig(blocks=2, inv_temp=inv_temp))
    images = torch.full((2, 3, *LARGE), value)
    found = model.encode_image(images)
    model.kernels = "torch"
    expected = model.encode_image(images)
    assert relative(found.gem, expected.gem) < 5e-6
    assert relative(found.clip, expected.clip) < 5e-6


@pytest.mark.parametrize("size", [(8, 8), (8, 16)])
def test_one_and_two_tokens(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few for blocks to pay; computed in blocks all the same, they are as exact."""
    monkeypatch.setattr(layers, "pays", lambda x: True)
    model = small_model()
    images = random_images(2, *size)
    found = model.encode_image(images)
    model.kernels = "torch"
    assert relative(found.gem, model.encode_image(images).gem) < 5e-6


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("between", [10_000, 16 * 2**20])
def test_mlp(
    activation: Any,
    spread: float,
    dtype: torch.dtype,
    between: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole and in pieces of a few tokens."""
    monkeypatch.setattr(layers, "BYTES_BETWEEN", between)
    torch.manual_seed(0)
    module = MLP(48, 200, activation).to(dtype)
    x = (spread * torch.randn(2, 50, 48)).to(dtype)
    found = layers.mlp(module, x)
    plain = module(x)
    exact = module.double()(x.double())
    limit = 2e-6 if dtype == torch.float32 else 1e-2
    assert relative(found, exact) < max(limit, 2 * relative(plain, exact))
