"""The figures themselves: scored on maps whose quality is known beforehand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from test_scenes import plain_sprites
from torch import Tensor

from gem_lite.tools.quality import measure as quality
from gem_lite.tools.quality.scenes import Scene, scenes


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


class Oracle:
    """Stands in for a model: it knows the masks, and returns what the test wants of them."""

    def __init__(self, collages: Sequence[Scene], maps: Any) -> None:
        self.maps = {scene.image.tobytes(): maps(scene) for scene in collages}

    def batched_forward(
        self, images: Tensor, names: list[list[str]], normalize: bool, return_ori: bool
    ) -> list[Tensor]:
        assert not normalize
        found = []
        for image in images:
            key = image.permute(1, 2, 0).to(torch.uint8).numpy().tobytes()
            found.append(self.maps[key] * (-1.0 if return_ori else 1.0))
        return found


def truth(scene: Scene) -> Tensor:
    things = [torch.from_numpy(scene.mask == i + 1) for i in range(len(scene.names))]
    return torch.stack(things).float()


def with_background(scene: Scene) -> Tensor:
    return torch.cat([truth(scene), torch.from_numpy(scene.mask == 0)[None].float()])


COLLAGES = list(scenes(plain_sprites(), seed=11, count=40))


def measured(maps: Any, **options: Any) -> quality.Quality:
    oracle: Any = Oracle(COLLAGES, maps)
    return quality.measure(oracle, COLLAGES, to_tensor, **options)


def test_perfect_maps() -> None:
    assert measured(with_background) == quality.Quality(1.0, 1.0, 1.0)
    assert measured(truth, background=None) == quality.Quality(1.0, 1.0, 1.0)


def test_upside_down_maps() -> None:
    turned = measured(with_background, plain=True)
    assert turned.pointing == 0.0 and turned.own_name == 0.0 and turned.miou < 0.1


def test_swapped_names() -> None:
    swapped = measured(lambda scene: truth(scene).roll(1, dims=0), background=None)
    assert swapped.pointing == 0.0 and swapped.own_name == 0.0
    # The background is still found.
    assert 1 / 5 <= swapped.miou <= 1 / 4 + 1e-6


def test_noise_scores_like_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    many = list(scenes(plain_sprites(), seed=12, count=300))
    oracle: Any = Oracle(
        many, lambda scene: torch.rand(with_background(scene).shape, generator=generator)
    )
    noise = quality.measure(oracle, many, to_tensor)
    luck = quality.chance(many)
    assert noise.pointing == pytest.approx(luck.pointing, abs=0.03)
    assert noise.own_name == pytest.approx(luck.own_name, abs=0.05)
    assert noise.miou == pytest.approx(luck.miou, abs=0.01)


def test_coarser_maps_are_resized() -> None:
    def coarse(scene: Scene) -> Tensor:
        return torch.nn.functional.interpolate(with_background(scene)[None], (64, 64), mode="area")[
            0
        ]

    assert measured(coarse).pointing > 0.95


def test_no_collages() -> None:
    with pytest.raises(ValueError, match="no collages"):
        quality.measure(Oracle([], truth), [], to_tensor)  # type: ignore[arg-type]
