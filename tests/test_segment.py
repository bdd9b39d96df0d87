"""Label maps and sliding windows, against loops over pixels."""

import math

import pytest
import torch
from torch import Tensor

from gem_lite.segment import BACKGROUND, label_maps, sliding_window


def cosines(names: int, *, batch: int = 2, h: int = 4, w: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.4 * torch.rand(batch, names, h, w, generator=generator)


def naive(
    maps: Tensor, groups: list[int], classes: int, scale: float, threshold: float | None
) -> tuple[list[int], list[list[float]]]:
    """Pixel by pixel, in row order: labels, and the probabilities of the classes."""
    labels, probabilities = [], []
    for image in maps.tolist():
        for y in range(maps.shape[2]):
            for x in range(maps.shape[3]):
                best = [-math.inf] * (max(groups) + 1)
                for name, group in enumerate(groups):
                    best[group] = max(best[group], image[name][y][x])
                weights = [math.exp(scale * (one - max(best))) for one in best]
                chances = [weight / sum(weights) for weight in weights]
                winner = chances.index(max(chances))
                unsure = threshold is not None and chances[winner] < threshold
                labels.append(-1 if unsure or winner >= classes else winner)
                probabilities.append(chances[:classes])
    return labels, probabilities


@pytest.mark.parametrize("threshold", [None, 0.0, 0.55, 0.9, 1.0])
@pytest.mark.parametrize(
    ("groups", "classes"),
    [
        ([0, 1, 2, 3, 4, 5], 6),
        ([0, 0, 1, 1, 1, 2], 3),  # synonyms
        ([1, 0, 2, 0, 1, 1], 3),  # in any order
        ([0, 1, 2, 3, 4, 5], 4),  # two background words
        ([0, 0, 1, 2, 3, 3], 2),
        ([0, 0, 0, 0, 0, 0], 1),
    ],
)
def test_against_loops(groups: list[int], classes: int, threshold: float | None) -> None:
    maps = cosines(6)
    found = label_maps(maps, groups=groups, classes=classes, scale=20.0, threshold=threshold)
    labels, probabilities = naive(maps, groups, classes, 20.0, threshold)
    assert found.labels.dtype == torch.int64 and found.labels.shape == (2, 4, 5)
    assert found.labels.flatten().tolist() == labels
    assert found.probabilities.shape == (2, classes, 4, 5)
    expected = torch.tensor(probabilities).reshape(2, 4, 5, classes).movedim(-1, 1)
    torch.testing.assert_close(found.probabilities, expected, rtol=0, atol=1e-6)


def test_the_cases_above_show_both_labels_and_background() -> None:
    labels, _ = naive(cosines(6), [0, 1, 2, 3, 4, 5], 4, 20.0, 0.55)
    assert set(labels) == {-1, 0, 1, 2, 3}


def test_defaults() -> None:
    """One class a name, no background, scale 50."""
    maps = cosines(3)
    found = label_maps(maps)
    assert torch.equal(found.labels, maps.argmax(dim=1))
    torch.testing.assert_close(found.probabilities, (50 * maps).softmax(dim=1))
    assert BACKGROUND == -1


def test_a_probability_at_the_threshold_is_kept() -> None:
    maps = torch.zeros(1, 2, 1, 1)  # two classes, one half each
    assert label_maps(maps, threshold=0.5).labels.item() == 0
    assert label_maps(maps, threshold=0.5001).labels.item() == -1


def test_a_background_word_beats_by_its_own_score_only() -> None:
    """Two background words do not add up: the best single name wins."""
    maps = torch.tensor([0.20, 0.19, 0.19]).reshape(1, 3, 1, 1)
    found = label_maps(maps, classes=1, scale=50.0)
    assert found.labels.item() == 0
    assert found.probabilities.item() < 0.5
    assert label_maps(maps.flip(1), classes=1).labels.item() == -1


def test_scale_changes_what_the_threshold_leaves() -> None:
    maps = cosines(4)
    kept = [int((label_maps(maps, scale=s, threshold=0.6).labels >= 0).sum()) for s in (1, 20, 500)]
    assert kept[0] == 0 and kept[0] < kept[1] < kept[2]


def test_the_input_is_left_alone_and_gradients_flow() -> None:
    maps = cosines(3).requires_grad_()
    given = maps.detach().clone()
    label_maps(maps, threshold=0.5).probabilities[:, 0].sum().backward()
    assert torch.equal(maps, given)
    assert maps.grad is not None and maps.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": 0.0}, r"scale is 0\.0; expected a number above 0"),
        ({"scale": -5}, "scale is -5"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": float("inf")}, "scale is inf"),
        ({"threshold": 1.5}, r"threshold is 1\.5; expected a probability in \[0, 1\]"),
        ({"threshold": -0.1}, r"threshold is -0\.1"),
        ({"groups": [0, 1]}, "2 groups for 3 maps"),
        ({"groups": [0, 2, 2]}, r"groups is \[0, 2, 2\]; expected 0, 1, 2, "),
        ({"groups": [0, 1, -1]}, r"groups is \[0, 1, -1\]"),
    ],
)
def test_bad_input(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_maps(cosines(3), **changes)  # type: ignore[arg-type]


# ---- sliding windows

IMAGES = torch.randn(2, 3, 23, 31, generator=torch.Generator().manual_seed(0))
WINDOWS = [
    ((8, 8), (4, 4)),
    ((8, 12), (8, 12)),  # side by side
    ((7, 9), (3, 5)),
    ((23, 31), (1, 1)),
    ((64, 64), (32, 32)),  # larger than the image
    ((10, 64), (5, 32)),  # in one direction
    ((1, 1), (1, 1)),
]


def per_pixel(part: Tensor) -> Tensor:
    """A score that looks at one pixel only, so that windows change nothing."""
    return torch.stack([part.sum(dim=1), part[:, 0] * part[:, 1]], dim=1)


@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_windows_change_nothing_when_the_score_is_per_pixel(
    window: tuple[int, int], stride: tuple[int, int]
) -> None:
    found = sliding_window(per_pixel, IMAGES, window=window, stride=stride)
    torch.testing.assert_close(found, per_pixel(IMAGES), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_windows_cover_every_pixel_and_are_averaged(
    window: tuple[int, int], stride: tuple[int, int]
) -> None:
    """Every window scores its number; a pixel must get the mean over the windows that hold it."""
    number = 0

    def score(part: Tensor) -> Tensor:
        nonlocal number
        number += 1
        assert part.shape[-2:] == (min(window[0], 23), min(window[1], 31))
        return torch.full((len(part), 1, *part.shape[-2:]), float(number))

    found = sliding_window(score, IMAGES, window=window, stride=stride)

    def starts(length: int, side: int, step: int) -> list[int]:
        places = [0]
        while places[-1] + side < length:
            places.append(min(places[-1] + step, length - side))
        return places

    total, count, windows = torch.zeros(23, 31), torch.zeros(23, 31), 0
    for top in starts(23, window[0], stride[0]):
        for left in starts(31, window[1], stride[1]):
            windows += 1
            total[top : top + window[0], left : left + window[1]] += windows
            count[top : top + window[0], left : left + window[1]] += 1
    assert number == windows
    assert count.min() >= 1
    torch.testing.assert_close(found, (total / count).expand(2, 1, 23, 31))


def test_the_last_window_ends_at_the_border() -> None:
    """Its pixels come from the image's last rows and columns, not from a smaller window."""
    corners = []

    def score(part: Tensor) -> Tensor:
        assert part.shape == (2, 3, 8, 8)
        corners.append(part[0, 0, -1, -1])
        return part[:, :1]

    sliding_window(score, IMAGES, window=(8, 8), stride=(8, 8))
    assert len(corners) == 3 * 4
    assert corners[-1] == IMAGES[0, 0, -1, -1]


def test_half_scores_are_averaged_in_float32() -> None:
    found = sliding_window(
        lambda part: part[:, :1].half(), IMAGES.half(), window=(8, 8), stride=(2, 2)
    )
    assert found.dtype == torch.float32


def test_gradients_flow_through_windows() -> None:
    images = IMAGES.clone().requires_grad_()
    sliding_window(per_pixel, images, window=(8, 8), stride=(4, 4)).sum().backward()
    assert images.grad is not None and images.grad.abs().min() > 0


@pytest.mark.parametrize(
    ("window", "stride", "message"),
    [
        ((0, 8), (4, 4), r"window is \(0, 8\); expected two positive"),
        ((8, 8), (4, 0), r"stride is \(4, 0\); expected two positive"),
        ((8, 8), (9, 8), "larger than window.*skipped"),
        ((8, 8), (8, 9), "larger than window.*skipped"),
    ],
)
def test_windows_that_cannot_be(
    window: tuple[int, int], stride: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sliding_window(per_pixel, IMAGES, window=window, stride=stride)
