"""PIL image -> normalised tensor, as CLIP was trained to see it.

Equal bit for bit to torchvision's Resize(size, BICUBIC), ToTensor() and Normalize(mean, std) on a
PIL image in RGB, without torchvision.
"""

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

from ..method.config import OPENAI_MEAN, OPENAI_STD

MAX_RESIZED = 100_000_000  # pixels: 1.2 GB as a tensor
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


class ImageTransform:
    """A PIL image of any size -> float32 tensor [3, h, w], resized and normalised.

    Every picture becomes RGB with CLIP's own `convert("RGB")` (alpha is dropped, not blended) and
    is then resized, bicubic with antialiasing, without cropping. CLIP converts after resizing; on
    palettes, which Pillow resizes by the nearest pixel, this order is the better one, and on RGB
    there is no difference. Modes of 16 bits (I;16 in any byte order, and I, in which some Pillow
    versions open such files) are scaled from 0..65535 to 0..255 first, not clipped, whatever the
    values are. Mode F has no range of its own and is refused.

    An orientation in the EXIF data is left alone, as upstream does, so the map fits the pixels as
    they are stored; `PIL.ImageOps.exif_transpose` turns a picture beforehand.

    Args:
        size: (height, width) of the result in pixels, or an integer for its short side; the long
            side is then int(size * long / short).
        mean, std: three numbers each, for red, green and blue, on a scale of 0..1.

    Raises:
        TypeError: a size is not an integer, or mean or std are not sequences of numbers.
        ValueError: a size below 1 or not of two sides, not three numbers in mean or std, a std that
            is not above 0 in float32.
    """

    def __init__(
        self,
        size: int | tuple[int, int],
        mean: Iterable[float] = OPENAI_MEAN,
        std: Iterable[float] = OPENAI_STD,
    ) -> None:
        self.size = _checked_size(size)
        self.mean = _three_numbers("mean", mean)
        self.std = _three_numbers("std", std)
        if min(np.float32(value) for value in self.std) <= 0:
            raise ValueError(
                f"std is {self.std}; expected numbers above 0, pixels are divided by it"
            )

    def __call__(self, image: Image.Image) -> Tensor:
        """One image -> float32 tensor [3, h, w], contiguous, sharing no memory with the image.

        Raises:
            TypeError: `image` is not a PIL image.
            ValueError: it has no pixels, would get too many, has a mode that is never RGB (such
                as F), or mode I with values outside 0..65535.
        """
        if not isinstance(image, Image.Image):
            raise TypeError(f"expected a PIL image, got {type(image).__name__}; {_advice(image)}")
        height, width = _target_size(self.size, image.height, image.width)
        # PIL counts (width, height).
        resized = to_rgb(image).resize((width, height), Image.Resampling.BICUBIC)
        # NumPy: in a thread that reads ahead, PyTorch would start threads beside the model's.
        pixels = np.ascontiguousarray(rearrange(np.asarray(resized), "h w c -> c h w"))
        colours = pixels.astype(np.float32)  # [3, h, w]
        colours /= np.float32(255)
        colours -= np.array(self.mean, dtype=np.float32)[:, None, None]
        colours /= np.array(self.std, dtype=np.float32)[:, None, None]
        return torch.from_numpy(colours)

    def __repr__(self) -> str:
        return f"ImageTransform(size={self.size}, mean={self.mean}, std={self.std})"


def get_gem_img_transform(
    img_size: int | tuple[int, int] = (448, 448),
    mean: Iterable[float] | None = None,
    std: Iterable[float] | None = None,
) -> ImageTransform:
    """Transform for pictures that go into a GEM model; None stands for OpenAI's mean or std.

    `img_size` is (height, width), or an integer for the short side. Raises as `ImageTransform`.
    """
    return ImageTransform(
        img_size,
        mean=OPENAI_MEAN if mean is None else mean,
        std=OPENAI_STD if std is None else std,
    )


def _target_size(size: int | tuple[int, int], height: int, width: int) -> tuple[int, int]:
    if height < 1 or width < 1:
        raise ValueError(f"the image has no pixels: its (height, width) is {(height, width)}")
    if isinstance(size, tuple):
        return size
    target = (
        (int(size * height / width), size)
        if width <= height
        else (size, int(size * width / height))
    )
    if target[0] * target[1] > MAX_RESIZED:
        raise ValueError(
            f"an image of {width} x {height} pixels would become {target[1]} x {target[0]} with a"
            f" short side of {size}; expected at most {MAX_RESIZED / 1e6:g} million: crop it first"
        )
    return target


def to_rgb(image: Image.Image) -> Image.Image:
    """The picture in RGB, as `ImageTransform` describes it. Raises ValueError for mode F."""
    if image.mode == "F":
        raise ValueError(
            "mode F (32-bit float) has no fixed range; scale the values to 0..255 and "
            'convert("L") before the transform'
        )
    if image.mode in _SIXTEEN_BIT:
        image = _eight_bit(image)
    elif image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colours, without Pillow's warning about alpha
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise ValueError(
            f"cannot make RGB of mode {image.mode}: {error}; convert the image before the transform"
        ) from error


def _eight_bit(image: Image.Image) -> Image.Image:
    """Grey image of 16 bits -> mode L, 65535 to 255, rounded."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError(
            f"an image of mode {image.mode} is read as 16 bits, 0..65535, but it holds "
            f"{values.min()}..{values.max()}; scale it before the transform"
        )
    return Image.fromarray(((values + 128) // 257).astype(np.uint8))


def _checked_size(size: int | tuple[int, int]) -> int | tuple[int, int]:
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size,)
    if any(isinstance(side, bool) or not isinstance(side, int) for side in sides):
        raise TypeError(f"size is {size!r}; expected an integer or a pair (height, width) of them")
    if isinstance(size, int):
        if size < 1:
            raise ValueError(f"size is {size}; expected at least 1 pixel")
        return size
    if len(sides) != 2 or min(sides) < 1:
        raise ValueError(
            f"size is {size!r}; expected (height, width), each at least 1, "
            "or an integer for the short side"
        )
    return sides[0], sides[1]


def _three_numbers(name: str, values: Iterable[float]) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} is {values!r}; expected three numbers") from error
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{name} is {values!r}; expected three finite numbers: red, green, blue")
    return numbers


def _advice(image: object) -> str:
    if isinstance(image, (str, bytes, Path)):
        return "open the file with PIL.Image.open"
    if isinstance(image, np.ndarray):
        return "make one with PIL.Image.fromarray"
    if isinstance(image, Tensor):
        return "the model takes a normalised tensor without this transform"
    return "open a file with PIL.Image.open or make one with PIL.Image.fromarray"
