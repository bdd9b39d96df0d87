"""From a picture to labels, in the stages of the field's evaluations.

picture -> resized on 8 bits -> normalised -> windows -> cosines of all names -> their maps,
averaged where windows overlap -> the picture's own size -> PAMR -> softmax, best class, threshold.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ...method.heatmap import similarity, upsample
from ...method.refine import neighbour_weights, refine
from ...method.segment import Segmentation, label_chunks
from ...method.windows import window_features
from ...pictures.transform import to_rgb
from ...predictor import GEMPredictor
from .protocols import Settings
from .resize import resize_bilinear

CHUNK_BYTES = 64 * 2**20  # maps of one chunk of names
PAMR_DISTANCES, PAMR_CONTRAST = (8, 16), 0.1


class WindowScores(NamedTuple):
    """The cosines of all names in every window of one picture."""

    scores: Tensor  # [windows, p, n]
    grid: tuple[int, int]  # patches of a window, n = h * w
    places: tuple[tuple[int, int], ...]  # (top, left) of each window in pixels
    window: tuple[int, int]  # (h, w) in pixels
    padding: tuple[int, int, int, int]  # left, right, top, bottom: pixels around each window
    size: tuple[int, int]  # (h, w) of the resized picture


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


def window_scores(
    model: GEMPredictor, image: Tensor, text: Tensor, settings: Settings, *, plain: bool = False
) -> WindowScores:
    """Encode the windows of one normalised picture [1, 3, h, w], and score all names in them.

    text: embeddings [p, e]. plain: plain CLIP's patches.
    """
    patch = model.network.config.image.patch
    height, width = image.shape[-2:]
    window = settings.window
    window_size = (height, width) if window is None else (min(window, height), min(window, width))
    pad = settings.pad and window is not None
    padding = patch_padding(*window_size, patch) if pad else (0, 0, 0, 0)

    def encode(part: Tensor) -> tuple[Tensor, tuple[int, int]]:
        features = model.encode_image(F.pad(part, padding))
        return features.clip if plain else features.gem, features.grid

    windows = window_features(
        encode,
        image,
        window=window_size,
        stride=None if window is None or settings.stride is None else (settings.stride,) * 2,
        flip=settings.flip,
        batch=1,
    )
    # [views, windows, 1, n, e]. Of all names at once: a name that a class and background share has
    # the same score for both, to the last digit.
    scores = torch.stack([similarity(view[:, 0], text) for view in windows.views]).mean(dim=0)
    return WindowScores(scores, windows.grid, windows.places, window_size, padding, windows.size)


def name_maps(
    windows: WindowScores, names: Sequence[int], size: tuple[int, int], *, straight: bool = False
) -> Tensor:
    """Maps [1, k, h, w] of some names at `size`, bilinear, averaged where windows overlap.

    straight: of the whole picture as one window, without the resized picture's size between.
    """
    scores = windows.scores[:, list(names)]  # [windows, k, n]
    if straight:
        return upsample(scores, windows.grid, size)
    left, right, top, bottom = windows.padding
    height, width = windows.window
    total = scores.new_zeros(1, len(names), *windows.size)
    count = scores.new_zeros(windows.size)
    padded = (height + top + bottom, width + left + right)
    for (row, column), part in zip(windows.places, scores, strict=True):
        whole = upsample(part[None], windows.grid, padded)
        inside = whole[..., top : top + height, left : left + width]
        total[..., row : row + height, column : column + width] += inside
        count[row : row + height, column : column + width] += 1
    return F.interpolate(total / count, size=size, mode="bilinear", align_corners=False)


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
    windows = window_scores(model, image, text, settings, plain=plain)
    input_size = (image.shape[-2], image.shape[-1])
    straight = settings.straight and settings.window is None
    colours = neighbour_weights(image) if settings.refine else None
    near = pamr_weights(image, size) if settings.pamr else None

    def maps(names: Sequence[int]) -> Tensor:
        if colours is None:
            part = name_maps(windows, names, size, straight=straight)
        else:
            part = name_maps(windows, names, input_size)
            part = refine(part, colours, steps=settings.refine)
            part = F.interpolate(part, size=size, mode="bilinear", align_corners=False)
        if near is not None:
            part = refine(part, near, distances=PAMR_DISTANCES, steps=settings.pamr)
        return part

    pixels = max(size[0] * size[1], input_size[0] * input_size[1])
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
