"""Formats for other tools: equal to the tools' own code where it is installed, and exact."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image

from gem_lite.pictures.formats import FORMATS
from gem_lite.pictures.outlines import coco_rle, one_ring, outlines, run_lengths
from gem_lite.pictures.shapes import brush_rle
from gem_lite.pictures.writers import Labelled, Writer

NAMES = ["cat", "remote control", "élan/../x"]
masks = arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9)))


def result(name: str = "a", shape: tuple[int, int] = (30, 40), seed: int = 0) -> Labelled:
    random = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype=np.int64)
    labels[3:20, 5:25] = 1
    labels[6:12, 8:14] = 0  # a hole
    labels[8, 10] = 1  # an island in it
    labels[25:, :] = random.integers(0, 3, (shape[0] - 25, shape[1]))  # noise; 3 is never there
    confidence = random.random(shape, dtype=np.float32)
    picture = Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8))
    return Labelled(
        name=name,
        file_name=f"{name}.jpg",
        picture=picture,
        labels=labels,
        confidence=confidence,
        names=NAMES,
    )


def written(kind: str, folder: Path, *results: Labelled) -> tuple[Writer, list[Path]]:
    writer = FORMATS[kind](folder, NAMES)
    paths = [writer.write(each) for each in results]
    writer.close()
    return writer, paths


def filled(rings: list[list[tuple[int, int]]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Pixels whose centres are inside an odd number of windings, counted side by side."""
    inside = np.zeros(shape, dtype=bool)
    for ring in rings:
        for (x, y), (to_x, to_y) in zip(ring, [*ring[1:], ring[0]], strict=True):
            assert x == to_x or y == to_y or ring is None
            if x == to_x:
                inside[min(y, to_y) : max(y, to_y), x:] ^= True
    return inside


@settings(max_examples=300, deadline=None)
@given(masks)
def test_outlines_are_exact(mask: NDArray[np.bool_]) -> None:
    pieces = outlines(mask)
    rings = [ring for piece in pieces for ring in (piece.outer, *piece.holes)]
    assert np.array_equal(filled(rings, mask.shape), mask)
    for ring in rings:
        sides = list(zip(ring, [*ring[1:], ring[0]], strict=True))
        # Corners only: a side along x follows one along y.
        assert all((a[0] == b[0]) != (c[0] == d[0]) for (a, b), (c, d) in zip(sides, sides[1:]))
        assert len(set(sides)) == len(sides) >= 4
    for piece in pieces:
        whole = filled([piece.outer], mask.shape)
        for hole in piece.holes:
            assert not (filled([hole], mask.shape) & ~whole).any()


@settings(max_examples=300, deadline=None)
@given(masks)
def test_runs_and_their_text_are_pycocotools(mask: NDArray[np.bool_]) -> None:
    oracle = pytest.importorskip("pycocotools.mask")
    assert sum(run_lengths(mask)) == mask.size
    theirs = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert coco_rle(mask) == {"size": theirs["size"], "counts": theirs["counts"].decode()}


@pytest.mark.parametrize("density", [0.001, 0.5, 0.999])
def test_large_masks(density: float) -> None:
    oracle = pytest.importorskip("pycocotools.mask")
    mask = np.random.default_rng(0).random((700, 900)) < density
    theirs = oracle.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert coco_rle(mask)["counts"] == theirs["counts"].decode()
    mask[100:600, 100:800] = True
    rings = [ring for piece in outlines(mask) for ring in (piece.outer, *piece.holes)]
    assert np.array_equal(filled(rings, mask.shape), mask)


def test_rings_with_cuts_are_filled_as_the_mask_by_pycocotools() -> None:
    oracle = pytest.importorskip("pycocotools.mask")
    for label in (1, 2):
        mask = result().labels == label
        flat = [
            [float(n) for corner in one_ring(piece) for n in corner] for piece in outlines(mask)
        ]
        polygons = oracle.decode(oracle.merge(oracle.frPyObjects(flat, *mask.shape)))
        assert np.array_equal(polygons.astype(bool), mask)


def test_coco_opens_in_pycocotools(tmp_path: Path) -> None:
    coco = pytest.importorskip("pycocotools.coco")
    results = [result("a"), result("sub/b", (35, 50), seed=1)]
    for kind in ("coco", "coco-polygons"):
        _, (path, _) = written(kind, tmp_path, *results)
        opened = coco.COCO(str(path))
        assert [category["name"] for category in opened.loadCats(opened.getCatIds())] == NAMES
        for number, expected in enumerate(results, start=1):
            (image,) = opened.loadImgs(number)
            assert image["file_name"] == expected.file_name
            assert (image["height"], image["width"]) == expected.labels.shape
            annotations = opened.loadAnns(opened.getAnnIds(number))
            assert [each["category_id"] for each in annotations] == [1, 2]
            for annotation in annotations:
                mask = expected.labels == annotation["category_id"]
                assert np.array_equal(opened.annToMask(annotation).astype(bool), mask)
                assert annotation["area"] == mask.sum()
                rows, columns = np.nonzero(mask)
                x, y, width, height = annotation["bbox"]
                assert (x, y) == (columns.min(), rows.min())
                assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
                assert annotation["score"] == pytest.approx(expected.confidence[mask].mean())


def test_coco_goes_on_from_an_earlier_run(tmp_path: Path) -> None:
    written("coco", tmp_path, result("b"), result("c"))
    writer, _ = written("coco", tmp_path, result("a"), result("c", seed=3))
    assert writer.done("b", "b.jpg") and not writer.done("d", "d.jpg")
    stored = json.loads((tmp_path / "coco.json").read_text())
    assert [image["file_name"] for image in stored["images"]] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [each["id"] for each in stored["annotations"]] == list(range(1, 7))
    both, _ = written("coco", tmp_path / "once", result("a"), result("b"), result("c", seed=3))
    assert json.loads(both.target("").read_text()) == stored
    with pytest.raises(ValueError, match="other words: cat, remote control"):
        FORMATS["coco"](tmp_path, ["dog"])
    (tmp_path / "coco.json").write_text('{"images": 3}')
    with pytest.raises(ValueError, match="is not COCO's JSON"):
        FORMATS["coco"](tmp_path, NAMES)


def test_labels_are_vocs(tmp_path: Path) -> None:
    expected = result("deep/er")
    writer, (path,) = written("labels", tmp_path, expected)
    assert path == tmp_path / "deep" / "er.png" and writer.done("deep/er", "")
    with Image.open(path) as picture:
        assert picture.mode == "P" and np.array_equal(np.asarray(picture), expected.labels)
        assert picture.getpalette()[:9] == [0, 0, 0, 128, 0, 0, 0, 128, 0]
    many = FORMATS["labels"](tmp_path, [str(index) for index in range(300)])
    with Image.open(io.BytesIO(many.encode(expected))) as picture:
        assert picture.mode.startswith("I") and np.array_equal(np.asarray(picture), expected.labels)


def test_a_mask_for_every_word(tmp_path: Path) -> None:
    expected = result()
    _, (folder,) = written("masks", tmp_path, expected)
    files = sorted(folder.iterdir())
    assert [path.name for path in files] == ["01-cat.png", "02-remote_control.png", "03-élan_x.png"]
    for label, path in enumerate(files, start=1):
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("L"))
        assert np.array_equal(pixels, np.where(expected.labels == label, 255, 0))


def test_numpys_arrays(tmp_path: Path) -> None:
    expected = result()
    _, (path,) = written("npz", tmp_path, expected)
    with np.load(path) as stored:
        assert np.array_equal(stored["labels"], expected.labels)
        assert np.array_equal(stored["confidence"], expected.confidence)
        assert stored["names"].tolist() == NAMES


def test_geojson_has_the_pixels(tmp_path: Path) -> None:
    expected = result()
    _, (path,) = written("geojson", tmp_path, expected)
    features = json.loads(path.read_text())["features"]
    assert [each["properties"]["name"] for each in features] == NAMES[:2]
    for feature in features:
        mask = expected.labels == feature["properties"]["label"]
        rings = []
        for polygon in feature["geometry"]["coordinates"]:
            for ring in polygon:
                assert ring[0] == ring[-1]
                rings.append([tuple(corner) for corner in ring[:-1]])
        assert np.array_equal(filled(rings, mask.shape), mask)
        assert feature["properties"]["pixels"] == mask.sum()


def test_yolos_lines_have_the_pixels(tmp_path: Path) -> None:
    expected = result()
    height, width = expected.labels.shape
    _, (path,) = written("yolo", tmp_path, expected)
    assert (tmp_path / "yolo" / "classes.txt").read_text().splitlines() == NAMES
    again = np.zeros(expected.labels.shape, dtype=int)
    for line in path.read_text().splitlines():
        number, *values = line.split()
        places = np.array(values, dtype=float).reshape(-1, 2)
        assert places.min() >= 0 and places.max() <= 1
        corners = [(round(x * width), round(y * height)) for x, y in places]
        ring = [(a, b) for a, b in corners]
        again += (int(number) + 1) * filled_with_cuts(ring, again.shape)
    assert np.array_equal(again, expected.labels)


@settings(max_examples=200, deadline=None)
@given(masks)
def test_brush_strokes_come_back(mask: NDArray[np.bool_]) -> None:
    assert np.array_equal(unpacked(brush_rle(mask)), np.repeat(mask.ravel(), 4) * 255)


def test_label_studio_reads_the_brush(tmp_path: Path) -> None:
    """Also runs above 65,536 values; by Label Studio's own code where it is installed."""
    large = np.zeros((300, 400), dtype=bool)
    large[10:250] = True
    large[40:90, 100:200] = False
    assert np.array_equal(unpacked(brush_rle(large)), np.repeat(large.ravel(), 4) * 255)
    expected = result("deep/er")
    _, (path,) = written("label-studio", tmp_path, expected)
    task = json.loads(path.read_text())
    assert task["data"] == {"image": "deep/er.jpg"}
    strokes = task["predictions"][0]["result"]
    assert [each["value"]["brushlabels"] for each in strokes] == [[name] for name in NAMES[:2]]
    for label, each in enumerate(strokes, start=1):
        height, width = each["original_height"], each["original_width"]
        alpha = unpacked(each["value"]["rle"]).reshape(height, width, 4)[:, :, 3]
        assert np.array_equal(alpha, (expected.labels == label) * 255)
    theirs = pytest.importorskip("label_studio_sdk.converter.brush")
    for mask in (large, expected.labels == 2):
        decoded = theirs.decode_rle(brush_rle(mask)).reshape(*mask.shape, 4)
        assert np.array_equal(decoded, np.repeat(mask[..., None], 4, axis=2) * 255)
        assert np.array_equal(decoded.ravel(), unpacked(theirs.encode_rle(decoded.ravel())))


def unpacked(code: list[int]) -> NDArray[np.uint8]:
    """Values of a run-length code as thi.ng's rle-pack describes it, bit by bit."""
    bits = "".join(f"{byte:08b}" for byte in code)
    place = 0

    def number(size: int) -> int:
        nonlocal place
        place += size
        return int(bits[place - size : place], 2)

    count, word = number(32), number(5) + 1
    sizes = [number(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        same = number(1)
        length = number(sizes[number(2)]) + 1
        values += [number(word)] * length if same else [number(word) for _ in range(length)]
    assert len(values) == count and len(bits) - place < 8
    return np.array(values, dtype=np.uint8)


def filled_with_cuts(ring: list[tuple[int, int]], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """As `filled`, for sides in any direction: at each centre the sides to its left are counted."""
    ys, xs = np.mgrid[: shape[0], : shape[1]] + 0.5
    inside = np.zeros(shape, dtype=bool)
    for (x, y), (to_x, to_y) in zip(ring, [*ring[1:], ring[0]], strict=True):
        if y != to_y:
            crosses = (ys > min(y, to_y)) & (ys < max(y, to_y))
            inside ^= crosses & (x + (ys - y) * (to_x - x) / (to_y - y) < xs)
    return inside


def test_no_metadata_travels(tmp_path: Path) -> None:
    expected = result()
    expected.picture.info.update(comment=b"secret", exif=b"Exif\x00\x00secret", dpi=(1, 1))
    for kind in ("labels", "overlay", "masks"):
        written(kind, tmp_path, expected)
    for path in tmp_path.rglob("*.png"):
        assert b"secret" not in path.read_bytes() and b"eXIf" not in path.read_bytes()
