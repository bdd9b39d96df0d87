"""Labelled collages on the fly: a picture, the names of what is in it, and a mask that says where.

They are made from sprites, drawings with a transparent ground, and cost about a millisecond. The
same code feeds the training of the small model, the quality benchmark and the tests, so a change of
the method can be scored against a known truth in seconds. Sizes are (h, w), heights before widths.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]

# Side of a thing as a part of the scene's side, (smallest, largest), by the number of things.
THING_SIDES = {1: (0.4, 0.98), 2: (0.32, 0.6), 3: (0.28, 0.5), 4: (0.26, 0.44)}
WARP = 0.16  # how far a thing's corners move at full jitter, as a part of its side
_OPAQUE = 128  # alpha from which a pixel belongs to the thing
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)


@dataclass(frozen=True)
class Sprites:
    """Drawings with straight alpha, uint8 [n, side, side, 4], each with a name and a style."""

    pixels: Pixels
    names: tuple[str, ...]
    styles: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = self.pixels.shape
        if (
            self.pixels.dtype != np.uint8
            or len(shape) != 4
            or shape[1] != shape[2]
            or shape[3] != 4
        ):
            raise ValueError(
                f"sprite pixels are {self.pixels.dtype} {list(shape)};"
                " expected uint8 [n, side, side, 4]"
            )
        if not shape[0] == len(self.names) == len(self.styles):
            raise ValueError(
                f"{shape[0]} drawings, {len(self.names)} names, {len(self.styles)} styles;"
                " expected one name and one style for each drawing"
            )

    @classmethod
    def load(cls, path: Path | str) -> "Sprites":
        """Read what `save` wrote. Raises FileNotFoundError when there is no such file."""
        with np.load(path, allow_pickle=False) as stored:
            names, styles = stored["names"].tolist(), stored["styles"].tolist()
            return cls(stored["pixels"], tuple(names), tuple(styles))

    def save(self, path: Path | str) -> None:
        """Write pixels, names and styles to one compressed .npz file."""
        np.savez_compressed(
            path, pixels=self.pixels, names=np.array(self.names), styles=np.array(self.styles)
        )

    def select(
        self, *, styles: Sequence[str] | None = None, names: Sequence[str] | None = None
    ) -> "Sprites":
        """Only the drawings of these styles and names; None keeps all.

        Raises ValueError when nothing is left.
        """
        keep = [
            index
            for index, (name, style) in enumerate(zip(self.names, self.styles, strict=True))
            if (styles is None or style in styles) and (names is None or name in names)
        ]
        if not keep:
            raise ValueError(
                f"no sprite has a style of {styles} and a name of {names};"
                f" there are the styles {sorted(set(self.styles))}"
            )
        return Sprites(
            self.pixels[keep],
            tuple(self.names[index] for index in keep),
            tuple(self.styles[index] for index in keep),
        )

    def __add__(self, other: "Sprites") -> "Sprites":
        return Sprites(
            np.concatenate([self.pixels, other.pixels]),
            self.names + other.names,
            self.styles + other.styles,
        )

    @cached_property
    def concepts(self) -> tuple[str, ...]:
        """The different names, sorted."""
        return tuple(sorted(set(self.names)))

    @cached_property
    def _drawings(self) -> dict[str, list[int]]:
        drawings: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            drawings.setdefault(name, []).append(index)
        return drawings

    @cached_property
    def _levels(self) -> list[list[Image.Image]]:
        """Each drawing with premultiplied alpha at full, half and quarter size.

        Pillow has no filter for such pixels under their own mode; RGBX treats all four alike.
        """
        levels = []
        for drawing in self.pixels:
            alpha = drawing[..., 3:].astype(np.uint16)
            rgb = (drawing[..., :3] * alpha + 127) // 255
            premultiplied = np.concatenate([rgb, alpha], axis=-1).astype(np.uint8)
            full = Image.frombytes("RGBX", drawing.shape[:2], premultiplied.tobytes())
            levels.append([full, full.reduce(2), full.reduce(4)])
        return levels


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
        drawings = sprites._drawings[name]
        levels = sprites._levels[drawings[rng.integers(len(drawings))]]
        low, high = sides[count]
        side = max(4, round(size * float(rng.uniform(low, high))))
        thing = _turn(levels, side, rng, rotation, WARP * jitter)
        opaque = thing[..., 3] >= _OPAQUE
        place = _free_place(mask, opaque, areas, rng)
        if place is None:
            continue
        window = (slice(place[0], place[0] + side), slice(place[1], place[1] + side))
        colours = _recolour(thing, rng, jitter)
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


def _turn(
    levels: Sequence[Image.Image],
    side: int,
    rng: np.random.Generator,
    rotation: float,
    warp: float,
) -> Pixels:
    """One drawing scaled to `side`, flipped half of the time, turned; premultiplied RGBA.

    warp: how far the corners move, as a part of the side.
    """
    level = next((each for each in reversed(levels) if each.width >= side), levels[0])
    angle = np.deg2rad(rng.uniform(-rotation, rotation))
    # A turned square is wider than its side: shrink it, but not by all, few things have corners.
    spread = 1 + 0.6 * (abs(np.cos(angle)) + abs(np.sin(angle)) - 1)
    flip = -1 if rng.random() < 0.5 else 1
    half = spread * level.width / 2
    corners = half * np.array([(-1, -1), (-1, 1), (1, 1), (1, -1)])  # x, y; from top left, via left
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = corners @ turn * (flip, 1) + level.width / 2
    if warp:
        corners = corners + warp * level.width * rng.uniform(-1, 1, (4, 2))
    turned = level.transform(
        (side, side),
        Image.Transform.QUAD,
        corners.ravel().tolist(),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(turned)


def _recolour(thing: Pixels, rng: np.random.Generator, jitter: float) -> NDArray[np.float32]:
    """Colours of a premultiplied thing after a random change, float32 [side, side, 3]."""
    colours = thing[..., :3].astype(np.float32)
    kind = rng.random()
    if not jitter or kind < 0.2:
        return colours
    alpha = thing[..., 3:].astype(np.float32)
    if kind < 0.35:
        saturation, hue = 0.0, 0.0
    else:
        saturation = 1 + jitter * rng.uniform(-0.8, 0.6)
        hue = jitter * rng.uniform(-0.6, 0.6) if kind < 0.7 else jitter * rng.uniform(-3.1, 3.1)
    contrast = 1 + jitter * rng.uniform(-0.45, 0.45)
    offset = jitter * rng.uniform(-50, 50, 3 if rng.random() < 0.5 else 1).astype(np.float32)
    matrix = (contrast * _colour_matrix(saturation, hue)).astype(np.float32)
    shift = offset + 127 * np.float32(1 - contrast)
    colours = colours @ matrix + alpha * (shift / 255)
    if rng.random() < 0.1 * jitter:  # few colours, as in a poster
        step = 255 / int(rng.integers(2, 6))
        colours = np.round(colours / step) * step
    return np.clip(colours, 0, alpha)


def _colour_matrix(saturation: float, hue: float) -> NDArray[np.float64]:
    """[3, 3], to be multiplied from the right: greys stay, colours turn by `hue` and scale."""
    cos, sin = saturation * np.cos(hue), saturation * np.sin(hue)
    third = np.full((3, 3), 1 / 3)
    cross = np.array([[0, 1, -1], [-1, 0, 1], [1, -1, 0]]) / np.sqrt(3)
    return third + cos * (np.eye(3) - third) + sin * cross


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
