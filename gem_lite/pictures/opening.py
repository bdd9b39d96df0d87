"""Opening pictures that somebody else made: upright, in a known format, of bounded size."""

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .transform import to_rgb

# What Pillow decodes by itself, in time that grows as the file does. Left out are formats that it
# hands to another program (EPS) and those that nobody takes photographs in, whose readers are the
# least tested.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".pgm", ".ppm", ".avif", ".jp2"),
)
MAX_PIXELS = 80_000_000  # more than any camera, 240 MB as RGB; Pillow warns a little above it
MAX_SIDE = 65_535  # JPEG's and GIF's own; resizing needs memory by the longer side too
_HEAD_BYTES = 4096
_NETPBM = re.compile(rb"P[0-9A-Za-z]\s")
_NETPBM_HEAD = re.compile(rb"P[456](?:(?:\s|#[^\r\n]*[\r\n])+\d+){2}\s")


class PictureError(ValueError):
    """A file that is not a picture, is damaged, or is too large."""


def open_picture(
    source: str | Path | IO[bytes], *, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """The first frame of a picture in RGB, turned as its EXIF orientation says.

    source: a path, or an open binary file, which then needs a `name` for messages. The number of
    pixels is read from the file's head and checked before anything is decoded. The result has
    pixels only: comments, EXIF data and profiles stay behind.
    Raises FileNotFoundError, or PictureError (a ValueError) for a file of no kind in `FORMATS`,
    is damaged or cut short, has more than `max_pixels` or a side above `MAX_SIDE`.
    """
    label = name or str(source)
    if isinstance(source, str | Path) and not Path(source).is_file():
        raise FileNotFoundError(f"no picture at {label}")
    Image.init()
    known = [kind for kind in FORMATS if kind in Image.OPEN]  # a Pillow may lack some
    try:
        _check_netpbm(source, label)
        with Image.open(source, formats=known) as picture:
            width, height = picture.size
            if width * height > max_pixels or max(width, height) > MAX_SIDE:
                raise PictureError(
                    f"{label} has {width} x {height} pixels; expected at most"
                    f" {max_pixels / 1e6:g} million, and no side above {MAX_SIDE}: make it smaller"
                    " first"
                )
            picture.load()
            upright = to_rgb(_upright(picture))
            upright.info = {}
            return upright
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(f"{label} is not a picture that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise PictureError(f"{label} is too large: {error}") from error
    except MemoryError as error:
        raise PictureError(f"{label} needs more memory than there is: make it smaller") from error
    except Exception as error:  # a damaged file breaks its decoder in every way there is
        raise PictureError(f"{label} cannot be read as a picture ({error})") from error


def as_picture(source: Any, *, name: str = "the picture") -> Image.Image:
    """A picture in RGB from any of the forms that people have one in.

    source: an encoded picture (bytes), a path, Hugging Face's {"bytes", "path"}, a PIL image, or a
    uint8 array [h, w], or [h, w, 1], 3 or 4. The first three are opened as by `open_picture`.
    name: for messages. Raises TypeError for anything else, or as `open_picture`.
    """
    if isinstance(source, Mapping):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes | bytearray | memoryview):
        return open_picture(io.BytesIO(source), name=name)
    if isinstance(source, str | Path):
        return open_picture(source)
    if isinstance(source, Image.Image):
        return to_rgb(source)
    kind = type(source).__name__
    if isinstance(source, np.ndarray):
        pixels = source[:, :, 0] if source.ndim == 3 and source.shape[2] == 1 else source
        plain = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] in (3, 4))
        if plain and pixels.dtype == np.uint8 and pixels.size:
            return to_rgb(Image.fromarray(pixels))
        kind = f"an array of {source.dtype}, shape {list(source.shape)}"
    raise TypeError(
        f"{name} is {kind}; expected an encoded picture (bytes), a path, a PIL image, or a uint8"
        " array [h, w, 3]"
    )


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except Exception:  # damaged EXIF data says nothing; the pixels are fine
        return picture.copy()


def _check_netpbm(source: str | Path | IO[bytes], label: str) -> None:
    """Refuse Netpbm's kinds in text, and long heads: Pillow reads both letter by letter.

    In a text with comments its time grows with the square of their number.
    """
    if isinstance(source, str | Path):
        with open(source, "rb") as file:
            head = file.read(_HEAD_BYTES)
    else:
        start = source.tell()
        head = source.read(_HEAD_BYTES)
        source.seek(start)
    if _NETPBM.match(head) and not _NETPBM_HEAD.match(head):
        raise PictureError(
            f"{label} is a PPM, PGM or PBM written as text, or has a long head; save it as PNG"
        )
