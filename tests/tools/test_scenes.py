"""Collages: the labels are true, the same seed gives the same picture, and errors are clear."""

from pathlib import Path

import numpy as np
import pytest

from gem_lite.tools.quality.scenes import Scene, Sprites, caption, compose, scenes

SPRITES = Path(__file__).parents[2] / "examples" / "scenes" / "sprites.npz"


def plain_sprites() -> Sprites:
    """Four discs, each in a colour of its own that no ground has by accident over a whole disc."""
    side = 32
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    pixels = np.zeros((4, side, side, 4), dtype=np.uint8)
    for index, colour in enumerate([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)]):
        pixels[index, ..., :3] = colour
        pixels[index, ..., 3] = 255 * (x**2 + y**2 < (side / 2 - 1) ** 2)
    return Sprites(pixels, ("red", "green", "blue", "yellow"), ("disc",) * 4)


COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}


def centre(scene: Scene, index: int) -> tuple[int, int]:
    rows, columns = np.nonzero(scene.mask == index + 1)
    return int(rows.mean()), int(columns.mean())


def test_mask_lies_where_the_thing_was_drawn() -> None:
    for scene in scenes(plain_sprites(), seed=3, count=50, jitter=0.0):
        for index, name in enumerate(scene.names):
            shown = scene.image[scene.mask == index + 1].astype(int)
            distance = np.abs(shown - COLOURS[name]).max(axis=-1)
            # Only pixels on the rim are mixed with what lies behind.
            assert np.mean(distance < 4) > 0.75, name


def test_every_thing_is_named_once_and_seen() -> None:
    for scene in scenes(plain_sprites(), seed=4, count=100):
        assert 3 <= len(scene.names) <= 4
        assert len(set(scene.names)) == len(scene.names)
        assert set(np.unique(scene.mask)) == set(range(len(scene.names) + 1))
        for index in range(len(scene.names)):
            # The smallest disc has a quarter of 128 pixels across, two thirds of it in sight.
            assert np.count_nonzero(scene.mask == index + 1) > 2 / 3 * 3.14 * 14**2 * 0.8


def test_seed_and_index_fix_a_scene() -> None:
    sprites = plain_sprites()
    long = list(scenes(sprites, seed=5, count=4))
    short = list(scenes(sprites, seed=5, count=2))
    other = next(iter(scenes(sprites, seed=6, count=1)))
    for one, two in zip(long, short, strict=False):
        assert np.array_equal(one.image, two.image) and np.array_equal(one.mask, two.mask)
        assert one.names == two.names
    assert not np.array_equal(long[0].image, other.image)


def test_size_and_number_of_things() -> None:
    scene = compose(plain_sprites(), np.random.default_rng(0), size=80, things=(1, 1))
    assert scene.image.shape == (80, 80, 3) and scene.image.dtype == np.uint8
    assert scene.mask.shape == (80, 80) and len(scene.names) == 1


@pytest.mark.parametrize("things", [(0, 1), (2, 1), (1, 5)])
def test_impossible_numbers_of_things(things: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="things"):
        compose(plain_sprites(), np.random.default_rng(0), things=things)


def test_caption_names_everything() -> None:
    rng = np.random.default_rng(0)
    texts = {caption(["cat", "apple", "jeans"], rng) for _ in range(200)}
    assert all("cat" in text and "apple" in text and "jeans" in text for text in texts)
    assert "a photo of a cat, an apple and jeans." in texts
    words = {caption(["car"], rng, {"car": ["automobile"]}) for _ in range(200)}
    assert {"a car", "a photo of a car.", "an automobile", "car"} <= words


def test_select_save_load(tmp_path: Path) -> None:
    sprites = plain_sprites().select(names=["red", "blue"])
    sprites.save(tmp_path / "two.npz")
    loaded = Sprites.load(tmp_path / "two.npz")
    assert loaded.names == ("red", "blue") and loaded.styles == ("disc", "disc")
    assert np.array_equal(loaded.pixels, sprites.pixels)
    with pytest.raises(ValueError, match="disc"):
        sprites.select(styles=["cubist"])
    with pytest.raises(ValueError, match="2 names"):
        Sprites(loaded.pixels, ("red", "blue"), ("disc",))
    with pytest.raises(ValueError, match="expected uint8"):
        Sprites(loaded.pixels[..., :3], loaded.names, loaded.styles)


def test_sprites_of_the_repository() -> None:
    sprites = Sprites.load(SPRITES)
    assert set(sprites.styles) == {"noto", "fluent-emoji-flat", "openmoji"}
    for style in set(sprites.styles):
        assert sprites.select(styles=[style]).concepts == sprites.concepts
    assert len(sprites.concepts) >= 40
    assert ((sprites.pixels[..., 3] > 127).mean(axis=(1, 2)) > 0.1).all()
