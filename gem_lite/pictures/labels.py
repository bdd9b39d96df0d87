"""Label maps as files and figures: palette pictures as Pascal VOC has them, areas of classes."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from ..method.segment import Segmentation as LabelMaps
from .overlays import contact_sheet, label_colour
from .saving import save_picture


class Segmentation(LabelMaps):
    """Which class each pixel belongs to; in a notebook it shows itself as a picture.

    labels: [b, h, w] int64, 0 = background, k + 1 = class k. confidence: [b, h, w] float32, the
    probability of the class or word that won the pixel.
    """

    __slots__ = ()

    def _repr_png_(self) -> bytes:
        return label_png(self.labels)


def voc_palette() -> list[int]:
    """Pascal VOC's 256 colours, red, green and blue of each in turn.

    The bits of a label are dealt out to the three channels, the lowest to the highest bit of red,
    then green, blue, red again (VOC development kit, `VOClabelcolormap`).
    """
    palette = []
    for label in range(256):
        for channel in range(3):
            palette.append(sum((label >> (3 * i + channel) & 1) << (7 - i) for i in range(3)))
    return palette


def label_picture(labels: Tensor) -> Image.Image:
    """Labels [h, w] as a palette picture in VOC's form: the pixel's value is the label.

    Raises ValueError for another shape or for labels outside 0..255.
    """
    if labels.ndim != 2:
        raise ValueError(f"labels has shape {list(labels.shape)}; expected [h, w]")
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) <= 255:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; a palette picture has 0"
            " to 255"
        )
    picture = Image.fromarray(labels.cpu().numpy().astype(np.uint8))
    picture.putpalette(voc_palette())
    return picture


def label_png(labels: Tensor) -> bytes:
    """Label maps [b, h, w] side by side, in the colours of `label_overlay`, as a PNG file."""
    colours = [(0, 0, 0), *map(label_colour, range(int(labels.max())))]
    painted = np.array(colours, dtype=np.uint8)[labels.cpu().numpy()]  # [b, h, w, 3]
    pictures = [Image.fromarray(each) for each in painted]
    sheet = pictures[0]
    if len(pictures) > 1:
        sheet = contact_sheet(pictures, columns=min(4, len(pictures)))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()


def save_labels(labels: Tensor, path: str | Path) -> None:
    """Write labels [h, w] as a palette PNG, complete or not at all. Raises as `label_picture`."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ValueError(f"{path} does not end in .png, which keeps labels as they are")
    save_picture(label_picture(labels), path)


def class_areas(labels: Tensor, names: Sequence[str]) -> dict[str, float]:
    """The part of all pixels that each class has, "background" first; the parts add up to 1.

    labels: 0 = background, k + 1 = names[k], of any shape. Raises ValueError for larger labels.
    """
    counts = labels.flatten().bincount(minlength=len(names) + 1).tolist()
    if len(counts) != len(names) + 1:
        raise ValueError(f"the largest label is {len(counts) - 1}; there are {len(names)} names")
    parts = [count / max(1, labels.numel()) for count in counts]
    return dict(zip(["background", *names], parts, strict=True))
