"""Segmentations as files that other tools take: one interface for every format.

A writer is made with the folder, gets `write(result)` for each picture, from any thread, and
`close()` at the end; `target(name)` is the file that says whether a picture is done. FORMATS has
them by name. To add one: a subclass of `Writer` with `encode`, and a row in FORMATS.
"""

import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .labels import voc_palette
from .outlines import Ring, coco_rle, one_ring, outlines
from .overlays import label_overlay
from .saving import replace_file


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A picture and its segmentation, of the picture's size."""

    name: str  # of its outputs: a relative path without an ending
    file_name: str  # of the picture
    picture: Image.Image  # RGB, to look at; may be smaller than the labels
    labels: NDArray[np.int64]  # [h, w], 0 = background, k + 1 = names[k]
    confidence: NDArray[np.float32]  # [h, w], the winner's probability
    names: Sequence[str]

    def masks(self) -> list[tuple[int, NDArray[np.bool_]]]:
        """(label, mask) of every name that has pixels."""
        present = np.unique(self.labels)
        return [(int(label), self.labels == label) for label in present if label > 0]


class Writer:
    """One file for each picture, in a folder of the format's own or at the top."""

    folder = ""  # inside the output folder
    ending = ".png"

    def __init__(self, output: Path, names: Sequence[str]) -> None:
        self.output, self.names = output / self.folder, list(names)

    def target(self, name: str) -> Path:
        """The file of the picture with this name."""
        return self.output / f"{name}{self.ending}"

    def done(self, name: str, file_name: str) -> bool:
        """Whether this picture was written before."""
        return self.target(name).exists()

    def write(self, result: Labelled) -> Path:
        """Write one picture's file, complete or not at all."""
        path = self.target(result.name)
        replace_file(path, self.encode(result))
        return path

    def encode(self, result: Labelled) -> bytes:
        """What the file holds."""
        raise NotImplementedError

    def close(self) -> None:
        """Write what belongs to all pictures."""


class Labels(Writer):
    """Pascal VOC's form: a palette picture whose values are the labels, 0 = background."""

    def encode(self, result: Labelled) -> bytes:
        """PNG, with 16 bits where 8 are not enough."""
        if len(self.names) > 255:
            return _png(Image.fromarray(result.labels.astype(np.uint16)))
        picture = Image.fromarray(result.labels.astype(np.uint8))
        picture.putpalette(voc_palette())
        return _png(picture)


class Overlay(Writer):
    """The segmentation over the picture, with a legend."""

    folder = "overlay"

    def encode(self, result: Labelled) -> bytes:
        """PNG in RGB."""
        import torch

        return _png(label_overlay(result.picture, torch.from_numpy(result.labels), self.names))


class Masks(Writer):
    """A black and white picture for each word: `masks/NAME/WORD.png`, 255 = the word."""

    folder, ending = "masks", ""

    def write(self, result: Labelled) -> Path:
        """Write a mask for every word, also for one without pixels."""
        path = self.target(result.name)
        for index, name in enumerate(self.names):
            mask = Image.fromarray(result.labels == index + 1)
            replace_file(path / f"{index + 1:02d}-{_file_name(name)}.png", _png(mask))
        return path


class Arrays(Writer):
    """NumPy arrays: labels, confidence, names."""

    folder, ending = "npz", ".npz"

    def encode(self, result: Labelled) -> bytes:
        """Compressed, read with `numpy.load`."""
        file = io.BytesIO()
        np.savez_compressed(
            file,
            labels=result.labels.astype(np.uint16),
            confidence=result.confidence,
            names=np.array(self.names),
        )
        return file.getvalue()


class GeoJSON(Writer):
    """A MultiPolygon for each word, in pixels: x to the right, y down."""

    folder, ending = "geojson", ".geojson"

    def encode(self, result: Labelled) -> bytes:
        """RFC 7946's form: closed rings, holes after the border."""
        features = []
        for label, mask in result.masks():
            polygons = [
                [_closed(piece.outer), *map(_closed, piece.holes)] for piece in outlines(mask)
            ]
            features.append(
                {
                    "type": "Feature",
                    "properties": {
                        "name": self.names[label - 1],
                        "label": label,
                        "pixels": int(mask.sum()),
                        "confidence": _mean(result.confidence[mask]),
                    },
                    "geometry": {"type": "MultiPolygon", "coordinates": polygons},
                }
            )
        return json.dumps({"type": "FeatureCollection", "features": features}).encode()


class YOLO(Writer):
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


class COCO(Writer):
    """One `coco.json` for all: an annotation for each word of each picture, as run lengths.

    What an earlier run left there stays, and its pictures count as done.
    """

    ending = "coco.json"

    def __init__(self, output: Path, names: Sequence[str]) -> None:
        super().__init__(output, names)
        # By file name: the image, and its annotations without numbers.
        self._pictures: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
        path = self.output / self.ending
        if path.is_file():
            self._read(path)

    def _read(self, path: Path) -> None:
        try:
            before = json.loads(path.read_bytes())
            names = [category["name"] for category in before["categories"]]
            for image in before["images"]:
                self._pictures[image["file_name"]] = (image, [])
            by_number = {image["id"]: own for image, own in self._pictures.values()}
            for annotation in before["annotations"]:
                by_number[annotation["image_id"]].append(annotation)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} is not COCO's JSON; move it away") from error
        if names != self.names:
            raise ValueError(f"{path} has other words: {', '.join(names)}; give another --output")

    def target(self, name: str) -> Path:
        """The one file."""
        return self.output / self.ending

    def done(self, name: str, file_name: str) -> bool:
        """Whether this picture is in it."""
        return file_name in self._pictures

    def write(self, result: Labelled) -> Path:
        """Keep a picture's annotations until `close`."""
        height, width = result.labels.shape
        annotations = []
        for label, mask in result.masks():
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            left, top = int(columns[0]), int(rows[0])
            annotations.append(
                {
                    "category_id": label,
                    "segmentation": self.segmentation(mask),
                    "area": int(mask.sum()),
                    "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                    "iscrowd": 0,
                    "score": _mean(result.confidence[mask]),
                }
            )
        image = {"file_name": result.file_name, "width": width, "height": height}
        self._pictures[result.file_name] = (image, annotations)
        return self.target(result.name)

    def segmentation(self, mask: NDArray[np.bool_]) -> Any:
        """A mask in one of COCO's two forms."""
        return coco_rle(mask)

    def close(self) -> None:
        """Write the file."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for number, name in enumerate(sorted(self._pictures), start=1):
            image, own = self._pictures[name]
            images.append({**image, "id": number})
            for annotation in own:
                annotations.append({**annotation, "id": len(annotations) + 1, "image_id": number})
        categories = [{"id": number, "name": name} for number, name in enumerate(self.names, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        replace_file(self.target(""), json.dumps(content).encode())


class COCOPolygons(COCO):
    """The same in `coco-polygons.json`, as polygons: holes are reached by a cut without width."""

    ending = "coco-polygons.json"

    def segmentation(self, mask: NDArray[np.bool_]) -> Any:
        """Rings of numbers x, y, x, y, ..."""
        return [
            [number for corner in one_ring(piece) for number in corner] for piece in outlines(mask)
        ]


FORMATS: dict[str, type[Writer]] = {
    "labels": Labels,
    "overlay": Overlay,
    "masks": Masks,
    "coco": COCO,
    "coco-polygons": COCOPolygons,
    "npz": Arrays,
    "geojson": GeoJSON,
    "yolo": YOLO,
}


def _png(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def _closed(ring: Ring) -> Ring:
    return [*ring, ring[0]]


def _mean(values: NDArray[np.float32]) -> float:
    return round(float(values.mean(dtype=np.float64)), 6)


def _file_name(name: str) -> str:
    return re.sub(r"[^\w-]+", "_", name).strip("_")[:40] or "word"
