"""Maps of words over a grey picture, as sheets: what is hot glows, what is not stays grey.

Values are taken as they are, in [0, 1]: maps on a common scale are to be compared by eye.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .overlays import GAP, drawable, heat_colours, text_size

LARGEST_TILE = 400  # pixels of the longer side of a picture in a sheet of several
DIM = 0.72  # how bright the grey picture is under a map
CLEAR, FULL = 0.3, 0.75  # below the first a map is transparent, from the second on at its densest
DENSITY = 0.88  # the share of a map's colour where it is densest


def glow(picture: Image.Image, heat: NDArray[np.float32]) -> Image.Image:
    """A map [h, w] in [0, 1] over the picture in grey, of the picture's size."""
    # PIL counts (width, height).
    large = Image.fromarray(heat.astype(np.float32)).resize(picture.size, Image.Resampling.BICUBIC)
    values = Image.fromarray((np.asarray(large).clip(0, 1) * 255).round().astype(np.uint8))
    levels = np.linspace(0, 1, 256, dtype=np.float32)
    step = ((levels - CLEAR) / (FULL - CLEAR)).clip(0, 1)
    share = values.point((255 * DENSITY * step**2 * (3 - 2 * step)).round().astype(int).tolist())
    values.putpalette((255 * heat_colours(levels[None])[0]).round().astype(int).ravel().tolist())
    grey = picture.convert("L").point((255 * DIM * levels).round().astype(int).tolist())
    return Image.composite(values.convert("RGB"), grey.convert("RGB"), share)


def word_tile(
    picture: Image.Image, heat: Tensor, word: str, present: float | None = None
) -> Image.Image:
    """A word's map over its picture, above it the word and, in %, how probably it is there.

    heat: [h, w] in [0, 1]. The rarer the word probably is, the paler its name.
    """
    over = glow(picture, heat.float().cpu().numpy())
    return headed(over, word, "" if present is None else percent(present), strength=present)


def word_tiles(
    picture: Image.Image, words: Sequence[str], heat: Tensor, present: Sequence[float] | None = None
) -> list[Image.Image]:
    """`word_tile` of each word. heat: [p, h, w] in [0, 1]; present: p numbers."""
    numbers = [None] * len(words) if present is None else list(present)
    return [
        word_tile(picture, each, word, number)
        for word, each, number in zip(words, heat, numbers, strict=True)
    ]


def percent(present: float) -> str:
    """A presence in words of one size: 97 %, never 0 or 100, which nobody knows."""
    return f"{min(max(round(100 * present), 1), 99)} %"


def headed(
    picture: Image.Image, title: str, note: str = "", *, strength: float | None = None
) -> Image.Image:
    """The picture with a line above it: a title at the left, a note at the right.

    strength: 1 = black letters, 0 = pale ones. A long title is cut.
    """
    size = 5 * text_size(picture) // 4
    band, font = 2 * size, ImageFont.load_default(size)
    shade = round(150 * (1 - (1.0 if strength is None else min(max(strength, 0.0), 1.0))))
    canvas = Image.new("RGB", (picture.width, picture.height + band), "white")
    canvas.paste(picture, (0, band))
    draw = ImageDraw.Draw(canvas)
    room = picture.width - (font.getlength(note) + GAP if note else 0)
    text = drawable(title)[: max(1, picture.width)] or " "
    if font.getlength(text) > room:
        while len(text) > 1 and font.getlength(text + "\N{HORIZONTAL ELLIPSIS}") > room:
            text = text[:-1].rstrip()
        text += "\N{HORIZONTAL ELLIPSIS}"
    draw.text((0, band / 2), text, fill=(shade,) * 3, font=font, anchor="lm")
    draw.text((picture.width, band / 2), note, fill=(shade,) * 3, font=font, anchor="rm")
    return canvas


def legend(sheet: Image.Image) -> Image.Image:
    """The sheet with the scale of its maps below."""
    size = 14
    font = ImageFont.load_default(size)
    canvas = Image.new("RGB", (sheet.width, sheet.height + 2 * size), "white")
    canvas.paste(sheet, (0, 0))
    draw, middle = ImageDraw.Draw(canvas), sheet.height + 0.7 * size
    ramp = np.linspace(0, 1, 96, dtype=np.float32)[None].repeat(size, axis=0)
    bar = glow(Image.new("L", (96, size), 200), ramp)
    texts = ("low", "high: one scale for all words; %: how probably it is in the picture")
    x = GAP
    draw.text((x, middle), texts[0], fill="black", font=font, anchor="lm")
    x += round(font.getlength(texts[0])) + GAP
    canvas.paste(bar, (x, round(middle - size / 2)))
    draw.text((x + 96 + GAP, middle), texts[1], fill="black", font=font, anchor="lm")
    return canvas
