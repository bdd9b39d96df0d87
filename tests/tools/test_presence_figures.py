"""The AUC of presence: on known scores, by counting pairs, and from the command."""

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_quality import to_tensor
from test_scenes import COLOURS, plain_sprites
from torch import Tensor

from gem_lite.method.presence import NEUTRAL
from gem_lite.tools.cli import main
from gem_lite.tools.quality.presence import (
    SCORES,
    asked,
    auc,
    auc_interval,
    presence_figures,
    presence_report,
)
from gem_lite.tools.quality.scenes import scenes

COLLAGES = list(scenes(plain_sprites(), seed=5, count=20, jitter=0.0))


def counted(scores: Any, there: Any) -> float:
    pairs = [(a > b) + (a == b) / 2 for a in scores[there] for b in scores[~there]]
    return float(np.mean(pairs))


def test_auc_counts_pairs() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 9, (12, 7)).astype(np.float32)  # with equals
    there = rng.random((12, 7)) < 0.3
    assert auc(scores, there) == pytest.approx(counted(scores, there))
    # A picture that counts twice is the picture twice, one that counts nothing is not there.
    times = np.array([0, 2, *[1] * 10])
    twice = np.repeat(np.arange(12), times)
    assert auc(scores, there, times) == pytest.approx(counted(scores[twice], there[twice]))
    assert auc(there.astype(np.float32), there) == 1.0
    assert auc(-there.astype(np.float32), there) == 0.0
    assert auc(0 * scores, there) == 0.5


@pytest.mark.parametrize("value", [True, False])
def test_auc_of_one_kind_only(value: bool) -> None:
    assert np.isnan(auc(np.zeros((2, 2), np.float32), np.full((2, 2), value)))


def test_the_interval_covers_what_is_true() -> None:
    """Normal scores, one apart: AUC is Phi(1 / sqrt 2) = 0.760, in most of the intervals."""
    covered = 0
    for seed in range(12):
        rng = np.random.default_rng(seed)
        there = rng.random((60, 8)) < 0.4
        scores = (rng.standard_normal((60, 8)) + there).astype(np.float32)
        value, low, high = auc_interval(scores, there)
        assert low < value < high and high - low < 0.2
        covered += low < 0.7602 < high
    assert covered >= 9


class Seer:
    """Stands in for a model: its patches are the colours, its words the colours that they name."""

    def encode_text(self, words: list[str]) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        text = torch.zeros(1, len(words), 8)
        for index, word in enumerate(words):
            if word in COLOURS:
                text[0, index, list(COLOURS).index(word)] = 1.0
            else:
                text[0, index, 4:] = torch.rand(4, generator=generator)
        return text

    def encode_image(self, images: Tensor) -> Any:
        pixels = images.flatten(2).transpose(1, 2)  # [b, n, 3]
        colours = torch.tensor(list(COLOURS.values())).float()
        near = (torch.cdist(pixels, colours) < 4).float()
        patches = torch.cat([near, torch.full((*near.shape[:2], 4), 0.1)], dim=-1)
        return SimpleNamespace(gem=patches, class_embedding=patches.amax(dim=1))


def test_who_sees_everything() -> None:
    model: Any = Seer()
    scores, there = asked(model, COLLAGES, list(COLOURS), to_tensor)
    assert list(scores) == list(SCORES) and there.shape == (20, 4)
    assert all((each.sum() == len(scene.names)) for each, scene in zip(there, COLLAGES))  # noqa: B905
    for name, each in scores.items():
        assert auc(each, there) == 1.0, name
    assert scores["presence"][there].min() > 0.5 > scores["presence"][~there].max()
    assert not set(NEUTRAL) & set(COLOURS)


def test_figures_and_their_table() -> None:
    model: Any = Seer()
    steps: list[tuple[int, int, str]] = []
    columns = presence_figures(
        model, to_tensor, plain_sprites(), count=6, advance=lambda *step: steps.append(step)
    )
    assert steps == [(0, 6, "trained styles"), (6, 6, "trained styles")]
    table = presence_report(columns).splitlines()
    assert table[0] == "| AUC in % | trained styles |"
    assert "| presence | 100.0 |" in table
    assert "| presence above 0.5 where not there | 0.0 |" in table


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["bench-quality", "--count", "4", "--presence"]
    assert main(base) == 0
    table = capsys.readouterr().out
    assert main([*base, "--json"]) == 0
    columns = json.loads(capsys.readouterr().out)["figures"]
    assert list(columns) == ["trained styles", "unseen style"]
    for column in columns.values():
        value, low, high = column["presence"]
        assert 0.5 < low <= value <= high <= 1
        assert f"| {100 * value:.1f} ({100 * low:.1f} to {100 * high:.1f}) |" in table
    # Of another method other figures; of several none.
    assert main([*base, "--json", "--method", "maskclip"]) == 0
    other = json.loads(capsys.readouterr().out)["figures"]
    assert other["unseen style"]["highest cosine"] != columns["unseen style"]["highest cosine"]
    assert main([*base, "--method", "gem", "clip"]) == 2
    assert "--presence goes with one --method" in capsys.readouterr().err
