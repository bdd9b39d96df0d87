"""Sliding windows: places, averages and mirrored views, against loops."""

import pytest
import torch
from torch import Tensor

from gem_lite.method.heatmap import similarity, upsample
from gem_lite.method.windows import WindowScores, window_maps, window_scores

IMAGES = torch.randn(2, 3, 23, 31, generator=torch.Generator().manual_seed(0))
TEXT = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))
WINDOWS = [
    ((8, 8), (4, 4)),
    ((8, 12), (8, 12)),  # side by side
    ((7, 9), (3, 5)),
    ((23, 31), (1, 1)),
    ((64, 64), (32, 32)),  # larger than the image
    ((10, 64), (5, 32)),  # in one direction
    ((1, 1), (1, 1)),
]


def per_pixel(part: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Each pixel is a patch, its colours are the features: windows change nothing."""
    return similarity(part.flatten(2).mT, TEXT), (part.shape[-2], part.shape[-1])


def coarse(part: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Four patches a window, which differ from window to window."""
    pooled = torch.nn.functional.adaptive_avg_pool2d(part, (2, 2))
    return similarity(pooled.flatten(2).mT, TEXT), (2, 2)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_windows_change_nothing_when_features_are_per_pixel(
    window: tuple[int, int], stride: tuple[int, int], flip: bool
) -> None:
    found = window_maps(window_scores(per_pixel, IMAGES, window=window, stride=stride, flip=flip))
    expected = similarity(IMAGES.flatten(2).mT, TEXT).unflatten(-1, (23, 31))
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("window", "stride"), WINDOWS)
def test_against_a_loop(window: tuple[int, int], stride: tuple[int, int], flip: bool) -> None:
    """Windows as the field places them: the last one is moved back to the border."""

    def starts(length: int, size: int, step: int) -> list[int]:
        count = max(length - size + step - 1, 0) // step + 1
        return [max(min(i * step + size, length) - size, 0) for i in range(count)]

    total, count = torch.zeros(2, 4, 23, 31), torch.zeros(23, 31)
    for top in starts(23, window[0], stride[0]):
        for left in starts(31, window[1], stride[1]):
            rows, columns = slice(top, top + window[0]), slice(left, left + window[1])
            part = IMAGES[:, :, rows, columns]
            size = (part.shape[-2], part.shape[-1])
            maps = upsample(coarse(part)[0], (2, 2), size)
            if flip:
                other = upsample(coarse(part.flip(-1))[0], (2, 2), size)
                maps = (maps + other.flip(-1)) / 2
            total[:, :, rows, columns] += maps
            count[rows, columns] += 1
    assert count.min() >= 1
    scores = window_scores(coarse, IMAGES, window=window, stride=stride, flip=flip)
    assert isinstance(scores, WindowScores) and scores.size == (23, 31)
    torch.testing.assert_close(window_maps(scores), total / count, rtol=0, atol=2e-6)
    torch.testing.assert_close(window_maps(scores, [2]), (total / count)[:, 2:3], rtol=0, atol=2e-6)


@pytest.mark.parametrize("batch", [1, 2, 7, 1000])
def test_batches_of_windows(batch: int) -> None:
    seen = []

    def counted(part: Tensor) -> tuple[Tensor, tuple[int, int]]:
        seen.append(len(part))
        return coarse(part)

    found = window_scores(counted, IMAGES, window=(8, 8), stride=(4, 4), flip=True, batch=batch)
    assert max(seen) <= batch and sum(seen) == 2 * 2 * len(found.places)
    expected = window_scores(coarse, IMAGES, window=(8, 8), stride=(4, 4), flip=True)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-6)


def test_defaults() -> None:
    """The whole image; half a window as stride."""
    assert window_scores(coarse, IMAGES, window=None).places == ((0, 0),)
    half = window_scores(coarse, IMAGES, window=(9, 8)).places
    assert half == window_scores(coarse, IMAGES, window=(9, 8), stride=(4, 4)).places


def test_gradients_flow_through_windows() -> None:
    images = IMAGES.clone().requires_grad_()
    found = window_scores(per_pixel, images, window=(8, 8), stride=(4, 4))
    window_maps(found).square().sum().backward()
    assert images.grad is not None and images.grad.abs().amax(dim=1).min() > 0


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
        window_scores(coarse, IMAGES, window=window, stride=stride)
