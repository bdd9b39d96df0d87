"""Fetch the emoji sets with npm, draw them with resvg, keep the drawings of our concepts in one file.

    python pictures.py --cache CACHE            # writes CACHE/sprites.npz

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
from PIL import Image

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from gem_lite.scenes import Sprites

TRAINED_STYLES = {
    "noto": "1.2.9",
    "noto-v1": "1.2.5",
    "fluent-emoji": "1.2.7",
    "fluent-emoji-flat": "1.2.6",
    "twemoji": "1.2.5",
    "emojione": "1.2.3",
}
UNSEEN_STYLES = {"openmoji": "1.2.29"}  # CC-BY-SA-4.0: to test on, never to train on
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True)
    args = parser.parse_args()
    drawings = sprites(args.cache)
    print(f"{len(drawings.names)} drawings, {len(set(drawings.names))} concepts")


if __name__ == "__main__":
    main()
