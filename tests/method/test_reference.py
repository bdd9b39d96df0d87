"""The network against the naive reference in reference.py, on small random models.

Everything is computed in float64, where the two may differ by rounding only; the half precisions
are compared with the float64 reference on the same rounded weights and images.
"""

from collections.abc import Mapping

import pytest
import reference
import torch
from rebuild import random_state
from torch import Tensor

from gem_lite.method import heatmap
from gem_lite.method.config import Activation, ImageConfig, ModelConfig, TextConfig
from gem_lite.method.image import ImageFeatures
from gem_lite.method.methods.gem import GEMConfig
from gem_lite.method.model import GEMNetwork

LAYERS = 4
# Tolerances relative to the largest value of the array (maps: absolute), and the largest error
# that this file's cases showed (x86-64 CPU, torch 2.13).
LIMITS = {  #     tolerance, seen
    "features": (1e-13, 1.3e-15),
    "text": (1e-13, 6.2e-16),
    "gradients": (1e-12, 2.5e-15),
    "cosine maps": (1e-13, 6.7e-16),
    "heat maps": (1e-13, 8.9e-16),
    "bf16": (4e-2, 1.4e-2),
    "fp16": (5e-3, 1.7e-3),
}


def config(activation: Activation = "quick_gelu") -> ModelConfig:
    """A model whose every size differs from the others, so that mixed-up axes cannot fit."""
    return ModelConfig(
        embed=10,
        activation=activation,
        image=ImageConfig(size=20, patch=4, width=24, layers=LAYERS, heads=3, mlp_width=40),
        text=TextConfig(context=12, vocab=520, width=16, layers=2, heads=2, mlp_width=36),
    )


def build(
    gem: GEMConfig, *, activation: Activation = "quick_gelu", seed: int = 0
) -> tuple[GEMNetwork, dict[str, Tensor]]:
    """A float64 network and its own weights for the reference."""
    network = GEMNetwork(config(activation), gem).double().eval()
    shapes = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    state = {name: tensor.double() for name, tensor in random_state(shapes, seed).items()}
    network.load_state_dict(state)
    return network, state


def random_images(h: int, w: int, *, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(h * 1000 + w)
    return torch.randn(batch, 3, h, w, generator=generator, dtype=torch.float64)


def naive(
    state: Mapping[str, Tensor],
    images: Tensor,
    gem: GEMConfig,
    activation: Activation = "quick_gelu",
) -> reference.Streams:
    return reference.encode_image(
        state,
        images,
        heads=3,
        activation=activation,
        blocks=gem.blocks,
        iters=gem.iters,
        inv_temp=gem.inv_temp,
        streams=gem.streams,
        residual=gem.residual,
    )


def error(found: Tensor, expected: Tensor, *, relative: bool = True) -> float:
    """Largest difference, by default relative to the largest value expected."""
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach()
    worst = (found - expected).abs().max()
    return float(worst / expected.abs().max() if relative else worst)


def within(limit: str, *errors: float) -> None:
    """Assert that the errors keep to one row of LIMITS (a NaN does not)."""
    tolerance, _ = LIMITS[limit]
    assert all(one <= tolerance for one in errors), (limit, tolerance, errors)


def assert_same_streams(
    found: ImageFeatures, expected: reference.Streams, limit: str = "features"
) -> None:
    assert tuple(found.grid) == expected.grid
    within(limit, error(found.clip, expected.clip), error(found.gem, expected.gem))


TOKENS = torch.tensor(
    [
        [518, 5, 9, 11, 519, 0, 0, 0, 0, 0, 0, 0],
        [518, 517, 3, 3, 40, 260, 511, 2, 7, 8, 9, 519],  # fills the context
        [518, 519, 77, 519, 12, 0, 0, 0, 0, 0, 0, 0],  # the first end of text counts
    ]
)


@pytest.mark.parametrize("inv_temp", [None, 3.0], ids=["adaptive", "fixed"])
@pytest.mark.parametrize("iters", [0, 1, 2, 3])
def test_iterations_and_temperature(iters: int, inv_temp: float | None) -> None:
    gem = GEMConfig(blocks=3, iters=iters, inv_temp=inv_temp)
    network, state = build(gem)
    images = random_images(20, 20)
    assert_same_streams(network.encode_image(images), naive(state, images, gem))


@pytest.mark.parametrize("residual", [True, False], ids=["residual", "replaced"])
@pytest.mark.parametrize("blocks", range(LAYERS + 1))
def test_every_number_of_dual_blocks(blocks: int, residual: bool) -> None:
    gem = GEMConfig(blocks=blocks, residual=residual)
    network, state = build(gem)
    images = random_images(20, 20)
    found = network.encode_image(images)
    assert_same_streams(found, naive(state, images, gem))
    assert torch.equal(found.clip, found.gem) == (blocks == 0)


@pytest.mark.parametrize("streams", ["q", "k", "v", "qk", "qv", "kv", "qkv", "vkq"])
def test_every_subset_of_streams(streams: str) -> None:
    gem = GEMConfig(blocks=2, streams=streams)
    network, state = build(gem)
    images = random_images(20, 20)
    assert_same_streams(network.encode_image(images), naive(state, images, gem))


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_both_activations_in_both_towers(activation: Activation) -> None:
    gem = GEMConfig(blocks=2)
    network, state = build(gem, activation=activation)
    images = random_images(20, 20)
    assert_same_streams(network.encode_image(images), naive(state, images, gem, activation))
    expected = reference.encode_text(state, TOKENS, heads=2, activation=activation)
    within("text", error(network.encode_text(TOKENS), expected))


@pytest.mark.parametrize(
    ("h", "w"),
    [(20, 20), (28, 20), (12, 36), (8, 8), (23, 18), (41, 22), (4, 4), (4, 31)],
)
def test_any_size(h: int, w: int) -> None:
    """Larger, smaller, not square, no multiple of the patch, a single patch."""
    gem = GEMConfig(blocks=2)
    network, state = build(gem)
    images = random_images(h, w)
    found = network.encode_image(images)
    assert tuple(found.grid) == (h // 4, w // 4)
    assert_same_streams(found, naive(state, images, gem))


def test_same_number_of_patches_in_another_shape_is_resampled() -> None:
    """25 patches in a line are not the native 5 x 5, though the counts agree."""
    gem = GEMConfig(blocks=1)
    network, state = build(gem)
    images = random_images(4, 100, batch=1)
    assert_same_streams(network.encode_image(images), naive(state, images, gem))


@pytest.mark.parametrize("tokens", [12, 9, 5])
def test_text_rows_may_be_cut_behind_the_end_token(tokens: int) -> None:
    network, state = build(GEMConfig(blocks=0))
    rows = [row for row in TOKENS if 519 in row[:tokens].tolist()]
    expected = reference.encode_text(state, torch.stack(rows), heads=2, activation="quick_gelu")
    found = network.encode_text(torch.stack(rows)[:, :tokens])
    within("text", error(found, expected))


@pytest.mark.parametrize("batch", [1, 3])
def test_images_of_a_batch_do_not_see_each_other(batch: int) -> None:
    network, _ = build(GEMConfig(blocks=3))
    images = random_images(24, 16, batch=4)
    together = network.encode_image(images)
    apart = [network.encode_image(part) for part in images.split(batch)]
    within("features", error(torch.cat([part.clip for part in apart]), together.clip))
    within("features", error(torch.cat([part.gem for part in apart]), together.gem))


@pytest.mark.parametrize(
    "gem",
    [
        GEMConfig(blocks=3),
        GEMConfig(blocks=LAYERS, iters=3),
        GEMConfig(blocks=2, iters=0, inv_temp=4.0),
        GEMConfig(blocks=2, iters=2, inv_temp=4.0, streams="q"),
        GEMConfig(blocks=3, streams="kv", residual=False),
        GEMConfig(blocks=0),
    ],
    ids=["default", "all-blocks", "iters0", "q", "replaced", "plain"],
)
@pytest.mark.parametrize(("h", "w"), [(20, 20), (27, 16)], ids=["native", "resampled"])
def test_gradients_of_every_parameter_and_of_the_image(gem: GEMConfig, h: int, w: int) -> None:
    network, state = build(gem, activation="gelu")
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in state.items()}
    images = random_images(h, w)

    def loss(features: tuple[Tensor, Tensor], text: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(1)
        total = torch.zeros((), dtype=torch.float64)
        for part in (*features, text):
            weight = torch.randn(part.shape, generator=generator, dtype=torch.float64)
            total = total + (weight * part).sum()
        return total

    mine = images.clone().requires_grad_()
    found = network.encode_image(mine)
    loss((found.clip, found.gem), network.encode_text(TOKENS)).backward()
    theirs = images.clone().requires_grad_()
    expected = naive(leaves, theirs, gem, "gelu")
    text = reference.encode_text(leaves, TOKENS, heads=2, activation="gelu")
    loss((expected.clip, expected.gem), text).backward()

    pairs = {"images": (mine.grad, theirs.grad)}
    for name, parameter in network.named_parameters():
        pairs[name] = (parameter.grad, leaves[name].grad)
    assert set(pairs) == {"images", *state}
    for name, (got, wanted) in pairs.items():
        if name == "logit_scale":
            assert got is None and wanted is None
            continue
        assert got is not None and wanted is not None, name
        assert wanted.abs().max() > 1e-6, name
        within("gradients", error(got, wanted))


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16")], ids=["bf16", "fp16"]
)
@pytest.mark.parametrize(("h", "w"), [(20, 20), (32, 24)], ids=["native", "resampled"])
@pytest.mark.parametrize("inv_temp", [None, 3.0], ids=["adaptive", "fixed"])
def test_half_precisions_stay_near_float64(
    dtype: torch.dtype, limit: str, h: int, w: int, inv_temp: float | None
) -> None:
    gem = GEMConfig(blocks=3, inv_temp=inv_temp)
    network, state = build(gem)
    network = network.to(dtype)
    rounded = {name: tensor.to(dtype).double() for name, tensor in state.items()}
    images = random_images(h, w).to(dtype)
    found = network.encode_image(images)
    assert found.gem.dtype == found.clip.dtype == dtype
    assert_same_streams(found, naive(rounded, images.double(), gem), limit)
    text = network.encode_text(TOKENS)
    assert text.dtype == dtype
    expected = reference.encode_text(rounded, TOKENS, heads=2, activation="quick_gelu")
    within(limit, error(text, expected))


@pytest.mark.parametrize(("h", "w"), [(20, 20), (23, 34), (4, 31)])
def test_maps(h: int, w: int) -> None:
    """Cosine and min-max maps have the picture's size, also where it is no multiple of a patch."""
    gem = GEMConfig(blocks=2)
    network, _ = build(gem)
    images = random_images(h, w)
    features, text = network.encode_image(images), network.encode_text(TOKENS)
    expected = reference.cosine_maps(features.gem, text, features.grid, (h, w))
    patches = features.gem[:, 1:]
    cosine = heatmap.heat_maps(patches, text, features.grid, (h, w), normalize=False)
    within("cosine maps", error(cosine, expected, relative=False))
    heat = heatmap.heat_maps(patches, text, features.grid, (h, w))
    within("heat maps", error(heat, reference.heat_maps(expected), relative=False))


def test_maps_of_each_images_own_prompts() -> None:
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    text = torch.randn(2, 3, 5, generator=generator, dtype=torch.float64)
    found = heatmap.heat_maps(patches, text, (2, 3), (9, 11), normalize=False)
    with_class = torch.cat([torch.zeros(2, 1, 5, dtype=torch.float64), patches], dim=1)
    expected = torch.cat(
        [reference.cosine_maps(with_class[i : i + 1], text[i], (2, 3), (9, 11)) for i in range(2)]
    )
    within("cosine maps", error(found, expected, relative=False))


def test_constant_maps_give_zeros() -> None:
    patches = torch.ones(1, 6, 5)
    text = torch.ones(2, 5)
    heat = heatmap.heat_maps(patches, text, (2, 3), (9, 11))
    assert torch.equal(heat, torch.zeros(1, 2, 9, 11))
