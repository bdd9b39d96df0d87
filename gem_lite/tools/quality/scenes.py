"""Labelled collages on the fly: a picture, the names of what is in it, and a mask that says where.

They are made from sprites, drawings with a transparent ground, and cost about a millisecond. The
same code feeds the training of the small model, the quality benchmark and the tests, so a change of
the method can be scored against a known truth in seconds. Sizes are (h, w), heights before widths.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .sprites import Pixels, Sprites, recoloured, turned

# Side of a thing as a part of the scene's side, (smallest, largest), by the number of things.
THING_SIDES = {1: (0.4, 0.98), 2: (0.32, 0.6), 3: (0.28, 0.5), 4: (0.26, 0.44)}
WARP = 0.16  # how far a thing's corners move at full jitter, as a part of its side
_OPAQUE = 128  # alpha from which a pixel belongs to the thing
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Scene:
    """A collage: image uint8 [h, w, 3]; mask int64 [h, w], i + 1 where names[i] is seen, else 0."""

    image: Pixels
    names: tuple[str, ...]
    mask: NDArray[np.int64]


def compose(
    sprites: Sprites,
    rng: np.random.Generator,
    *,
    size: int = 128,
    things: tuple[int, int] = (1, 4),
    sides: Mapping[int, tuple[float, float]] | None = None,
    jitter: float = 1.0,
    rotation: float = 20.0,
) -> Scene:
    """One collage of different things on a random ground.

    things: fewest and most things, 1 to 4; each is another name, in a random style, place, size,
    flip and rotation (up to `rotation` degrees). jitter: how much colours and shapes change, 0 =
    as drawn, 1 = as in training.
    sides: side of a thing as part of the scene's side, by the number of things (THING_SIDES).
    Of every thing at least two thirds are seen. Raises ValueError when `things` is out of range or
    there are fewer names than things.
    """
    fewest, most = things
    if not 1 <= fewest <= most <= 4 or most > len(sprites.concepts):
        raise ValueError(
            f"things is {things} with {len(sprites.concepts)} names; expected"
            " 1 <= fewest <= most <= 4, and no more than there are names"
        )
    sides = THING_SIDES if sides is None else sides
    count = int(rng.integers(fewest, most + 1))
    image = background(rng, size)
    mask = np.zeros((size, size), dtype=np.int64)
    names: list[str] = []
    areas: list[int] = []
    for _ in range(8 * count):
        if len(names) == count:
            break
        name = sprites.concepts[rng.integers(len(sprites.concepts))]
        if name in names:
            continue
        drawings = sprites.drawings[name]
        levels = sprites.levels[drawings[rng.integers(len(drawings))]]
        low, high = sides[count]
        side = max(4, round(size * float(rng.uniform(low, high))))
        thing = turned(levels, side, rng, rotation, WARP * jitter)
        opaque = thing[..., 3] >= _OPAQUE
        place = _free_place(mask, opaque, areas, rng)
        if place is None:
            continue
        window = (slice(place[0], place[0] + side), slice(place[1], place[1] + side))
        colours = recoloured(thing, rng, jitter)
        clear = np.float32(1) - thing[..., 3:].astype(np.float32) * np.float32(1 / 255)
        image[window] = image[window] * clear + colours
        names.append(name)
        areas.append(int(opaque.sum()))
        mask[window][opaque] = len(names)
    if jitter and rng.random() < 0.15:
        image = np.repeat((image @ _LUMA)[..., None], 3, axis=-1)
    return Scene(np.clip(image, 0, 255).astype(np.uint8), tuple(names), mask)


def scenes(
    sprites: Sprites,
    *,
    seed: int,
    count: int,
    size: int = 128,
    things: tuple[int, int] = (3, 4),
    jitter: float = 1.0,
) -> Iterator[Scene]:
    """`count` collages; the i-th depends only on the seed, on i and on the other arguments."""
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        yield compose(sprites, rng, size=size, things=things, jitter=jitter)


def caption(
    names: Sequence[str],
    rng: np.random.Generator,
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> str:
    """A caption that names all of `names`, in random order and wording.

    One name: "a photo of a cat.", "cat", "an orange"; several: "a cat, a pizza and a bicycle".
    synonyms: other words for a name, each used now and then.
    """
    words = []
    for name in names:
        others = (synonyms or {}).get(name, ())
        words.append(
            others[int(rng.integers(len(others)))] if others and rng.random() < 0.2 else name
        )
    order = rng.permutation(len(words))
    kind = rng.random()
    articles = kind < 0.85  # without them: "cat, pizza"
    listed = [_with_article(words[i]) if articles else words[i] for i in order]
    if len(listed) == 1:
        text = listed[0]
    elif rng.random() < 0.7:
        text = ", ".join(listed[:-1]) + " and " + listed[-1]
    else:
        text = ", ".join(listed)
    return f"a photo of {text}." if kind < 0.6 else text


_PLURALS = (
    *("cherries", "dice", "eyeglasses", "french fries", "fries", "glasses", "grapes", "headphones"),
    *("jeans", "pants", "scissors", "trousers"),
)


def _with_article(word: str) -> str:
    """As a person writes it: an apple, a cat, scissors."""
    if word in _PLURALS:
        return word
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def background(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """A ground without things, float32 [size, size, 3] in 0..255: flat, gradient, noise, shapes."""
    kind = rng.random()
    colour = _colours(rng, 4)
    if kind < 0.2:
        return np.broadcast_to(colour[0], (size, size, 3)).copy()
    if kind < 0.4:
        return _smooth(colour.reshape(2, 2, 3), size)
    if kind < 0.7:  # soft noise, coarse to fine
        cells = int(rng.integers(3, 33))
        strength = rng.uniform(0.1, 0.9)
        noise = rng.random((cells, cells, 3), dtype=np.float32) * 255
        return _smooth(colour[0] * (1 - strength) + noise * np.float32(strength), size)
    picture = Image.fromarray(_smooth(colour.reshape(2, 2, 3), size).astype(np.uint8))
    canvas = ImageDraw.Draw(picture)
    for fill in _colours(rng, int(rng.integers(4, 16))).astype(int).tolist():
        y, x = rng.uniform(-0.2, 1, 2) * size
        h, w = rng.uniform(0.05, 0.5, 2) * size
        shape = rng.integers(3)
        if shape == 0:
            canvas.rectangle((x, y, x + w, y + h), fill=tuple(fill))
        elif shape == 1:
            canvas.ellipse((x, y, x + w, y + h), fill=tuple(fill))
        else:
            canvas.line((x, y, x + 3 * w, y + 3 * h), fill=tuple(fill), width=1 + int(h) // 6)
    return np.array(picture, dtype=np.float32)


def _colours(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    """Random colours, float32 [count, 3] in 0..255, greys and pale ones more often than chance."""
    colours = rng.random((count, 3), dtype=np.float32)
    grey = colours.mean(axis=-1, keepdims=True)
    colours = grey + (colours - grey) * np.float32(rng.random())
    return 255 * (colours if rng.random() < 0.6 else 1 - 0.4 * colours)


def _smooth(coarse: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    picture = Image.fromarray(np.clip(coarse, 0, 255).astype(np.uint8))
    smooth = picture.resize((size, size), Image.Resampling.BILINEAR)
    return np.array(smooth, dtype=np.float32)


def _free_place(
    mask: NDArray[np.int64],
    opaque: NDArray[np.bool_],
    areas: Sequence[int],
    rng: np.random.Generator,
) -> tuple[int, int] | None:
    """Top and left of a window in which the thing leaves two thirds of every other one seen."""
    size, side = mask.shape[0], opaque.shape[0]
    if not opaque.any():
        return None
    for _ in range(12):
        top, left = rng.integers(0, size - side + 1, 2).tolist()
        covered = mask[top : top + side, left : left + side][opaque]
        hidden = np.count_nonzero(covered)
        if not hidden:
            return top, left
        if hidden > 0.15 * len(covered):
            continue
        seen = np.bincount(mask.ravel(), minlength=len(areas) + 1)
        lost = np.bincount(covered, minlength=len(areas) + 1)
        if all(
            seen[index] - lost[index] >= 2 / 3 * area for index, area in enumerate(areas, start=1)
        ):
            return top, left
    return None
