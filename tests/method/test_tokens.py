"""Outliers where rounding could decide: tokens that are nearly alike, and scores that tie."""

import pytest
import torch

from gem_lite.method.tokens import outlier_scores, outliers


def test_tokens_that_are_nearly_alike() -> None:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    spread = torch.logspace(-4, -2, 80)[:, None]  # of tokens whose norm is about 5
    x = 0.5 * noise(1, 96) + spread * noise(80, 96)
    x[:8] += 0.3 * noise(8, 96)  # a thing in front of it
    exact = x.double()
    squares = (exact[:, None] - exact[None]).square().sum(dim=-1)
    order = squares.argsort(dim=1)[:, 1:31]  # without the token itself
    reach = squares.gather(1, order)[:, -1]
    expected = (reach[:, None] / reach[order]).mean(dim=1)
    scores = outlier_scores(x[None])[0]
    assert scores.dtype == torch.float32
    assert ((scores - expected) / expected).abs().max() <= 1e-5


@pytest.mark.parametrize(("count", "expected"), [(12, 0), (25, 2)])
def test_the_two_farthest_apart_tie(count: int, expected: int) -> None:
    """All are neighbours: the farthest two share the highest score, of 12 also the quantile."""
    x = torch.randn(200, count, 48, generator=torch.Generator().manual_seed(0))
    assert outliers(x).sum(dim=1).tolist() == [expected] * 200
