"""Outlines on the earth: GeoTIFFs as rasterio writes them, GeoJSON as RFC 7946 wants it."""

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from gem_lite.pictures.geo import world_of
from gem_lite.tools.cli import main

rasterio = pytest.importorskip("rasterio")
LEFT, TOP, METRES = 500_000.0, 5_400_000.0, 10.0  # UTM 32 N: 9 degrees east, on its middle


def write_tiff(path: Path, pixels: NDArray[np.uint8], **place: object) -> None:
    height, width = pixels.shape[:2]
    options = {"driver": "GTiff", "height": height, "width": width, "count": 3, "dtype": "uint8"}
    with rasterio.open(path, "w", **options, **place) as file:
        file.write(np.moveaxis(pixels, 2, 0))


@pytest.fixture
def tiff(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    transform = rasterio.transform.from_origin(LEFT, TOP, METRES, METRES)
    write_tiff(tmp_path / "field.tif", pixels, crs="EPSG:32632", transform=transform)
    return tmp_path / "field.tif"


def test_corners_lie_where_the_file_says(tiff: Path) -> None:
    place = world_of(tiff, (40, 60))
    corners = [(0, 0), (60, 0), (60, 40), (0, 40)]
    # Straight from the projection, without the transform: the corner and 600 m east, 400 m south.
    xs, ys = [LEFT, LEFT + 600, LEFT + 600, LEFT], [TOP, TOP, TOP - 400, TOP - 400]
    longitudes, latitudes = rasterio.warp.transform("EPSG:32632", "EPSG:4326", xs, ys)
    expected = np.array([longitudes, latitudes]).T
    np.testing.assert_allclose(place(corners), expected, atol=1e-8)
    assert place([(0, 0)])[0][0] == pytest.approx(9.0)  # UTM's false easting is the middle


def test_files_without_a_place(tiff: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is turned by its orientation tag"):
        world_of(tiff, (60, 40))
    Image.new("RGB", (9, 9)).save(tmp_path / "plain.tif")
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning):
        with pytest.raises(ValueError, match="says not where on the earth it lies"):
            world_of(tmp_path / "plain.tif", (9, 9))
    Image.new("RGB", (9, 9)).save(tmp_path / "plain.png")
    with pytest.raises(ValueError, match="plain.png is no GeoTIFF"):
        world_of(tmp_path / "plain.png", (9, 9))


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_segment_writes_longitudes_and_latitudes(
    tiff: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tiff.parent)
    Image.new("RGB", (9, 9)).save("plain.tif")

    def run(*more: str) -> tuple[int, list[dict[str, object]]]:
        words = ["-p", "cat", "dog", "--background", "none", "--pretrained", str(weights)]
        code = main(["segment", *more, *words, "--json"])
        return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert run("field.tif", "--format", "geojson", "labels", "-o", "pixels")[0] == 0
    code, entries = run("field.tif", "plain.tif", "--format", "geojson", "--world", "-o", "world")
    assert code == 1 and len(entries) == 2  # the other has no place, and is told by itself
    assert "says not where" in str(entries[1]["error"])
    pixels, world = (
        json.loads(Path(kind, "geojson", "field.geojson").read_text())["features"]
        for kind in ("pixels", "world")
    )
    place = world_of(tiff, (40, 60))
    covered = 0.0
    for before, after in zip(pixels, world, strict=True):
        assert before["properties"] == after["properties"]
        polygons = before["geometry"]["coordinates"], after["geometry"]["coordinates"]
        for ours, theirs in zip(*polygons, strict=True):
            for index, (ring, placed) in enumerate(zip(ours, theirs, strict=True)):
                corners = place([(x, y) for x, y in ring])
                assert sorted(map(tuple, placed)) == sorted(map(tuple, corners))
                assert (area(placed) > 0) == (index == 0)  # RFC 7946: borders against the clock
                covered += area(placed)
    assert covered == pytest.approx(
        area(place([(0, 0), (0, 40), (60, 40), (60, 0), (0, 0)])), rel=1e-3
    )
    assert main(["segment", "field.tif", "-p", "cat", "--world"]) == 2
    assert "--world is of --format geojson" in capsys.readouterr().err


def area(ring: list[list[float]]) -> float:
    x, y = np.array(ring).T
    return float((x[:-1] * y[1:] - x[1:] * y[:-1]).sum())
