"""Boxes, points, palette pictures and refinement, against loops and known answers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import gem_lite as gem
from gem_lite.method.refine import neighbour_weights, refine
from gem_lite.pictures.boxes import connected_pieces
from gem_lite.pictures.labels import voc_palette
from gem_lite.tools.quality.scenes import Sprites, scenes

SPRITES = Path(__file__).parents[2] / "examples" / "scenes" / "sprites.npz"


def flood(mask: np.ndarray) -> np.ndarray:
    """Pieces by filling from each pixel, in reading order."""
    found, number = np.zeros(mask.shape, dtype=int), 0
    for start in zip(*np.nonzero(mask), strict=True):
        if found[start]:
            continue
        number += 1
        edge = [start]
        while edge:
            y, x = edge.pop()
            if mask[y, x] and not found[y, x]:
                found[y, x] = number
                rows = range(max(y - 1, 0), min(y + 2, mask.shape[0]))
                columns = range(max(x - 1, 0), min(x + 2, mask.shape[1]))
                edge += [(i, j) for i in rows for j in columns]
    return found


@pytest.mark.parametrize("density", [0.0, 0.05, 0.2, 0.4, 0.6, 1.0])
def test_pieces_against_flooding(density: float) -> None:
    random = np.random.default_rng(int(100 * density))
    for shape in ((1, 1), (1, 20), (20, 1), (13, 29), (40, 40)):
        mask = random.random(shape) < density
        assert np.array_equal(connected_pieces(mask), flood(mask))


def test_boxes_in_the_pictures_own_pixels() -> None:
    heat = torch.zeros(2, 10, 20)
    heat[0, 2:5, 3:8] = 0.7
    heat[0, 3, 4] = 0.9
    heat[0, 8:, 18:] = 1.0
    heat[1, 0, 0] = 0.6
    (strong, weak), (single,) = gem.boxes(heat, size=(100, 60))
    assert strong == (54, 80, 60, 100, 1.0)
    assert weak == pytest.approx((9, 20, 24, 50, 0.9))
    assert single == pytest.approx((0, 0, 3, 10, 0.6))
    assert gem.boxes(heat, min_area=0.01)[1] == []
    assert gem.boxes(heat, threshold=0.95)[0] == [(18, 8, 20, 10, 1.0)]


def test_points_and_coordinates_that_survive_resizing() -> None:
    heat = torch.zeros(1, 2, 10, 20)
    heat[0, 0, 7, 3], heat[0, 1, 0, 19] = 0.5, -0.1
    heat[0, 1] -= 1
    heat[0, 1, 0, 19] = 0.25
    found = gem.points(heat, size=(100, 60))
    assert found.shape == (1, 2, 3)
    torch.testing.assert_close(found[0], torch.tensor([[10.5, 75, 0.5], [58.5, 5, 0.25]]))
    # A point lies in the box around it, whatever size the picture has.
    for size in ((10, 20), (123, 77), (5, 400)):
        box = gem.boxes(heat[0], size=size, threshold=0.2)[0][0]
        x, y, _ = gem.points(heat[0], size=size)[0].tolist()
        assert box.left < x < box.right and box.top < y < box.bottom


def test_points_of_a_batch_of_maps_are_those_of_each() -> None:
    heat = torch.rand(3, 2, 9, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(gem.points(heat), torch.stack([gem.points(one) for one in heat]))
    for y, x in ((0, 0), (8, 6)):
        one = torch.zeros(1, 9, 7)
        one[0, y, x] = 1
        assert gem.points(one)[0].tolist() == [x + 0.5, y + 0.5, 1.0]


def test_bad_maps() -> None:
    with pytest.raises(ValueError, match=r"shape \[3, 4\]; expected"):
        gem.points(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="of one picture"):
        gem.boxes(torch.zeros(2, 1, 3, 4))


# ---- label pictures


def test_vocs_colours() -> None:
    palette = np.array(voc_palette()).reshape(256, 3).tolist()
    assert palette[:4] == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert palette[15] == [192, 128, 128] and palette[20] == [0, 64, 128]
    assert palette[255] == [224, 224, 192]
    assert len({tuple(colour) for colour in palette}) == 256


def test_label_pictures_keep_labels(tmp_path: Path) -> None:
    labels = torch.arange(256).reshape(8, 32)
    gem.save_labels(labels, tmp_path / "labels.png")
    stored = Image.open(tmp_path / "labels.png")
    assert stored.mode == "P" and stored.getpalette() == voc_palette()
    assert np.array_equal(np.asarray(stored), labels.numpy())
    for wrong, message in ((labels + 1, "1 to 256"), (labels[0], r"\[32\]; expected \[h, w\]")):
        with pytest.raises(ValueError, match=message):
            gem.label_picture(wrong)
    with pytest.raises(ValueError, match=r"does not end in \.png"):
        gem.save_labels(labels, tmp_path / "labels.jpg")


def test_areas() -> None:
    labels = torch.tensor([[[0, 1, 1, 3]]])
    assert gem.class_areas(labels, ["cat", "dog", "sun"]) == {
        "background": 0.25,
        "cat": 0.5,
        "dog": 0.0,
        "sun": 0.25,
    }
    with pytest.raises(ValueError, match="largest label is 3; there are 1"):
        gem.class_areas(labels, ["cat"])


# ---- refinement


def test_refinement_against_loops() -> None:
    """The formula, pixel by pixel."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(1, 3, 6, 7, generator=generator)
    maps = torch.rand(1, 2, 6, 7, generator=generator)
    distances = (1, 2)
    weights = neighbour_weights(images, distances=distances)
    found = refine(maps, weights, distances=distances, steps=1)
    pixels, values = images[0].double(), maps[0].double()
    for y in range(6):
        for x in range(7):
            near = [
                (min(max(y + i * d, 0), 5), min(max(x + j * d, 0), 6))
                for d in distances
                for i in (-1, 0, 1)
                for j in (-1, 0, 1)
                if i or j
            ]
            colours = torch.stack([pixels[:, i, j] for i, j in near])  # [k, 3]
            deviation = torch.cat([colours, pixels[None, :, y, x]]).std(dim=0)
            unlike = ((colours - pixels[:, y, x]).abs() / (0.3 * deviation)).mean(dim=1)
            share = (-unlike).softmax(dim=0)
            torch.testing.assert_close(weights[0, :, y, x].double(), share, rtol=1e-4, atol=1e-5)
            expected = sum(w * values[:, i, j] for w, (i, j) in zip(share, near, strict=True))
            torch.testing.assert_close(found[0, :, y, x].double(), expected, rtol=1e-4, atol=1e-5)


def test_refinement_keeps_what_is_constant_and_is_linear() -> None:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 12, 15, generator=generator)
    images[:, :, :4] = 0.5  # flat
    weights = neighbour_weights(images)
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(2, 12, 15))
    torch.testing.assert_close(
        refine(torch.full((2, 1, 12, 15), 0.3), weights), torch.full((2, 1, 12, 15), 0.3)
    )
    maps = torch.rand(2, 3, 12, 15, generator=generator)
    torch.testing.assert_close(refine(maps[:, :1], weights), refine(maps, weights)[:, :1])
    assert torch.equal(refine(maps, weights, steps=0), maps)
    for call, message in (
        (lambda: refine(maps[..., 1:], weights), "expected one size"),
        (lambda: refine(maps, weights, steps=-1), "steps is -1"),
        (lambda: neighbour_weights(images, distances=()), r"distances is \(\)"),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_refinement_pays_on_collages() -> None:
    """Overlap with the true masks grows clearly: what the figures in docs/evaluation.md say."""
    model, transform = gem.create_model_and_transforms("tiny-emoji", "v1")
    sprites = Sprites.load(SPRITES).select(styles=["openmoji"])
    right: dict[int, list[float]] = {0: [], 5: []}
    for scene in scenes(sprites, seed=2, count=6, size=128, jitter=0.0):
        image = transform(Image.fromarray(scene.image))[None]
        truth = torch.from_numpy(scene.mask)
        for steps, ious in right.items():
            labels = model.segment(
                image, scene.names, background=["background"], refine_steps=steps, size=(128, 128)
            ).labels[0]
            for k in range(len(scene.names) + 1):
                both = ((labels == k) & (truth == k)).sum()
                ious.append(float(both / ((labels == k) | (truth == k)).sum().clamp(min=1)))
    assert np.mean(right[5]) > np.mean(right[0]) + 0.03
