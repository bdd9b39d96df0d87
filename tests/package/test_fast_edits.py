"""What a researcher does to the network, done under the faster kernels: it runs as written."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernels import LARGE, needs_onednn, relative, spied
from small import CONFIG, random_images, small_model, tracing
from torch import Tensor, nn

from gem_lite.fast import forms, layers, products
from gem_lite.fast import switch as fast
from gem_lite.method import attention, blocks
from gem_lite.method.methods.gem import GEMConfig
from gem_lite.method.replace import replaceable
from gem_lite.predictor import GEMPredictor

pytestmark = needs_onednn
TOKENS = 1 + (LARGE[0] // 8) * (LARGE[1] // 8)


@pytest.fixture(autouse=True)
def _no_grad() -> Any:
    with torch.no_grad():
        yield


def mlps(model: GEMPredictor) -> list[Any]:
    return [block.mlp for block in model.network.visual.transformer.resblocks]  # type: ignore[union-attr]


def as_written(model: GEMPredictor, before: Tensor | None) -> None:
    """The kernels change nothing; the edit did, if `before` is given."""
    images = random_images(2, *LARGE)
    found = model.encode_image(images)
    model.kernels = "torch"
    expected = model.encode_image(images)
    model.kernels = "auto"
    assert relative(found.gem, expected.gem) < 2e-6
    assert relative(found.clip, expected.clip) < 2e-6
    if before is not None:
        assert relative(found.clip, before) > 1e-3


@pytest.fixture
def model() -> GEMPredictor:
    return small_model()


@pytest.fixture
def before(model: GEMPredictor) -> Tensor:
    return model.encode_image(random_images(2, *LARGE)).clip


# ---- the forms


@pytest.mark.parametrize(
    ("ours", "form"),
    [
        (attention.self_self_attention, forms.self_self_attention),
        (blocks.MLP.forward, forms.MLP.forward),
        (blocks.QuickGELU.forward, forms.QuickGELU.forward),
        (blocks.GELU.forward, forms.GELU.forward),
    ],
)
def test_the_forms_are_those_of_the_method(ours: Any, form: Any) -> None:
    """An edit of method/ runs as written, but at PyTorch's speed in that place.

    If the edit shall stay: make the same one in fast/forms.py, and in fast/layers.py what it
    means. Or leave this test out, with the forms.
    """
    assert layers.same(getattr(ours, "__wrapped__", ours), form)


def other_name(self: Any, x: Tensor) -> Tensor:
    return self.c_proj(self.act(self.c_out(x)))


def other_order(self: Any, x: Tensor) -> Tensor:
    return self.c_proj(self.c_fc(self.act(x)))


def other_factor(self: Any, x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.7 * x)


def with_default(self: Any, x: Tensor = torch.ones(1)) -> Tensor:
    return self.c_proj(self.act(self.c_fc(x)))


@pytest.mark.parametrize("edited", [other_name, other_order, other_factor, with_default, F.gelu])
@pytest.mark.parametrize("form", [forms.MLP.forward, forms.QuickGELU.forward])
def test_other_code_is_not_the_form(edited: Any, form: Any) -> None:
    assert not layers.same(edited, form)


def test_other_names_are_not_the_form() -> None:
    """The same letters, with another module under one of the names."""

    class Other:
        sigmoid = torch.tanh

    code = blocks.QuickGELU.forward.__code__
    edited = type(other_factor)(code, {**blocks.QuickGELU.forward.__globals__, "torch": Other})
    assert layers.same(type(other_factor)(code, blocks.QuickGELU.forward.__globals__), code_of())
    assert not layers.same(edited, code_of())


def code_of() -> Any:
    return forms.QuickGELU.forward


# ---- the MLP


def test_the_faster_mlp_is_in_use(model: GEMPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = spied(monkeypatch)
    model.encode_image(random_images(1, *LARGE))
    assert asked.count("swish") == CONFIG.image.layers


def test_edited_mlp(model: GEMPredictor, before: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edit in place, which mixes the tokens."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = x - x.mean(dim=1, keepdim=True)
        return self.c_proj(self.act(self.c_fc(x)))

    for edited in (replaceable(forward), forward):
        monkeypatch.setattr(blocks.MLP, "forward", edited)
        as_written(model, before)


class Centred(blocks.MLP):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=1, keepdim=True))


class Gated(blocks.MLP):
    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(
            self.act(self.c_fc(x)) * torch.sigmoid(x.mean(dim=1, keepdim=True)[..., :1])
        )


@pytest.mark.parametrize("subclass", [Centred, Gated])
def test_subclassed_mlp(subclass: type, model: GEMPredictor, before: Tensor) -> None:
    for mlp in mlps(model):
        mlp.__class__ = subclass
    as_written(model, before)


class LoudLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 1.5 * super().forward(x)


class Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x


def another_activation(mlp: Any) -> None:
    mlp.act = nn.ReLU()


def exact_gelu(mlp: Any) -> None:
    mlp.act = blocks.GELU()


def patched_activation(mlp: Any) -> None:
    mlp.act.forward = torch.relu


def patched_forward(mlp: Any) -> None:
    mlp.forward = torch.tanh


def another_linear(mlp: Any) -> None:
    mlp.c_fc.__class__ = LoudLinear


def one_more_layer(mlp: Any) -> None:
    mlp.c_fc = nn.Sequential(mlp.c_fc, Half())


def without_bias(mlp: Any) -> None:
    mlp.c_proj.bias = None


def parametrised(mlp: Any) -> None:
    nn.utils.parametrize.register_parametrization(mlp.c_fc, "weight", Half())


@pytest.mark.parametrize(
    "edit",
    [
        another_activation,
        exact_gelu,
        patched_activation,
        patched_forward,
        another_linear,
        one_more_layer,
        without_bias,
        parametrised,
    ],
)
def test_replaced_parts(edit: Callable[[Any], None], model: GEMPredictor, before: Tensor) -> None:
    for mlp in mlps(model):
        edit(mlp)
    as_written(model, before)


def test_replaced_mlp(model: GEMPredictor, before: Tensor) -> None:
    for block in model.network.visual.transformer.resblocks:
        block.mlp = nn.Tanh()
    as_written(model, before)


@pytest.mark.parametrize(("part", "width"), [("", 48), ("c_fc", 56), ("act", 56), ("c_proj", 48)])
@pytest.mark.parametrize("kind", ["after", "before", "everywhere"])
def test_hooks_see_whole_batches(part: str, width: int, kind: str, model: GEMPredictor) -> None:
    """And what a hook changes is changed."""
    module = mlps(model)[0].get_submodule(part)
    images = random_images(2, *LARGE)
    plain = model.encode_image(images).clip
    seen = []

    def after(called: nn.Module, inputs: Any, output: Tensor) -> Any:
        if called is module:
            seen.append(tuple(output.shape))
            return 2 * output
        return None

    def before(called: nn.Module, inputs: Any) -> Any:
        seen.append(tuple(inputs[0].shape[:-1]) + (width,))
        return (2 * inputs[0],)

    if kind == "after":
        handle = module.register_forward_hook(after)
    elif kind == "before":
        handle = module.register_forward_pre_hook(before)
    else:
        handle = nn.modules.module.register_module_forward_hook(after)
    try:
        as_written(model, plain)
    finally:
        handle.remove()
    assert set(seen) == {(2, TOKENS, width)}


# ---- self-self attention


def test_the_faster_attention_is_in_use(
    model: GEMPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = layers.self_self_attention
    monkeypatch.setattr(
        layers, "self_self_attention", lambda *a, **k: calls.append(1) or real(*a, **k)
    )
    model.encode_image(random_images(1, *LARGE))
    assert len(calls) == 2  # dual blocks


def doubled_temperature(
    streams: Tensor, v: Tensor, inv_temp: Tensor | float, *, iters: int, **_: Any
) -> Tensor:
    s = streams.shape[0]
    x = F.normalize(streams.flatten(0, 1), dim=-1)
    out = F.scaled_dot_product_attention(x, x, v.repeat(s, 1, 1, 1), scale=30.0)
    return out.unflatten(0, (s, -1)).mean(dim=0)


def with_bias(
    streams: Tensor, v: Tensor, inv_temp: Tensor | float, *, iters: int, **_: Any
) -> Tensor:
    x = F.normalize(streams, dim=-1)
    places = torch.arange(x.shape[-2])
    bias = -0.1 * (places[:, None] - places).abs()
    return ((inv_temp * x @ x.mT + bias).softmax(dim=-1) @ v).mean(dim=0)


@pytest.mark.parametrize("edited", [doubled_temperature, with_bias])
@pytest.mark.parametrize("declare", [True, False])
def test_edited_attention(edited: Any, declare: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model(GEMConfig(blocks=2, inv_temp=5.0))
    images = random_images(2, *LARGE)
    before = model.encode_image(images).gem
    if declare:
        edited = replaceable(edited)
    monkeypatch.setattr(attention, "self_self_attention", edited)
    found = model.encode_image(images).gem
    assert relative(found, before) > 1e-3
    model.kernels = "torch"
    assert relative(found, model.encode_image(images).gem) < 2e-6


def test_code_exchanged_in_place() -> None:
    """As autoreload in a notebook does."""

    def edited(self: Any, x: Tensor) -> Tensor:
        return x * torch.sigmoid(3.0 * x)

    model = small_model()
    images = random_images(2, *LARGE)
    before = model.encode_image(images).clip
    real = blocks.QuickGELU.forward.__code__
    try:
        blocks.QuickGELU.forward.__code__ = edited.__code__
        as_written(model, before)
    finally:
        blocks.QuickGELU.forward.__code__ = real


# ---- what is compiled, transformed, or no plain tensor


def compiled_tower(model: GEMPredictor, backend: Any) -> Any:
    model.network.visual = torch.compile(model.network.visual, backend=backend)  # type: ignore[assignment]


def compiled_in_place(model: GEMPredictor, backend: Any) -> None:
    model.network.visual.compile(backend=backend)


def compiled_parts(model: GEMPredictor, backend: Any) -> None:
    for block in model.network.visual.transformer.resblocks:
        block.mlp = torch.compile(block.mlp, backend=backend)


def compiled_forward(model: GEMPredictor, backend: Any) -> None:
    visual = model.network.visual
    visual.forward = torch.compile(visual.forward, backend=backend)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    "compile_", [compiled_tower, compiled_in_place, compiled_parts, compiled_forward]
)
def test_compiled_parts(compile_: Callable[[GEMPredictor, Any], None]) -> None:
    """One graph without a break, of PyTorch's operators, and compiled once."""
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(str(graph.graph))
        return graph.forward

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = small_model(GEMConfig(blocks=1), layers=2)
    images = random_images(1, *LARGE)
    expected = model.encode_image(images).gem
    compile_(model, backend)
    for _ in range(3):
        assert relative(model.encode_image(images).gem, expected) < 5e-6
    assert len(graphs) == 1
    assert "_linear_pointwise" not in graphs[0]
    assert not torch._dynamo.utils.counters["graph_break"]


@tracing
def test_the_whole_model_compiled() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model = small_model(GEMConfig(blocks=1), layers=2)
    images, text = random_images(1, *LARGE), torch.randn(2, CONFIG.embed)
    expected = model(images, text)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert float((compiled(images, text) - expected).abs().max()) < 1e-4


class Tagged(Tensor):
    """As quantised weights are: a subclass that answers for itself."""

    asked = 0

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear:
            cls.asked += 1
        return super().__torch_function__(func, types, args, kwargs or {})


def test_weight_subclasses_answer_for_themselves(model: GEMPredictor) -> None:
    for mlp in mlps(model):
        weight = mlp.c_fc.weight.detach().as_subclass(Tagged)
        del mlp.c_fc.weight
        mlp.c_fc.weight = weight
    images = random_images(1, *LARGE)
    asked = []
    for kernels in ("auto", "torch"):
        model.kernels = kernels
        Tagged.asked = 0
        model.encode_image(images)
        asked.append(Tagged.asked)
    assert asked[0] == asked[1] > 0
    as_written(model, None)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_layer_of_another_dtype(dtype: torch.dtype, model: GEMPredictor) -> None:
    class Cast(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner.to(dtype)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x.to(dtype)).float()

    for block in model.network.visual.transformer.resblocks:
        block.mlp = Cast(block.mlp)
    images = random_images(2, *LARGE)
    found = model.encode_image(images).gem
    model.kernels = "torch"
    limit = 2e-6 if dtype == torch.float64 else 2e-2
    assert relative(found, model.encode_image(images).gem) < limit


def test_mixed_dtypes_raise_as_ever() -> None:
    x, weight = torch.randn(300, 16), torch.randn(16, 16, dtype=torch.bfloat16)
    with pytest.raises(RuntimeError, match="dtype"):
        products.linear(x, weight)


def test_under_vmap(model: GEMPredictor) -> None:
    images = random_images(3, *LARGE)
    expected = model.network.encode_image(images).gem

    def gem(image: Tensor) -> Tensor:
        return model.encode_image(image[None]).gem[0]

    assert relative(torch.vmap(gem)(images), expected[:, 1:]) < 5e-6


def test_under_forward_gradients(model: GEMPredictor) -> None:
    mlp, x = mlps(model)[0], torch.randn(1, 300, 48)
    _, expected = torch.func.jvp(mlp, (x,), (torch.ones_like(x),))
    with fast.Kernels():
        _, found = torch.func.jvp(mlp, (x,), (torch.ones_like(x),))
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
            other = torch.autograd.forward_ad.unpack_dual(mlp(dual)).tangent
    assert torch.equal(found, expected)
    assert torch.equal(other, expected)
