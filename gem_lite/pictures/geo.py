"""Where pixels lie on the earth: a GeoTIFF's transform, read with rasterio (extra `geo`)."""

from collections.abc import Sequence
from pathlib import Path

from .writers import Place


def world_of(path: Path, size: tuple[int, int]) -> Place:
    """From corners (x, y) between a picture's pixels to longitude and latitude, WGS 84.

    size: (h, w) of the picture as it was opened. Raises ValueError for a file that is no GeoTIFF,
    lies nowhere, or was turned when it was opened, and where rasterio is missing.
    """
    try:
        import rasterio
        from rasterio.warp import transform
    except ImportError as error:
        raise ValueError(
            "places on the earth need rasterio: pip install 'gem_lite[geo]'"
        ) from error
    try:
        with rasterio.open(path, driver="GTiff") as data:
            crs, affine, own = data.crs, data.transform, (data.height, data.width)
    except rasterio.errors.RasterioIOError as error:
        raise ValueError(f"{path} is no GeoTIFF ({error})") from error
    if crs is None or affine.is_identity:
        raise ValueError(f"{path} says not where on the earth it lies; leave out --world")
    if own != size:
        raise ValueError(f"{path} is turned by its orientation tag; save it upright first")

    def place(corners: Sequence[tuple[int, int]]) -> list[list[float]]:
        a, b, c, d, e, f = affine[:6]
        xs = [a * x + b * y + c for x, y in corners]
        ys = [d * x + e * y + f for x, y in corners]
        xs, ys = transform(crs, "EPSG:4326", xs, ys)
        return [[round(x, 9), round(y, 9)] for x, y in zip(xs, ys, strict=True)]

    return place
