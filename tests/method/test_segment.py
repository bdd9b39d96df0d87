"""Label maps, against loops over pixels."""

import math
import weakref
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from gem_lite.method.segment import BACKGROUND, label_chunks, label_maps


def cosines(names: int, *, batch: int = 2, h: int = 4, w: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.4 * torch.rand(batch, names, h, w, generator=generator)


def naive(
    maps: Tensor,
    groups: list[int],
    classes: int,
    scale: float,
    threshold: float | None,
    rival_names: bool = False,
) -> tuple[list[int], list[float]]:
    """Pixel by pixel, in row order: labels, and the probability of what won."""
    labels, confidence = [], []
    for image in maps.tolist():
        for y in range(maps.shape[2]):
            for x in range(maps.shape[3]):
                pixel = [one[y][x] for one in image]
                best = [-math.inf] * (max(groups) + 1)
                for name, group in enumerate(groups):
                    best[group] = max(best[group], pixel[name])
                rivals = pixel if rival_names else best
                chance = math.exp(scale * max(best)) / sum(math.exp(scale * one) for one in rivals)
                winner = best.index(max(best))
                unsure = threshold is not None and chance < threshold
                labels.append(0 if unsure or winner >= classes else winner + 1)
                confidence.append(chance)
    return labels, confidence


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
@pytest.mark.parametrize("rival_names", [False, True])
def test_against_loops(
    groups: list[int], classes: int, threshold: float | None, rival_names: bool
) -> None:
    maps = cosines(6)
    found = label_maps(
        maps,
        groups=groups,
        classes=classes,
        scale=20.0,
        threshold=threshold,
        rival_names=rival_names,
    )
    labels, confidence = naive(maps, groups, classes, 20.0, threshold, rival_names)
    assert found.labels.dtype == torch.int64 and found.labels.shape == (2, 4, 5)
    assert found.labels.flatten().tolist() == labels
    assert found.confidence.dtype == torch.float32
    expected = torch.tensor(confidence).reshape(2, 4, 5)
    torch.testing.assert_close(found.confidence, expected, rtol=0, atol=4e-6)


def test_the_cases_above_show_both_labels_and_background() -> None:
    labels, _ = naive(cosines(6), [0, 1, 2, 3, 4, 5], 4, 20.0, 0.55)
    assert set(labels) == {0, 1, 2, 3, 4}


def test_defaults() -> None:
    """One class a name, no background, scale 50."""
    maps = cosines(3)
    found = label_maps(maps)
    assert torch.equal(found.labels, maps.argmax(dim=1) + 1)
    torch.testing.assert_close(found.confidence, (50 * maps).softmax(dim=1).amax(dim=1))
    assert BACKGROUND == 0


def test_a_probability_at_the_threshold_is_kept() -> None:
    maps = torch.zeros(1, 2, 1, 1)  # two classes, one half each
    assert label_maps(maps, threshold=0.5).labels.item() == 1
    assert label_maps(maps, threshold=0.5001).labels.item() == 0


def test_a_background_word_beats_by_its_own_score_only() -> None:
    """Two background words do not add up: the best single name wins."""
    maps = torch.tensor([0.20, 0.19, 0.19]).reshape(1, 3, 1, 1)
    found = label_maps(maps, classes=1, scale=50.0)
    assert found.labels.item() == 1
    assert found.confidence.item() < 0.5
    assert label_maps(maps.flip(1), classes=1).labels.item() == 0


def test_scale_changes_what_the_threshold_leaves() -> None:
    maps = cosines(4)
    kept = [int((label_maps(maps, scale=s, threshold=0.6).labels > 0).sum()) for s in (1, 20, 500)]
    assert kept[0] == 0 and kept[0] < kept[1] < kept[2]


def test_the_input_is_left_alone_and_gradients_flow() -> None:
    maps = cosines(3).requires_grad_()
    given = maps.detach().clone()
    label_maps(maps, threshold=0.5).confidence.sum().backward()
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
        ({"min_area": 1.5}, r"min_area is 1\.5"),
        ({"groups": [0, 1]}, "2 groups for 3 maps"),
        ({"groups": [0, 2, 2]}, r"groups is \[0, 2, 2\]; expected 0, 1, 2, "),
        ({"groups": [0, 1, -1]}, r"groups is \[0, 1, -1\]"),
    ],
)
def test_bad_input(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label_maps(cosines(3), **changes)  # type: ignore[arg-type]


# ---- names in chunks


@pytest.mark.parametrize("rival_names", [False, True])
@pytest.mark.parametrize("min_area", [0.0, 0.15])
@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 11, 100])
def test_chunks_change_nothing(chunk: int, min_area: float, rival_names: bool) -> None:
    """Also when a class's names lie in several chunks; but where the two best are all but equal."""
    maps = cosines(11, h=9, w=13)
    groups = [4, 0, 1, 1, 2, 1, 3, 3, 1, 5, 1]
    options = {
        "classes": 4,
        "threshold": 0.2,
        "scale": 15.0,
        "min_area": min_area,
        "rival_names": rival_names,
    }
    whole = label_chunks(lambda names: maps[:, list(names)], groups, **options)
    asked = []

    def some(names: Sequence[int]) -> Tensor:
        asked.append(list(names))
        return maps[:, list(names)]

    found = label_chunks(some, groups, chunk=chunk, **options)
    assert max(map(len, asked)) <= chunk
    assert sorted(sum(asked, [])) == sorted([*range(11)] * (2 if min_area else 1))
    torch.testing.assert_close(found.confidence, whole.confidence, rtol=0, atol=1e-6)
    two = torch.stack(
        [maps[:, [i for i, g in enumerate(groups) if g == each]].amax(1) for each in range(6)], 1
    ).topk(2, dim=1)[0]
    sure = (two[:, 0] - two[:, 1] > 1e-5) & ((whole.confidence - 0.2).abs() > 1e-5)
    assert sure.float().mean() > 0.99
    assert torch.equal(found.labels[sure], whole.labels[sure])
    assert set(found.labels.unique().tolist()) > {0, 2}


def test_a_thousand_names_never_meet() -> None:
    """A map may be made when it is asked for and forgotten afterwards."""
    maps = cosines(40, h=6, w=7)
    alive = []

    def one(names: Sequence[int]) -> Tensor:
        assert all(reference() is None for reference in alive[:-1])
        made = maps[:, list(names)].clone()
        alive.append(weakref.ref(made))
        return made

    found = label_chunks(one, range(40), chunk=1)
    assert torch.equal(found.labels, maps.argmax(dim=1) + 1)


def test_small_areas_go_to_the_next_best() -> None:
    """Ten pixels: class 0 wins six, class 1 three, class 2 one; a background word none."""
    maps = torch.zeros(1, 4, 1, 10)
    maps[0, 0, 0, :6], maps[0, 1, 0, 6:9], maps[0, 2, 0, 9] = 0.3, 0.3, 0.3
    maps[0, 1, 0, 9] = 0.2
    everything = label_maps(maps, classes=3)
    assert everything.labels.flatten().tolist() == [1] * 6 + [2] * 3 + [3]
    found = label_maps(maps, classes=3, min_area=0.1)
    assert found.labels.flatten().tolist() == [1] * 6 + [2] * 4
    # The dropped class still counts in the sum, as a probability set to zero would.
    expected = (50 * maps[0, :, 0, 9]).softmax(dim=0)[1]
    torch.testing.assert_close(found.confidence[0, 0, 9], expected)
    assert label_maps(maps, classes=3, min_area=0.3).labels.flatten().tolist()[:6] == [1] * 6
    none = label_maps(maps[:, :3], min_area=1.0)
    assert none.labels.flatten().tolist() == [0] * 10 and none.confidence.max() == 0


def test_small_areas_are_judged_image_by_image() -> None:
    maps = torch.zeros(2, 2, 1, 10)
    maps[0, 0, 0, :9], maps[0, 1, 0, 9:] = 0.3, 0.3
    maps[1, 0, 0, :5], maps[1, 1, 0, 5:] = 0.3, 0.3
    found = label_maps(maps, min_area=0.2).labels
    assert found[0].flatten().tolist() == [1] * 10
    assert found[1].flatten().tolist() == [1] * 5 + [2] * 5


def test_a_bad_chunk() -> None:
    with pytest.raises(ValueError, match="chunk is 0; expected at least 1"):
        label_chunks(lambda names: cosines(3), range(3), chunk=0)
