"""Heat maps as pictures: overlays with Pillow and numpy, no display needed."""

import colorsys
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..method.config import OPENAI_MEAN, OPENAI_STD
from ..method.heatmap import min_max
from .saving import save_overlays

# Indigo over magenta and orange to pale yellow: (position, red, green, blue), joined by straight
# lines. It grows brighter all the way, so a sheet printed in grey still reads.
COLOURS = np.array(
    [
        (0.00, 0.13, 0.07, 0.39),
        (0.20, 0.29, 0.09, 0.61),
        (0.40, 0.60, 0.13, 0.64),
        (0.55, 0.88, 0.17, 0.39),
        (0.70, 0.97, 0.44, 0.21),
        (0.85, 1.00, 0.71, 0.12),
        (1.00, 0.98, 0.96, 0.54),
    ]
)
SHEET_COLUMNS = 4
GAP = 8  # pixels between the pictures of a sheet
LEGEND_LETTERS = 80  # of a name; what is longer is cut


def visualize(
    image: Image.Image | Tensor,
    prompts: Sequence[str],
    logits: Tensor,
    alpha: float = 0.6,
    save_path: str | Path | None = None,
    mean: Iterable[float] | None = None,
    std: Iterable[float] | None = None,
) -> list[Image.Image]:
    """Overlay each prompt's heat map on the image, with the prompt as title.

    image: a PIL image, or a tensor [3, h, w] or [1, 3, h, w] normalised with mean and std (None =
    OpenAI's). logits: [p, h, w] or [1, p, h, w], any range: each map is stretched to [0, 1] for
    display and resized to the image. alpha: 0 shows the image alone, 1 the map alone.
    save_path: a name with a picture's ending (.png, .jpg, ...) gets one sheet of all; anything
    else is a folder, made if need be, that gets one PNG per prompt. In a notebook the sheet is
    shown. Returns the overlays, one RGB picture per prompt.
    Raises TypeError or ValueError for input of the wrong kind or shape.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts is a string; expected a list: [{prompts!r}]")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f"a prompt is {prompt!r:.80}; expected a string")
    _check_alpha(alpha)
    pixels = _pixels(image, mean, std)  # [h, w, 3] in [0, 1]
    maps = _maps(logits, len(prompts))  # [p, h, w]
    overlays = [
        titled(_blend(pixels, heat, alpha), prompt)
        for heat, prompt in zip(maps, prompts, strict=True)
    ]
    notebook = _in_notebook()
    if save_path is not None or notebook:
        sheet = contact_sheet(overlays, columns=min(SHEET_COLUMNS, len(overlays)))
        if save_path is not None:
            save_overlays(Path(save_path), sheet, overlays, prompts)
        shown_in_notebook(sheet)
    return overlays


def heat_colours(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours [h, w, 3] in [0, 1] for values [h, w] in [0, 1]."""
    channels = [np.interp(heat, COLOURS[:, 0], COLOURS[:, channel]) for channel in (1, 2, 3)]
    return np.stack(channels, axis=-1, dtype=np.float32)


def titled(picture: Image.Image, title: str) -> Image.Image:
    """The picture with a line of text above it; a long line is set smaller, then cut."""
    size = text_size(picture)
    band, smallest = 2 * size, max(9, size // 2)
    font = ImageFont.load_default(size)
    text = drawable(title) or " "
    room = picture.width - GAP
    if len(text) > max(1, picture.width):  # wider than a pixel each: measured once, not often
        text = text[: max(1, picture.width)] + "\N{HORIZONTAL ELLIPSIS}"
    while size > smallest and font.getlength(text) > room:
        size -= 1
        font = ImageFont.load_default(size)
    while len(text) > 1 and font.getlength(text) > room:
        text = text[:-2].rstrip() + "\N{HORIZONTAL ELLIPSIS}"
    canvas = Image.new("RGB", (picture.width, picture.height + band), "white")
    canvas.paste(picture, (0, band))
    draw = ImageDraw.Draw(canvas)
    draw.text((picture.width / 2, band / 2), text, fill="black", font=font, anchor="mm")
    return canvas


def contact_sheet(pictures: Sequence[Image.Image], *, columns: int) -> Image.Image:
    """Pictures side by side, row by row, on white."""
    width = max(picture.width for picture in pictures)
    rows = [pictures[start : start + columns] for start in range(0, len(pictures), columns)]
    heights = [max(picture.height for picture in row) for row in rows]
    size = (columns * (width + GAP) + GAP, sum(heights) + GAP * len(rows) + GAP)
    sheet, top = Image.new("RGB", size, "white"), GAP
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(picture, (GAP + column * (width + GAP), top))
        top += height + GAP
    return sheet


def label_overlay(
    image: Image.Image | Tensor,
    labels: Tensor,
    names: Sequence[str],
    alpha: float = 0.6,
    mean: Iterable[float] | None = None,
    std: Iterable[float] | None = None,
) -> Image.Image:
    """A segmentation over its image, with a legend below.

    image: as in `visualize`; labels: [h, w], 0 = background (left as it is), k + 1 = names[k], as
    `segment` gives them. Raises TypeError or ValueError for input of the wrong kind or shape.
    """
    if isinstance(names, str):
        raise TypeError(f"names is a string; expected a list: [{names!r}]")
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels is of type {type(labels).__name__}; expected a tensor [h, w]")
    if labels.ndim != 2 or labels.numel() == 0:
        raise ValueError(f"labels has shape {list(labels.shape)}; expected [h, w]")
    numbers = labels.detach().cpu().numpy()
    lowest, highest = int(numbers.min()), int(numbers.max())
    if lowest < 0 or highest > len(names):
        raise ValueError(
            f"labels run from {lowest} to {highest}; expected 0 for background to {len(names)},"
            " the number of names"
        )
    _check_alpha(alpha)
    pixels = _pixels(image, mean, std)
    height, width = pixels.shape[:2]
    # PIL counts (width, height).
    resized = Image.fromarray(numbers.astype(np.int32)).resize(
        (width, height), Image.Resampling.NEAREST
    )
    labelled = np.asarray(resized)
    colours = np.array([(0, 0, 0), *map(label_colour, range(len(names)))], dtype=np.float32) / 255
    tint = np.float32(alpha) * colours  # of each label
    opacity = np.array([1, *[1 - alpha] * len(names)], dtype=np.float32)  # share of the picture
    pixels = pixels * opacity[labelled][..., None]
    pixels += tint[labelled]
    pixels *= 255
    picture = Image.fromarray(pixels.round(out=pixels).astype(np.uint8))
    return _with_legend(picture, names)


def label_colour(index: int) -> tuple[int, int, int]:
    """The colour of the index-th name: golden-angle steps around the colour circle."""
    hue = (0.61803 * index + 0.02) % 1
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 1.0 if index % 2 == 0 else 0.8)
    return round(255 * red), round(255 * green), round(255 * blue)


def _with_legend(picture: Image.Image, names: Sequence[str]) -> Image.Image:
    size = min(22, max(12, 2 * text_size(picture) // 3))
    font = ImageFont.load_default(size)
    texts = [drawable(name) for name in names]
    texts = [
        text if len(text) <= LEGEND_LETTERS else text[:LEGEND_LETTERS] + "\N{HORIZONTAL ELLIPSIS}"
        for text in texts
    ]
    steps = [round(font.getlength(text) + 2.2 * size) for text in texts]  # square, text and gap
    room, columns = picture.width - GAP, max(1, len(texts))
    if sum(steps) > room:  # in columns, as wide as the longest
        columns = max(1, room // max(steps))
        steps = [max(steps)] * len(steps)
    line = round(1.6 * size)
    height = picture.height + -(-len(texts) // columns) * line
    width = max(picture.width, sum(steps[:columns]) + GAP)
    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(picture, (0, 0))
    draw = ImageDraw.Draw(canvas)
    for index, text in enumerate(texts):
        row, column = divmod(index, columns)
        x = GAP + sum(steps[:column])
        middle = picture.height + (row + 0.5) * line
        box = (x, middle - size / 2, x + size, middle + size / 2)
        draw.rectangle(box, fill=label_colour(index))
        draw.text((x + 1.4 * size, middle), text, fill="black", font=font, anchor="lm")
    return canvas


def text_size(picture: Image.Image) -> int:
    """Height in pixels of letters above a picture."""
    return max(14, min(48, picture.width // 18))


def drawable(text: str) -> str:
    """One line without accents: Pillow's own font has the letters of English only.

    What cannot be printed is left out: control characters, marks of direction, halves of letters.
    """
    letters = unicodedata.normalize("NFKD", " ".join(text.split()))
    return "".join(
        letter for letter in letters if letter.isprintable() and not unicodedata.combining(letter)
    )


def _pixels(
    image: Image.Image | Tensor, mean: Iterable[float] | None, std: Iterable[float] | None
) -> NDArray[np.float32]:
    """[h, w, 3] in [0, 1]."""
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"), dtype=np.float32) / np.float32(255)
    if not isinstance(image, Tensor):
        raise TypeError(
            f"image is of type {type(image).__name__}; expected a PIL image or a tensor [3, h, w]"
        )
    shape = list(image.shape)
    if image.ndim == 4 and len(image) == 1:
        image = image[0]
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"image has shape {shape}; expected [3, h, w] or [1, 3, h, w]")
    channels = image.detach().float().cpu().numpy().transpose(1, 2, 0)  # [h, w, 3]
    mean = np.array(list(OPENAI_MEAN if mean is None else mean), dtype=np.float32)
    std = np.array(list(OPENAI_STD if std is None else std), dtype=np.float32)
    return np.clip(channels * std + mean, 0, 1)


def _maps(logits: Tensor, prompts: int) -> NDArray[np.float32]:
    """[p, h, w], each stretched to [0, 1]; a constant map is zeros."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits is of type {type(logits).__name__}; expected a tensor [p, h, w]")
    shape = list(logits.shape)
    if logits.ndim == 4 and len(logits) == 1:
        logits = logits[0]
    if logits.ndim != 3:
        raise ValueError(f"logits has shape {shape}; expected [p, h, w] or [1, p, h, w]")
    if len(logits) != prompts or prompts == 0:
        raise ValueError(f"{len(logits)} maps for {prompts} prompts; expected one map per prompt")
    maps = logits.detach().to(torch.float32).cpu()
    if not maps.isfinite().all():
        raise ValueError("logits holds values that are not finite; expected numbers")
    return min_max(maps).numpy()


def _check_alpha(alpha: float) -> None:
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha}; expected a number in [0, 1]")


def _blend(pixels: NDArray[np.float32], heat: NDArray[np.float32], alpha: float) -> Image.Image:
    height, width = pixels.shape[:2]
    if heat.shape != (height, width):
        # PIL counts (width, height).
        resized = Image.fromarray(heat).resize((width, height), Image.Resampling.BILINEAR)
        heat = np.asarray(resized)
    mixed = alpha * heat_colours(heat) + (1 - alpha) * pixels
    return Image.fromarray((mixed * 255).round().astype(np.uint8))


def shown_in_notebook(value: object) -> bool:
    """Show a value below the cell that runs; False where there is no notebook."""
    if not _in_notebook():
        return False
    from IPython.display import display

    display(value)
    return True


def _in_notebook() -> bool:
    """Whether the code runs in a notebook's kernel; imports nothing."""
    ipython = sys.modules.get("IPython")
    get_ipython = getattr(ipython, "get_ipython", None)
    shell = get_ipython() if get_ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")
