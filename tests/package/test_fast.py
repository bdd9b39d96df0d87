"""The kernels beneath the network: as exact as PyTorch's own, and used where they may be."""

import copy
import platform
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gem_lite import fast
from gem_lite.method import attention
from gem_lite.method.blocks import MLP
from gem_lite.method.methods.gem import GEMConfig
from gem_lite.predictor import GEMPredictor
from tests.small import CONFIG, random_images, small_model

WORDS = ["cat", "a remote control of an old television", "dog"]
# 17 x 19 patches and the class token, more than the blocks' smallest size; a part patch is left.
LARGE = (136, 155)

needs_onednn = pytest.mark.skipif(
    not fast.usable(torch.zeros(1)), reason="this processor has no faster kernels"
)
pytestmark = needs_onednn


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())


def spied(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What follows each linear layer that oneDNN is asked for."""
    asked = []
    real = fast._linear

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None = None, then: str = "none") -> Tensor:
        asked.append(then)
        return real(x, weight, bias, then)

    monkeypatch.setattr(fast, "_linear", spy)
    return asked


# ---- as exact

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
    monkeypatch.setattr(fast, "SCORES", 100_000)  # several blocks, the last one smaller
    generator = torch.Generator().manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, n, 16, generator=generator).mul(spread).to(dtype)
    asked = spied(monkeypatch)
    found = fast.attention(q, k, v, scale=scale)
    assert asked
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=scale)
    plain = F.scaled_dot_product_attention(q, k, v, scale=scale)
    assert relative(found, expected) < max(3 * relative(plain, expected), 5e-6)


def test_scores_far_apart_take_the_ordinary_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spied(monkeypatch)
    x = F.normalize(torch.randn(1, 1, 300, 16), dim=-1)
    fast.attention(5 * x, x, x, scale=1.0)
    assert "sigmoid" in asked
    asked.clear()
    fast.attention(90 * x, x, x, scale=1.0)
    assert asked and "sigmoid" not in asked


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_stays_visible(value: float) -> None:
    q = torch.randn(1, 1, 300, 16)
    q[0, 0, 7] = value
    found = fast.attention(q, q, q)
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
    found = fast.attention(q, k, v, scale=0.3)
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
    monkeypatch.setattr("gem_lite.predictor.TOKENS_AT_ONCE", 40)
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


# ---- where they may be


def test_they_are_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spied(monkeypatch)
    model = small_model()
    assert model.kernels == "onednn"
    assert "kernels='onednn'" in repr(model)
    model.encode_image(random_images(1, *LARGE))
    assert {"none", "sigmoid"} <= set(asked)
    asked.clear()
    model.encode_text(WORDS)
    assert asked


def test_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spied(monkeypatch)
    model = small_model()
    model.kernels = "torch"
    assert model.kernels == "torch" and "kernels='torch'" in repr(model)
    images = random_images(1, *LARGE)
    found = model.encode_image(images)
    assert torch.equal(found.gem, model.network.encode_image(images).gem[:, 1:])
    model.encode_text(WORDS)
    assert not asked


def test_bad_setting() -> None:
    with pytest.raises(ValueError, match=r"kernels is 'fastest'; expected one of \['auto'"):
        small_model().kernels = "fastest"


def call(model: GEMPredictor) -> None:
    model(random_images(1, *LARGE), WORDS)


def test_not_with_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spied(monkeypatch)
    model = small_model()
    with torch.enable_grad():
        model(random_images(1, *LARGE), WORDS).sum().backward()
    assert not asked
    assert model.network.visual.conv1.weight.grad is not None


def test_not_in_training(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spied(monkeypatch)
    model = small_model().train()
    call(model)
    assert not asked
    assert len(model._texts) == 0


def test_not_under_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spied(monkeypatch)
    model = small_model()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = model.encode_text(WORDS)
    assert not asked
    assert not torch.equal(rounded, model.encode_text(WORDS))  # nor is what was rounded kept


def test_not_where_the_host_program_forbids_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spied(monkeypatch)
    model = small_model()
    with torch.backends.mkldnn.flags(enabled=False):
        assert model.kernels == "torch"
        call(model)
    assert not asked


def test_not_in_float64() -> None:
    model = small_model().double()
    assert model.kernels == "torch"
    assert model(random_images(1, *LARGE).double(), WORDS).isfinite().all()


@pytest.mark.parametrize("missing", ["operator", "processor"])
def test_not_where_something_is_missing(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fast._processor_has.cache_clear()
    if missing == "operator":
        monkeypatch.setattr(fast, "_onednn_linear", lambda: None)
    else:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    try:
        model = small_model()
        assert model.kernels == "torch"
        call(model)
    finally:
        fast._processor_has.cache_clear()


def test_many_threads_take_pytorchs_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 64)
    q, k, v = torch.randn(3, 1, 2, 300, 16)
    assert torch.equal(fast.attention(q, k, v), F.scaled_dot_product_attention(q, k, v))


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_tracing_records_the_plain_operators() -> None:
    model = small_model()
    model.requires_grad_(False)
    images = random_images(1, *LARGE)

    class Features(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor) -> Tensor:
            return self.model.encode_image(x).gem

    traced = torch.jit.trace(Features(), images, check_trace=False)
    assert "_linear_pointwise" not in str(traced.inlined_graph)


@pytest.mark.parametrize("grad", [False, True])
def test_the_network_compiles_without_a_break(grad: bool) -> None:
    model = small_model()
    images = random_images(1, *LARGE)
    compiled = torch.compile(model.network.visual, backend="eager", fullgraph=True)
    with torch.set_grad_enabled(grad):
        found = compiled(images)
    assert relative(found.gem.detach(), model.network.encode_image(images).gem) < 5e-6


# ---- nothing stale, nothing left behind


def edit_in_place(model: GEMPredictor) -> None:
    for parameter in model.network.visual.parameters():
        parameter.mul_(1.1)


def edit_data(model: GEMPredictor) -> None:
    for parameter in model.network.visual.parameters():
        parameter.data.mul_(1.1)


def load_others(model: GEMPredictor) -> None:
    model.network.load_state_dict(small_model(seed=1).network.state_dict())


def assign_others(model: GEMPredictor) -> None:
    model.network.load_state_dict(small_model(seed=1).network.state_dict(), assign=True)


def there_and_back(model: GEMPredictor) -> None:
    model.to(torch.bfloat16).to(torch.float32)


@pytest.mark.parametrize(
    "change", [edit_in_place, edit_data, load_others, assign_others, there_and_back]
)
def test_weights_that_change(change: Callable[[GEMPredictor], None]) -> None:
    model = small_model()
    images = random_images(1, *LARGE)
    before = model.encode_image(images).gem
    change(model)
    found = model.encode_image(images).gem
    assert not torch.equal(found, before)
    model.kernels = "torch"
    assert relative(found, model.encode_image(images).gem) < 5e-6


def test_an_edit_of_the_method_reaches_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of attention.py is written a second time for speed."""

    def edited(streams: Tensor, v: Tensor, inv_temp: Any, *, iters: int) -> Tensor:
        return v

    model = small_model()
    images = random_images(1, *LARGE)
    before = model.encode_image(images).gem
    monkeypatch.setattr(attention, "self_self_attention", edited)
    found = model.encode_image(images).gem
    assert relative(found, before) > 1e-2
    model.kernels = "torch"
    assert relative(found, model.encode_image(images).gem) < 5e-6


def test_the_mode_ends_with_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    call(model)
    monkeypatch.setattr(MLP, "forward", lambda self, x: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        call(model)
    asked = spied(monkeypatch)
    F.linear(torch.randn(300, 16), torch.randn(16, 16))
    assert not asked


def test_settings_of_the_host_program_stay() -> None:
    def settings() -> tuple[Any, ...]:
        return (
            torch.get_num_threads(),
            torch.get_default_dtype(),
            torch.get_float32_matmul_precision(),
            bool(torch.backends.mkldnn.enabled),
            torch.backends.mkldnn.deterministic,
            torch.are_deterministic_algorithms_enabled(),
        )

    before = settings()
    call(small_model())
    assert settings() == before


# Page faults of calls that need six blocks of 8 MiB each, after a first one.
FAULTS = """
import resource, sys, torch
from gem_lite import fast
if sys.argv[1] == "kept":
    fast.mode("onednn")
seen = []
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.empty(2**21).fill_(1.0) for _ in range(6)]
    del blocks
    seen.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sum(seen[1:]))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="what glibc's malloc does")
def test_freed_memory_is_kept() -> None:
    def faults(how: str) -> int:
        command = [sys.executable, "-c", FAULTS, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    pages = 6 * 2**23 // 4096  # of one call
    assert faults("kept") < 0.8 * pages < faults("given back")


def test_hooks_see_the_batch_as_it_was_given() -> None:
    model = small_model()
    images = random_images(5, 320, 320)
    assert fast.images_at_once(images, CONFIG.image.patch) < 5
    apart = model.encode_image(images)
    seen = []
    handle = model.network.visual.ln_post.register_forward_hook(
        lambda module, inputs, output: seen.append(len(output))
    )
    together = model.encode_image(images)
    handle.remove()
    assert seen == [5, 5]  # once for each stream
    assert relative(apart.gem, together.gem) < 5e-6


def test_copies_keep_the_setting() -> None:
    model = small_model()
    model.kernels = "torch"
    assert copy.deepcopy(model).kernels == "torch"
