"""The pure functions from features to heat maps, each against loops or a formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from gem_lite.method.heatmap import heat_maps, min_max, similarity, upsample


def draw(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator)


# ---- similarity


@pytest.mark.parametrize("own_prompts", [False, True])
def test_similarity_is_the_cosine(own_prompts: bool) -> None:
    features = 3 * draw(2, 5, 7)
    text = draw(2, 4, 7, seed=1) if own_prompts else draw(4, 7, seed=1)
    found = similarity(features, text)
    assert found.shape == (2, 4, 5)
    for b in range(2):
        for p in range(4):
            for n in range(5):
                one, other = features[b, n], (text[b] if own_prompts else text)[p]
                expected = float(one @ other) / math.sqrt(float(one @ one) * float(other @ other))
                assert abs(float(found[b, p, n]) - expected) < 1e-6


def test_similarity_does_not_depend_on_length() -> None:
    features, text = draw(2, 5, 7), draw(4, 7)
    scaled = similarity(features * 1e3, text * 1e-3)
    torch.testing.assert_close(scaled, similarity(features, text), rtol=0, atol=1e-6)


def test_a_direction_with_itself_is_one_and_nothing_is_zero() -> None:
    features = torch.stack([torch.ones(4), -torch.ones(4), torch.zeros(4)])[None]
    assert similarity(features, torch.ones(1, 4)).tolist() == [[[1, -1, 0]]]


@pytest.mark.parametrize(
    ("features", "text", "expected"),
    [
        (torch.float16, torch.float16, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float32, torch.float64, torch.float64),
        (torch.float64, torch.float32, torch.float64),
        (torch.float64, torch.float16, torch.float64),
    ],
    ids=str,
)
def test_dtypes_meet_in_the_wider_one(
    features: torch.dtype, text: torch.dtype, expected: torch.dtype
) -> None:
    one, other = draw(1, 3, 8).to(features), draw(2, 8).to(text)
    found = similarity(one, other)
    assert found.dtype == expected
    exact = similarity(one.double(), other.double())
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-6)


def test_half_features_whose_norm_overflows_half() -> None:
    features = torch.full((1, 2, 64), 60000.0).half()
    torch.testing.assert_close(similarity(features, torch.ones(1, 64)), torch.ones(1, 1, 2))


# ---- upsampling


@pytest.mark.parametrize(
    ("grid", "size"), [((2, 3), (9, 14)), ((4, 1), (7, 5)), ((5, 6), (5, 6)), ((6, 5), (3, 2))]
)
def test_upsampling_is_bilinear_between_patch_centres(
    grid: tuple[int, int], size: tuple[int, int]
) -> None:
    scores = draw(2, 3, grid[0] * grid[1])
    found = upsample(scores, grid, size)
    assert found.shape == (2, 3, *size)
    small = scores.reshape(2, 3, *grid)  # row by row

    def neighbours(place: int, old: int, new: int) -> tuple[int, int, float]:
        centre = max((place + 0.5) * old / new - 0.5, 0)
        low = min(int(centre), old - 1)
        return low, min(low + 1, old - 1), centre - low

    for y in range(size[0]):
        top, bottom, down = neighbours(y, grid[0], size[0])
        for x in range(size[1]):
            left, right, across = neighbours(x, grid[1], size[1])
            above = (1 - across) * small[..., top, left] + across * small[..., top, right]
            below = (1 - across) * small[..., bottom, left] + across * small[..., bottom, right]
            expected = (1 - down) * above + down * below
            torch.testing.assert_close(found[..., y, x], expected, rtol=0, atol=1e-6)


# ---- min-max


def test_every_map_is_stretched_by_itself() -> None:
    maps = draw(2, 3, 5, 6) * torch.tensor([1e-3, 1.0, 50.0])[:, None, None] + 7
    found = min_max(maps)
    for b in range(2):
        for p in range(3):
            one = maps[b, p]
            expected = (one - one.min()) / (one.max() - one.min())
            assert torch.equal(found[b, p], expected)
            assert found[b, p].min() == 0 and found[b, p].max() == 1


@pytest.mark.parametrize("value", [0.0, 1.0, -0.3, 1e-30, 1e30])
def test_constant_maps_are_zeros(value: float) -> None:
    assert torch.equal(min_max(torch.full((2, 1, 4, 5), value)), torch.zeros(2, 1, 4, 5))


def test_a_constant_map_does_not_touch_the_others() -> None:
    maps = draw(1, 2, 3, 3)
    maps[0, 0] = 0.25
    found = min_max(maps)
    assert torch.equal(found[0, 0], torch.zeros(3, 3))
    assert torch.equal(found[0, 1], min_max(maps[0, 1]))


@pytest.mark.parametrize("size", [(7, 9), (33, 41), (448, 448)])
def test_roundings_of_a_constant_are_not_blown_up(size: tuple[int, int]) -> None:
    """Bilinear weights add up to one but for a rounding, so constants come out nearly so."""
    values = torch.tensor([0.1, 0.237, -0.3, 1 / 3]).reshape(1, 4, 1).expand(1, 4, 14 * 14)
    maps = upsample(values, (14, 14), size)
    assert torch.equal(min_max(maps), torch.zeros(1, 4, *size))


def test_small_differences_are_kept() -> None:
    """A map that is no constant is stretched, also when its range is far smaller than its level."""
    maps = torch.tensor([[0.25, 0.25 + 1e-5], [0.25, 0.25]])
    assert min_max(maps).tolist() == [[0, 1], [0, 0]]


def test_gradients_of_constant_maps_are_finite() -> None:
    maps = torch.zeros(2, 1, 3, 3)
    maps[1] = draw(1, 3, 3)
    maps.requires_grad_()
    (min_max(maps) ** 2).sum().backward()
    assert maps.grad is not None and maps.grad.isfinite().all()
    assert maps.grad[0].abs().max() == 0 and maps.grad[1].abs().max() > 0


# ---- all of it


@pytest.mark.parametrize("own_prompts", [False, True])
def test_heat_maps_are_the_three_steps(own_prompts: bool) -> None:
    features = draw(2, 6, 8)
    text = draw(2, 5, 8, seed=1) if own_prompts else draw(5, 8, seed=1)
    cosine = heat_maps(features, text, (2, 3), (16, 24), normalize=False)
    expected = F.interpolate(
        similarity(features, text).reshape(2, 5, 2, 3), (16, 24), mode="bilinear"
    )
    assert torch.equal(cosine, expected)
    assert cosine.abs().max() <= 1
    assert torch.equal(heat_maps(features, text, (2, 3), (16, 24)), min_max(expected))


def test_inputs_are_left_alone() -> None:
    features, text = draw(1, 6, 8), draw(5, 8)
    given = features.clone(), text.clone()
    heat_maps(features, text, (2, 3), (4, 6))
    assert torch.equal(features, given[0]) and torch.equal(text, given[1])
    maps = draw(2, 3, 4)
    before = maps.clone()
    min_max(maps)
    assert torch.equal(maps, before)
