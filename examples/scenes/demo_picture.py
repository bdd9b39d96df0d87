"""Compose the demo's picture from drawings in one of the styles the small model was trained on.

    python examples/scenes/demo_picture.py --sprites CACHE/sprites.npz --output weights/demo.png

The words for what is in it go into the file itself, as the PNG text `words`.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gem_lite.scenes import Sprites

SIDE = 256
STYLE = "fluent-emoji-flat"
# Name, side in pixels, left, top.
THINGS = (
    ("fish", 112, 10, 10),
    ("hamburger", 112, 134, 8),
    ("drum", 112, 12, 134),
    ("elephant", 112, 134, 132),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sprites", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--style", default=STYLE)
    args = parser.parse_args()
    sprites = Sprites.load(args.sprites).select(styles=[args.style])
    down, across = np.mgrid[0:SIDE, 0:SIDE][..., None] / SIDE
    ground = np.array([214, 226, 206]) + down * [20, -22, -60] + across * [-26, 4, 34]
    picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    for name, side, left, top in THINGS:
        drawing = Image.fromarray(sprites.pixels[sprites.names.index(name)])
        drawing = drawing.resize((side, side), Image.Resampling.LANCZOS)
        picture.paste(drawing, (left, top), drawing)
    info = PngInfo()
    info.add_text("words", ", ".join(name for name, *_ in THINGS))
    picture.save(args.output, pnginfo=info, optimize=True)


if __name__ == "__main__":
    main()
