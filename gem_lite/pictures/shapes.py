"""Segmentations as outlines, or strokes of a brush: GeoJSON, YOLO, Label Studio."""

import itertools
import json

import numpy as np
from numpy.typing import NDArray

from .coco import mean_confidence
from .outlines import Ring, one_ring, outlines, run_lengths
from .saving import replace_file
from .writers import FileWriter, Labelled, Place

_RUNS = (4, 8, 12, 16)  # sizes in bits that a run's counter may have in Label Studio's code


class GeoJSON(FileWriter[Labelled]):
    """A MultiPolygon for each word, in pixels (x to the right, y down) or on the earth.

    There, in longitude and latitude, borders run against the clock and holes with it (RFC 7946).
    """

    folder, ending = "geojson", ".geojson"

    def encode(self, result: Labelled) -> bytes:
        """RFC 7946's form: closed rings, holes after the border."""
        features = []
        for label, mask in result.masks():
            polygons = [
                [
                    _closed(ring, result.world, hole=ring is not piece.outer)
                    for ring in (piece.outer, *piece.holes)
                ]
                for piece in outlines(mask)
            ]
            features.append(
                {
                    "type": "Feature",
                    "properties": {
                        "name": self.names[label - 1],
                        "label": label,
                        "pixels": int(mask.sum()),
                        "confidence": mean_confidence(result.confidence, mask),
                    },
                    "geometry": {"type": "MultiPolygon", "coordinates": polygons},
                }
            )
        return json.dumps({"type": "FeatureCollection", "features": features}).encode()


class YOLO(FileWriter[Labelled]):
    """Ultralytics' segmentation labels: `class x y x y ...` a line, parts of the sides; and names.

    `classes.txt` beside them has the names, the class 0 in its first line.
    """

    folder, ending = "yolo", ".txt"

    def encode(self, result: Labelled) -> bytes:
        """A line for each piece of each word; a picture without any has an empty file."""
        height, width = result.labels.shape
        lines = []
        for label, mask in result.masks():
            for piece in outlines(mask):
                numbers = [f"{x / width:.6g} {y / height:.6g}" for x, y in one_ring(piece)]
                lines.append(f"{label - 1} {' '.join(numbers)}\n")
        return "".join(lines).encode()

    def close(self) -> None:
        """Write the names."""
        text = "".join(f"{name}\n" for name in self.names)
        replace_file(self.output / "classes.txt", text.encode())


class LabelStudio(FileWriter[Labelled]):
    """A task of Label Studio's with a prediction: a brush's strokes for each word.

    `data.image` is the picture's file name; put the address under which Label Studio finds it
    there. The labelling interface needs `<Image name="image">` and `<BrushLabels name="label">`.
    """

    folder, ending = "label-studio", ".json"

    def encode(self, result: Labelled) -> bytes:
        """One task, as the import and the storages of Label Studio take it."""
        height, width = result.labels.shape
        strokes = [
            {
                "id": f"{result.name}-{label}",
                "type": "brushlabels",
                "from_name": "label",
                "to_name": "image",
                "original_width": width,
                "original_height": height,
                "image_rotation": 0,
                "score": mean_confidence(result.confidence, mask),
                "value": {
                    "format": "rle",
                    "rle": brush_rle(mask),
                    "brushlabels": [self.names[label - 1]],
                },
            }
            for label, mask in result.masks()
        ]
        prediction = {"model_version": "gem_lite", "result": strokes}
        task = {"data": {"image": result.file_name}, "predictions": [prediction]}
        return json.dumps(task).encode()


def brush_rle(mask: NDArray[np.bool_]) -> list[int]:
    """A mask [h, w] as Label Studio's brush: bytes of a run-length code of RGBA pixels, 0 or 255.

    The code (thi.ng's rle-pack) is a string of bits: the number of values in 32, the bits of a
    value less one in 5, four sizes of run counters less one in 4 each; then for each run a 1,
    which of the four in 2, the run less one in so many, and the value.
    """
    bits = [f"{4 * mask.size:032b}{8 - 1:05b}", *(f"{size - 1:04b}" for size in _RUNS)]
    value = 0
    for run in run_lengths(mask.T):  # along the rows
        left = 4 * run
        while left:
            part = min(left, 1 << _RUNS[-1])
            which = next(k for k, size in enumerate(_RUNS) if part <= 1 << size)
            bits.append(f"1{which:02b}{part - 1:0{_RUNS[which]}b}{value:08b}")
            left -= part
        value = 255 - value
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _closed(ring: Ring, world: Place | None, *, hole: bool) -> list[list[float]] | Ring:
    closed = [*ring, ring[0]]
    if world is None:
        return closed
    placed = world(closed)
    pairs = itertools.pairwise(placed)
    area = sum(x * other_y - other_x * y for (x, y), (other_x, other_y) in pairs)
    return placed[::-1] if (area < 0) != hole else placed
