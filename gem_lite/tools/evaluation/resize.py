"""Bilinear resizing of 8-bit pictures as the field's evaluations do it: OpenCV's, bit for bit.

OpenCV's `resize(..., INTER_LINEAR)` works in integers. Pixel i of the result lies at (i + 0.5) *
scale - 0.5 of the source; its two neighbours' weights are rounded to 1/2048, rows are mixed first
and cut to 1/128, columns second and cut to 1/4, and only the last step rounds. There is no
antialiasing. Halving both sides exactly is the mean of four pixels.
"""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
_UNIT = 2048  # a weight of 1


def resize_bilinear(pixels: Pixels, height: int, width: int) -> Pixels:
    """uint8 [h, w, channels] -> uint8 [height, width, channels]."""
    source = pixels.astype(np.int32)
    if pixels.shape[:2] == (2 * height, 2 * width):
        total = source[::2, ::2] + source[1::2, ::2] + source[::2, 1::2] + source[1::2, 1::2]
        return ((total + 2) >> 2).astype(np.uint8)
    left, right, far = _neighbours(pixels.shape[1], width)
    # At the sides the border's pixel counts alone; above and below it counts twice.
    far[(left < 0) | (left >= pixels.shape[1] - 1)] = 0
    near = _weights(1 - far)[:, None]
    left, right = (each.clip(0, pixels.shape[1] - 1) for each in (left, right))
    mixed = (source[:, left] * near + source[:, right] * _weights(far)[:, None]) >> 4
    upper, lower, far = _neighbours(pixels.shape[0], height)
    upper, lower = (each.clip(0, pixels.shape[0] - 1) for each in (upper, lower))
    above = (mixed[upper] * _weights(1 - far)[:, None, None]) >> 16
    below = (mixed[lower] * _weights(far)[:, None, None]) >> 16
    return ((above + below + 2) >> 2).astype(np.uint8)


def _neighbours(
    source: int, target: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """For each pixel of the result: the one before, the one after, how far it is from the first."""
    scale = 1 / (target / source)
    place = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    before = np.floor(place)
    return before.astype(np.int64), before.astype(np.int64) + 1, place - before


def _weights(parts: NDArray[np.float32]) -> NDArray[np.int32]:
    return np.rint(parts * np.float32(_UNIT)).astype(np.int32)
