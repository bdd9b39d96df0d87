"""Compose the demo's pictures from drawings in styles that the small model was trained on.

    python examples/scenes/demo_picture.py --sprites CACHE/sprites.npz --output weights/demo.png

The words for what is in it go into the file itself, as the PNG text `words`.
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from gem_lite.tools.quality.scenes import Sprites

SIDE = 256
# Of each picture the style, and for each thing its name, side in pixels, left, top.
PICTURES = {
    "demo.png": (
        "fluent-emoji-flat",
        (
            ("fish", 112, 10, 10),
            ("hamburger", 112, 134, 8),
            ("drum", 112, 12, 134),
            ("elephant", 112, 134, 132),
        ),
    ),
    "demo-2.png": (
        "noto",
        (("guitar", 110, 12, 16), ("penguin", 104, 138, 10), ("pizza", 112, 132, 132)),
    ),
    "demo-3.png": (
        "fluent-emoji-flat",
        (
            ("sailboat", 100, 14, 18),
            ("sunflower", 108, 138, 12),
            ("bicycle", 112, 8, 134),
            ("owl", 100, 142, 138),
        ),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sprites", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True, help="its name is in PICTURES")
    args = parser.parse_args()
    style, things = PICTURES[args.output.name]
    sprites = Sprites.load(args.sprites).select(styles=[style])
    down, across = np.mgrid[0:SIDE, 0:SIDE][..., None] / SIDE
    ground = np.array([214, 226, 206]) + down * [20, -22, -60] + across * [-26, 4, 34]
    picture = Image.fromarray(ground.clip(0, 255).astype(np.uint8))
    for name, side, left, top in things:
        drawing = Image.fromarray(sprites.pixels[sprites.names.index(name)])
        drawing = drawing.resize((side, side), Image.Resampling.LANCZOS)
        picture.paste(drawing, (left, top), drawing)
    info = PngInfo()
    info.add_text("words", ", ".join(name for name, *_ in things))
    picture.save(args.output, pnginfo=info, optimize=True)


if __name__ == "__main__":
    main()
