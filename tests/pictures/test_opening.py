"""Files that somebody else made: bounded in time and memory, and nothing of them but pixels."""

import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from gem_lite.pictures.opening import MAX_SIDE, PictureError, open_picture
from gem_lite.pictures.saving import save_picture
from gem_lite.pictures.transform import ImageTransform


def opened(data: bytes) -> Image.Image:
    return open_picture(io.BytesIO(data), name="it")


def png_head(width: int, height: int) -> bytes:
    """A PNG that claims a size; its pixels would be zeros."""
    body = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    pixels = zlib.compress(bytes((width + 1) * height)) if width * height < 1e8 else b""
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", body) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(39_000_000, 1), (1, 39_000_000), (MAX_SIDE + 1, 10)])
def test_long_sides_are_refused_before_decoding(size: tuple[int, int]) -> None:
    data = png_head(*size)
    start = time.process_time()
    with pytest.raises(PictureError, match="no side above 65535"):
        opened(data)
    assert time.process_time() - start < 0.5


def test_the_longest_side_is_taken() -> None:
    assert opened(png_head(MAX_SIDE, 3)).size == (MAX_SIDE, 3)


def test_resizing_is_bounded() -> None:
    """A short side of 448 would make this picture 448 x 29 million."""
    with pytest.raises(ValueError, match="would become 29359680 x 448.*crop it"):
        ImageTransform(448)(Image.new("L", (MAX_SIDE, 1)))
    assert ImageTransform((8, 8))(Image.new("L", (MAX_SIDE, 1))).shape == (3, 8, 8)


@pytest.mark.parametrize(
    "head",
    [
        *(b"P1\n4 4\n", b"P2\n4 4\n255\n", b"P3\n4 4\n255\n", b"P7\nWIDTH 4\n", b"PF\n4 4\n1\n"),
        b"P5\n" + b"# comment\n" * 10_000 + b"4 4\n255\n",
        b"P6 " + b" " * 10_000 + b"4 4 255\n",
    ],
)
def test_netpbm_as_text_is_refused(head: bytes, tmp_path: Path) -> None:
    """Pillow's time for comments in a text grows with the square of their number."""
    data = head + b"# comment\n" * 200_000 + b"1 " * 100
    (tmp_path / "it.ppm").write_bytes(data)
    start = time.process_time()
    for source in (io.BytesIO(data), tmp_path / "it.ppm"):
        with pytest.raises(PictureError, match="save it as PNG|is not a picture"):
            open_picture(source, name="it")
    assert time.process_time() - start < 0.5


def test_binary_netpbm_is_read() -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    for head in (b"P6\n4 4\n255\n", b"P6 # by hand\n# twice\n4\t4 # size\n255\n"):
        assert np.array_equal(np.asarray(opened(head + pixels.tobytes())), pixels)
    assert opened(b"P5 4 4 255\n" + bytes(16)).size == (4, 4)
    assert opened(b"P4 8 2\n\x00\xff").size == (8, 2)


def test_metadata_stay_behind(tmp_path: Path) -> None:
    """A GIF's long comment, EXIF data, texts and profiles are not written into what we make."""
    picture = Image.new("RGB", (8, 8), "teal")
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "secret")
    exif = Image.Exif()
    exif[0x010E] = "secret"
    files = []
    for kind, options in (
        ("GIF", {"comment": b"secret" * 12_000}),
        ("PNG", {"pnginfo": text, "exif": exif, "icc_profile": b"secret"}),
        ("JPEG", {"comment": b"secret", "exif": exif, "icc_profile": b"secret"}),
        ("WEBP", {"exif": exif, "xmp": b"secret"}),
        ("TIFF", {"exif": exif, "description": "secret"}),
    ):
        file = io.BytesIO()
        picture.save(file, kind, **options)
        assert b"secret" in file.getvalue() or kind in ("PNG", "GIF")
        files.append(file.getvalue())
    for data in files:
        read = opened(data)
        assert read.info == {} and not read.getexif()
        for ending in ("png", "jpg", "webp", "gif", "tiff"):
            save_picture(read, tmp_path / f"it.{ending}")
            written = (tmp_path / f"it.{ending}").read_bytes()
            assert b"secret" not in written and b"Exif" not in written and b"eXIf" not in written
