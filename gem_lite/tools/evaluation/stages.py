"""From a picture to labels, in the stages of the field's evaluations.

picture -> resized on 8 bits -> normalised -> windows -> cosines of all names -> their maps,
averaged where windows overlap -> the picture's own size -> PAMR -> softmax, best class, threshold.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...method.heatmap import upsample
from ...method.refine import neighbour_weights, refine
from ...method.segment import Segmentation, label_chunks
from ...method.windows import WindowScores, window_maps, window_scores
from ...pictures.transform import to_rgb
from ...predictor import GEMPredictor
from .protocols import Settings
from .resize import resize_bilinear

CHUNK_BYTES = 64 * 2**20  # maps of one chunk of names
PAMR_DISTANCES, PAMR_CONTRAST = (8, 16), 0.1


def resized(picture: Image.Image, settings: Settings) -> Image.Image:
    """The picture in RGB at the size and through the filter of the settings."""
    picture = to_rgb(picture)
    height, width = settings.input_size(picture.height, picture.width)
    if settings.resize == "opencv":
        return Image.fromarray(resize_bilinear(np.asarray(picture), height, width))
    return picture.resize((width, height), Image.Resampling.BICUBIC)  # PIL: (width, height)


def patch_padding(height: int, width: int, patch: int) -> tuple[int, int, int, int]:
    """Pixels left, right, above and below that fill a window up to whole patches, centred."""
    across, down = -width % patch, -height % patch
    return across // 2, across - across // 2, down // 2, down - down // 2


def picture_scores(
    model: GEMPredictor, image: Tensor, text: Tensor, settings: Settings, *, plain: bool = False
) -> WindowScores:
    """The scores of all names in every window of one normalised picture [1, 3, h, w].

    text: embeddings [p, e]. plain: plain CLIP's. Of all names at once: a name that a class and
    background share has the same score for both, to the last digit.
    """
    patch = model.network.config.image.patch

    def score(part: Tensor) -> tuple[Tensor, tuple[int, int]]:
        if settings.pad and settings.window is not None:
            part = F.pad(part, patch_padding(part.shape[-2], part.shape[-1], patch))
        maps = model(part, text, normalize=False, return_ori=plain, size="patches")  # [1, p, h, w]
        return maps.flatten(2), (maps.shape[-2], maps.shape[-1])

    return window_scores(
        score,
        image,
        window=None if settings.window is None else (settings.window,) * 2,
        stride=None if settings.stride is None else (settings.stride,) * 2,
        flip=settings.flip,
        batch=1,
    )


def padded_maps(windows: WindowScores, names: Sequence[int], patch: int) -> Tensor:
    """As `window_maps`, of windows that were filled up: their maps are cut back first."""
    height, width = windows.window
    left, _, top, _ = patch_padding(height, width, patch)
    filled = (windows.grid[0] * patch, windows.grid[1] * patch)
    total = windows.scores.new_zeros(1, len(names), *windows.size)
    count = windows.scores.new_zeros(windows.size)
    for (row, column), part in zip(windows.places, windows.scores[:, :, list(names)], strict=True):
        inside = upsample(part, windows.grid, filled)[..., top : top + height, left : left + width]
        total[..., row : row + height, column : column + width] += inside
        count[row : row + height, column : column + width] += 1
    return total / count


@torch.no_grad()
def label(
    model: GEMPredictor,
    image: Tensor,
    text: Tensor,
    groups: Sequence[int],
    classes: int,
    settings: Settings,
    size: tuple[int, int],
    *,
    plain: bool = False,
) -> Segmentation:
    """Labels [1, h, w] of a normalised picture [1, 3, h, w] at its own `size`.

    text: embeddings [p, e] of all names. groups: the class of each name; those from `classes` on
    are words for background.
    """
    image = image.to(model.network.device)
    windows = picture_scores(model, image, text, settings, plain=plain)
    colours = neighbour_weights(image) if settings.refine else None
    near = pamr_weights(image, size) if settings.pamr else None

    def maps(names: Sequence[int]) -> Tensor:
        if settings.straight and settings.window is None and colours is None:
            part = upsample(windows.scores[0][:, list(names)], windows.grid, size)
        elif settings.pad and settings.window is not None:
            part = padded_maps(windows, names, model.network.config.image.patch)
        else:
            part = window_maps(windows, names)
        if colours is not None:
            part = refine(part, colours, steps=settings.refine)
        part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        if near is not None:
            part = refine(part, near, distances=PAMR_DISTANCES, steps=settings.pamr)
        return part

    pixels = max(size[0] * size[1], image.shape[-2] * image.shape[-1])
    return label_chunks(
        maps,
        groups,
        classes=classes,
        scale=settings.scale,
        threshold=settings.threshold,
        rival_names=settings.rival_names,
        min_area=settings.min_area,
        chunk=max(1, CHUNK_BYTES // (4 * pixels)),
    )


def pamr_weights(image: Tensor, size: tuple[int, int]) -> Tensor:
    """PAMR's weights [1, 16, h, w] on the normalised picture [1, 3, h, w], brought to `size`."""
    colours = F.interpolate(image.float(), size=size, mode="bilinear", align_corners=False)
    return neighbour_weights(
        colours,
        distances=PAMR_DISTANCES,
        contrast=PAMR_CONTRAST,
        centres=len(PAMR_DISTANCES),
    )
