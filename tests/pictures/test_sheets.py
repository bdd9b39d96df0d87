"""Maps over a grey picture: what is low stays grey, what is hot glows, the heading says so."""

import numpy as np
import pytest
import torch
from PIL import Image

from gem_lite.pictures.overlays import contact_sheet
from gem_lite.pictures.sheets import glow, headed, percent, word_tile, word_tiles

GREEN = Image.new("RGB", (80, 60), (20, 200, 40))


def test_low_is_grey_and_high_glows() -> None:
    heat = np.zeros((6, 8), dtype=np.float32)
    heat[:, 4:] = 1.0
    found = np.asarray(glow(GREEN, heat)).astype(int)
    assert found.shape == (60, 80, 3)
    left, right = found[:, :30], found[:, 50:]
    assert (left == left[..., :1]).all() and np.ptp(left) == 0 and 0 < left[0, 0, 0] < 200
    assert (right[..., 0] - right[..., 2] > 60).all()  # yellow
    # More colour with every step above what is transparent.
    steps = [
        np.asarray(glow(GREEN, np.full((2, 2), each, np.float32)))[0, 0]
        for each in np.linspace(0.35, 1, 8)
    ]
    spread = [int(np.ptp(step)) for step in steps[:6]]  # from grey to colour
    assert spread == sorted(spread) and len(set(spread)) == 6


def test_a_heading_says_the_word_and_how_probable_it_is() -> None:
    heat = torch.zeros(6, 8)
    tile = word_tile(GREEN, heat, "cat", 0.97)
    assert tile.width == 80 and tile.height > 60
    band = np.asarray(tile)[: tile.height - 60]
    assert (band == 255).mean() > 0.5 and band.min() < 60
    pale = np.asarray(word_tile(GREEN, heat, "cat", 0.02))[: tile.height - 60]
    assert pale.min() > 100  # the word fades with its thing
    # The note is at the right, and takes room from the title.
    plain = np.asarray(word_tile(GREEN, heat, "cat"))[: tile.height - 60]
    assert (plain[:, 50:] == 255).all() and (band[:, 50:] < 255).any()


@pytest.mark.parametrize(
    ("present", "text"), [(0.0, "1 %"), (0.004, "1 %"), (0.5, "50 %"), (0.9999, "99 %")]
)
def test_percent(present: float, text: str) -> None:
    assert percent(present) == text


@pytest.mark.parametrize("title", ["", "word " * 5000, "\u202e\x07", "na\u00efve"])
def test_titles_of_any_kind(title: str) -> None:
    tile = headed(GREEN, title, "50 %")
    assert tile.size == headed(GREEN, "cat").size
    assert (np.asarray(tile)[-60:] == np.asarray(GREEN)).all()


def test_rows_are_as_high_as_their_highest() -> None:
    tiles = word_tiles(GREEN, ["a", "b", "c"], torch.zeros(3, 6, 8))
    low = tiles[0].crop((0, 0, 80, 30))
    sheet = contact_sheet([tiles[0], low, low], columns=2)
    assert sheet.size == (2 * 88 + 8, tiles[0].height + 30 + 3 * 8)
