"""Drawings with a transparent ground: stored, chosen, turned and recoloured."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


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
    def drawings(self) -> dict[str, list[int]]:
        """The places of each name's drawings."""
        places: dict[str, list[int]] = {}
        for index, name in enumerate(self.names):
            places.setdefault(name, []).append(index)
        return places

    @cached_property
    def levels(self) -> list[list[Image.Image]]:
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


def turned(
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


def recoloured(thing: Pixels, rng: np.random.Generator, jitter: float) -> NDArray[np.float32]:
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
