"""Methods beside controls: known maps score as they must, and intervals cover what they should."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from test_quality import COLLAGES, to_tensor, truth
from test_scenes import plain_sprites
from torch import Tensor

from gem_lite.tools.cli import main
from gem_lite.tools.quality.compare import (
    FIGURES,
    as_json,
    as_markdown,
    compare,
    interval,
    other_names,
)
from gem_lite.tools.quality.controls import CONTROLS, SUBJECT, brightness, centre, other_class
from gem_lite.tools.quality.measure import BACKGROUND, PictureScore, chance, measure
from gem_lite.tools.quality.scenes import scenes
from gem_lite.tools.settings import parsed_method


class Knowing:
    """Stands in for a model: it paints what a word names, nothing for others; can be deaf."""

    def __init__(self, *, deaf: bool = False) -> None:
        self.scenes = {scene.image.tobytes(): scene for scene in COLLAGES}
        self.deaf = deaf

    def batched_forward(
        self, images: Tensor, words: Sequence[Sequence[str]], normalize: bool, return_ori: bool
    ) -> list[Tensor]:
        maps = []
        for image, asked in zip(images, words, strict=True):
            scene = self.scenes[image.permute(1, 2, 0).to(torch.uint8).numpy().tobytes()]
            things = truth(scene)
            each = []
            for word in asked:
                if return_ori:
                    each.append(torch.zeros(scene.mask.shape))
                elif word == BACKGROUND:
                    each.append(torch.from_numpy(scene.mask == 0).float())
                elif self.deaf or word == SUBJECT:
                    each.append(things[0])
                else:
                    known = word in scene.names
                    each.append(things[scene.names.index(word)] if known else 0 * things[0])
            maps.append(torch.stack(each))
        return maps


def test_a_method_that_knows_and_one_that_is_deaf() -> None:
    models: Any = {"knowing": Knowing(), "deaf": Knowing(deaf=True)}
    steps: list[tuple[int, int, str]] = []
    rows = compare(
        models,
        COLLAGES,
        to_tensor,
        advance=lambda done, total, name: steps.append((done, total, name)),
    )
    knowing, deaf, plain, bright, middle, luck = rows
    assert [row.name for row in rows] == [
        *("knowing", "deaf", "plain CLIP", "control: brightness", "control: centre", "chance")
    ]
    assert steps[-1][:2] == (3 * len(COLLAGES), 3 * len(COLLAGES))
    assert all(knowing.figures()[name] == (1.0, 1.0, 1.0) for name in FIGURES)
    # A map of the first thing for every word: right for one thing of a picture, whatever the word.
    things = np.mean([len(scene.names) for scene in COLLAGES])
    assert deaf.figures()["pointing"].value == pytest.approx(1 / things)
    assert deaf.scores == deaf.controls["subject"] == knowing.controls["subject"]
    above = deaf.above_controls()["pointing"]
    assert above.value <= 0 and above.high <= 0
    best = interval(knowing.best_control("pointing"), "pointing").value
    assert knowing.above_controls()["pointing"].value == pytest.approx(1 - best)
    assert set(knowing.controls) == set(CONTROLS)
    assert luck.figures()["pointing"].value == pytest.approx(chance(COLLAGES).pointing)
    assert not bright.controls and not middle.controls and plain.controls
    table = as_markdown(rows).splitlines()
    assert len(table) == 2 + len(rows) and table[2].startswith("| knowing | 100.0 (100.0 to 100.0)")
    stored = json.loads(json.dumps(as_json(rows)))
    assert stored[0]["pointing"] == [1.0, 1.0, 1.0] and "above_controls" not in stored[-1]


def test_the_rows_are_measures_figures() -> None:
    """The same maps through `measure`, which the other table is made of."""
    model: Any = Knowing(deaf=True)
    row = compare({"deaf": model}, COLLAGES, to_tensor)[0]
    quality = measure(model, COLLAGES, to_tensor)
    for name in FIGURES:
        assert row.figures()[name].value == pytest.approx(getattr(quality, name))


@pytest.mark.parametrize("figure", FIGURES)
def test_intervals_cover_the_truth_as_often_as_they_say(figure: str) -> None:
    """Of 200 samples of 60 pictures with known mean 0.4; and a difference to itself is none."""
    draw = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        values = draw.beta(2, 3, 60)
        scores = [PictureScore(3, *[float(value)] * 3) for value in values]
        value, low, high = interval(scores, figure, seed=seed)
        assert value == pytest.approx(values.mean()) and low < value < high
        covered += low <= 0.4 <= high
    assert 175 <= covered <= 198
    assert interval(scores, figure, less=scores) == (0.0, 0.0, 0.0)


def test_things_count_alike() -> None:
    scores = [PictureScore(1, 1.0, 1.0, 1.0), PictureScore(3, 0.0, 0.0, 0.0)]
    assert interval(scores, "pointing").value == 0.25
    assert interval(scores, "miou").value == 0.5


def test_controls() -> None:
    pixels = np.zeros((3, 5, 3), dtype=np.uint8)
    pixels[1, 2] = (10, 200, 30)
    light = brightness(pixels)
    assert light.max() == 1 and light.argmax() == 7 and light.sum() == 1
    middle = centre(5, 9)
    assert middle.shape == (5, 9) and middle.argmax() == 22 and middle[0, 0] == middle[4, 8] == 0
    assert middle[2, 0] == pytest.approx(0.5) == middle[0, 4]
    for picture in range(9):
        others = [other_class(k, 5, picture) for k in range(5)]
        assert sorted(others) == [0, 1, 2, 3, 4] and all(k != each for k, each in enumerate(others))


def test_other_pictures_words() -> None:
    collages = list(scenes(plain_sprites(), seed=2, count=6, things=(1, 2)))
    for place, scene in enumerate(collages):
        names = other_names(scene, collages, place)
        assert len(names) == len(scene.names) and not set(names) & set(scene.names)
    assert other_names(collages[0], collages[:1], 0) == [SUBJECT] * len(collages[0].names)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gem", ("gem", {})),
        ("naclip:std=3", ("naclip", {"std": 3})),
        ("x:a=1.5,b=false,c=null,d=qkv", ("x", {"a": 1.5, "b": False, "c": None, "d": "qkv"})),
    ],
)
def test_methods_as_written(text: str, expected: tuple[str, dict[str, Any]]) -> None:
    assert parsed_method(text) == expected
    for wrong in ("gem:3", "gem:=3", "gem:iters=1,"):
        with pytest.raises(ValueError, match="is not NAME=VALUE"):
            parsed_method(wrong)


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    base = ["bench-quality", "--count", "2", "--seed", "3", "4", "--method"]
    assert main([*base, "gem", "naclip:std=3", "gem:iters=0", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in result["methods"][:3]] == ["gem", "naclip:std=3", "gem:iters=0"]
    assert result["seed"] == [3, 4]
    for row in result["methods"][:3]:
        value, low, high = row["pointing"]
        assert 0 <= low <= value <= high <= 1
    assert main([*base, "clip"]) == 0
    text = capsys.readouterr().out
    assert "| clip | " in text and "4 collages" in text and "another picture's" in text
    for wrong, message in (
        (["nothing"], "unknown method 'nothing'"),
        (["naclip:sdt=3"], "has no setting 'sdt'"),
    ):
        assert main([*base, *wrong]) == 2
        assert message in capsys.readouterr().err
    assert main([*base, "naclip", "--set", "std=3"]) == 2
    assert "--set goes with one method" in capsys.readouterr().err
    assert main(["bench-quality", "--count", "2", "--seed", "3", "4"]) == 2
    assert "go with --method" in capsys.readouterr().err
