"""Label maps as pictures: 0 is background, k + 1 is class k."""

import io

import numpy as np
from PIL import Image
from torch import Tensor

from .visualize import contact_sheet, label_colour


def label_picture(labels: Tensor, classes: int) -> Image.Image:
    """A label map [h, w] (0 = background) as a picture whose pixels are the labels.

    Up to 255 classes it has a palette (black for background), so that it can be looked at, as
    Pascal VOC's are; with more of them its pixels have 16 bits.
    """
    values = labels.cpu().numpy()
    if classes > 255:
        return Image.fromarray(values.astype(np.uint16))
    picture = Image.fromarray(values.astype(np.uint8))
    palette = [0, 0, 0]
    for index in range(classes):
        palette += label_colour(index)
    picture.putpalette(palette)
    return picture


def label_png(labels: Tensor, classes: int) -> bytes:
    """Label maps [b, h, w] side by side, in the colours of `label_overlay`, as a PNG file."""
    pictures = [label_picture(each, min(classes, 255)).convert("RGB") for each in labels]
    sheet = pictures[0]
    if len(pictures) > 1:
        sheet = contact_sheet(pictures, columns=min(4, len(pictures)))
    file = io.BytesIO()
    sheet.save(file, "PNG")
    return file.getvalue()
