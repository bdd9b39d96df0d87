"""Fetch the emoji sets with npm, draw them with resvg, keep our concepts' drawings in one file.

    python pictures.py --cache CACHE                    # writes CACHE/sprites.npz
    python pictures.py --cache CACHE --small SMALL.npz  # and the few that tests and benchmark use

The sets are the `@iconify-json/*` packages: one JSON each, with an SVG body per CLDR name.
Needs npm, and resvg-py from PyPI. About a minute.
"""

import argparse
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import resvg_py
from PIL import Image, ImageFilter

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from gem_lite.tools.quality.scenes import Sprites

TRAINED_STYLES = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
    "twemoji": "1.2.5",
    "emojione": "1.2.3",
}
UNSEEN_STYLES = {"openmoji": "1.2.29"}  # CC-BY-SA-4.0: to test on, never to train on
# A second unseen style, chosen before v2 was trained and measured once, after it: Apache-2.0.
FRESH_STYLE = ("fxemoji", "1.2.2")
# What the repository itself carries: permissive styles, and the unseen one to test on.
SMALL_STYLES = ("noto", "fluent-emoji-flat", "openmoji")
SMALL_SIDE = 64
SMALL_NAMES = [
    "airplane", "anchor", "apple", "banana", "bee", "bell", "bicycle", "butterfly", "cactus",
    "camera", "car", "carrot", "cat", "crab", "crown", "dog", "doughnut", "elephant", "fire",
    "fish", "frog", "gift", "guitar", "hamburger", "house", "key", "light bulb", "lion", "mushroom",
    "octopus", "owl", "penguin", "pineapple", "pizza", "pumpkin", "rocket", "sailboat", "scissors",
    "soccer ball", "strawberry", "sunflower", "tractor", "turtle", "umbrella",
]  # fmt: skip
SIDE = 96  # pixels of the square that a drawing is fitted into
DRAWN = 192  # pixels it is drawn at first, before the empty border is cut off


def concepts() -> dict[str, dict[str, list[str]]]:
    """Plain noun -> {"icons": CLDR names that show it, "synonyms": other words for it}."""
    return json.loads((HERE / "concepts.json").read_text())


def fetch(style: str, version: str, cache: Path) -> dict:
    """The icons.json of one npm package, fetched once into `cache` with npm itself."""
    archive = cache / f"iconify-json-{style}-{version}.tgz"
    if not archive.exists():
        print(f"npm pack @iconify-json/{style}@{version}", flush=True)
        subprocess.run(
            ["npm", "pack", f"@iconify-json/{style}@{version}"],
            cwd=cache,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
    with tarfile.open(archive) as package:
        return json.load(package.extractfile("package/icons.json"))


def draw(icons: dict, name: str) -> np.ndarray:
    """One icon as straight RGBA, uint8 [SIDE, SIDE, 4], border cut off, centred, ratio kept."""
    name = icons.get("aliases", {}).get(name, {}).get("parent", name)
    icon = icons["icons"][name]
    left, top = icon.get("left", 0), icon.get("top", 0)
    width = icon.get("width", icons.get("width", 16))
    height = icon.get("height", icons.get("height", 16))
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' viewBox="{left} {top} {width} {height}" width="{DRAWN}" height="{DRAWN}">'
        f"{icon['body']}</svg>"
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg))
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    box = picture.getchannel("A").point(lambda a: 255 * (a > 16)).getbbox()
    if box is None:
        raise ValueError(f"icon {name!r} is empty")
    picture = picture.crop(box)
    scale = SIDE / max(picture.size)
    size = tuple(max(1, round(scale * side)) for side in picture.size)
    picture = picture.resize(size, Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIDE, SIDE))
    square.paste(picture, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return np.asarray(square)


def sprites(cache: Path) -> Sprites:
    """All drawings of all concepts in the trained and unseen styles; made once, then read."""
    path = cache / "sprites.npz"
    if path.exists():
        return Sprites.load(path)
    cache.mkdir(parents=True, exist_ok=True)
    pixels, names, styles = [], [], []
    for style, version in {**TRAINED_STYLES, **UNSEEN_STYLES}.items():
        icons = fetch(style, version, cache)
        for name, concept in concepts().items():
            for icon in concept["icons"]:
                pixels.append(draw(icons, icon))
                names.append(name)
                styles.append(style)
        print(f"{style}: drawn", flush=True)
    drawings = Sprites(np.stack(pixels), tuple(names), tuple(styles))
    drawings.save(path)
    return drawings


def fresh(cache: Path) -> Sprites:
    """The drawings of FRESH_STYLE, of the concepts it has; fxemoji.json names them."""
    path = cache / "fresh.npz"
    if not path.exists():
        style, version = FRESH_STYLE
        icons = fetch(style, version, cache)
        shown = json.loads((HERE / "fxemoji.json").read_text())
        pairs = [(name, icon) for name, drawn in shown.items() for icon in drawn]
        pixels = np.stack([draw(icons, icon) for _, icon in pairs])
        names = tuple(name for name, _ in pairs)
        Sprites(pixels, names, (style,) * len(names)).save(path)
    return Sprites.load(path)


def trained(cache: Path) -> Sprites:
    """What the model learns from: the trained styles, and each drawing once more in ink."""
    path = cache / "trained.npz"
    if not path.exists():
        drawn = sprites(cache).select(styles=list(TRAINED_STYLES))
        rng = np.random.default_rng(0)
        pixels = np.stack([inked(drawing, rng) for drawing in drawn.pixels])
        styles = tuple(f"{style}, inked" for style in drawn.styles)
        (drawn + Sprites(pixels, drawn.names, styles)).save(path)
    return Sprites.load(path)


def inked(drawing: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A drawing as if done with a pen: flat, often pale colours inside dark lines.

    The six styles have shading instead of lines; without this, a style of lines is not recognised.
    drawing: straight RGBA, uint8 [side, side, 4] -> the same.
    """
    smooth = Image.fromarray(drawing[..., :3]).filter(ImageFilter.MedianFilter(7))
    edges = np.zeros(drawing.shape[:2], dtype=np.int16)
    for channel in smooth.split():
        high, low = (
            channel.filter(ImageFilter.MaxFilter(3)),
            channel.filter(ImageFilter.MinFilter(3)),
        )
        edges = np.maximum(edges, np.asarray(high, np.int16) - np.asarray(low, np.int16))
    pen = int(rng.integers(1, 5))
    lines = Image.fromarray((edges > rng.integers(40, 90)).astype(np.uint8))
    lines = np.asarray(lines.filter(ImageFilter.MaxFilter(2 * (pen // 3) + 1)), bool)
    alpha = Image.fromarray(drawing[..., 3])
    inside = np.asarray(alpha.filter(ImageFilter.MinFilter(2 * pen + 1))) >= 128
    step = 255 / int(rng.integers(2, 5))
    colours = np.round(np.asarray(smooth, np.float32) / step) * step
    colours += (255 - colours) * rng.random() * (1.0 if rng.random() < 0.5 else 0.3)
    colours[lines | ~inside] = rng.uniform(0, 50)
    return np.concatenate([colours.astype(np.uint8), drawing[..., 3:]], axis=-1)


def small(drawings: Sprites) -> Sprites:
    """The first drawing of each of SMALL_NAMES in each of SMALL_STYLES, at SMALL_SIDE pixels."""
    first: dict[tuple[str, str], int] = {}
    for index, key in enumerate(zip(drawings.styles, drawings.names, strict=True)):
        first.setdefault(key, index)
    keys = [(style, name) for style in SMALL_STYLES for name in SMALL_NAMES]
    pixels = [
        np.asarray(
            Image.fromarray(drawings.pixels[first[key]]).resize(
                (SMALL_SIDE, SMALL_SIDE), Image.Resampling.LANCZOS
            )
        )
        for key in keys
    ]
    return Sprites(
        np.stack(pixels), tuple(name for _, name in keys), tuple(style for style, _ in keys)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--small", type=Path, help="where to write the repository's own pack")
    args = parser.parse_args()
    drawings = sprites(args.cache)
    if args.small:
        small(drawings).save(args.small)
    print(f"{len(drawings.names)} drawings, {len(set(drawings.names))} concepts")


if __name__ == "__main__":
    main()
