"""COCO's JSON: annotations of pictures as run lengths or polygons."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .outlines import coco_rle, one_ring, outlines
from .saving import replace_file
from .writers import Labelled, Writer, word_masks


def annotations(
    labels: NDArray[np.integer],
    confidence: NDArray[np.float32],
    segmentation: Callable[[NDArray[np.bool_]], Any] = coco_rle,
) -> list[dict[str, Any]]:
    """COCO's annotations of one picture, without the numbers that only a whole file gives.

    labels: [h, w], 0 = background; a label is its category's number. confidence: [h, w], of which
    a word's score is the mean. Words without pixels are left out.
    """
    regions = []
    for label, mask in word_masks(labels):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        left, top = int(columns[0]), int(rows[0])
        regions.append(
            {
                "category_id": label,
                "segmentation": segmentation(mask),
                "area": int(mask.sum()),
                "bbox": [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top],
                "iscrowd": 0,
                "score": mean_confidence(confidence, mask),
            }
        )
    return regions


def polygons(mask: NDArray[np.bool_]) -> list[list[int]]:
    """Rings of numbers x, y, x, y, ..., a ring for each piece."""
    return [[number for corner in one_ring(piece) for number in corner] for piece in outlines(mask)]


def mean_confidence(confidence: NDArray[np.float32], mask: NDArray[np.bool_]) -> float:
    """Of the pixels in a mask, to six places."""
    return round(float(confidence[mask].mean(dtype=np.float64)), 6)


class COCO(Writer[Labelled]):
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
        own = annotations(result.labels, result.confidence, self.segmentation)
        image = {"file_name": result.file_name, "width": width, "height": height}
        self._pictures[result.file_name] = (image, own)
        return self.target(result.name)

    def segmentation(self, mask: NDArray[np.bool_]) -> Any:
        """A mask in one of COCO's two forms."""
        return coco_rle(mask)

    def close(self) -> None:
        """Write the file."""
        images: list[dict[str, Any]] = []
        every: list[dict[str, Any]] = []
        for number, name in enumerate(sorted(self._pictures), start=1):
            image, own = self._pictures[name]
            images.append({**image, "id": number})
            for annotation in own:
                every.append({**annotation, "id": len(every) + 1, "image_id": number})
        categories = [{"id": number, "name": name} for number, name in enumerate(self.names, 1)]
        content = {"images": images, "annotations": every, "categories": categories}
        replace_file(self.target(""), json.dumps(content).encode())


class COCOPolygons(COCO):
    """The same in `coco-polygons.json`, as polygons: holes are reached by a cut without width."""

    ending = "coco-polygons.json"

    def segmentation(self, mask: NDArray[np.bool_]) -> Any:
        """Rings."""
        return polygons(mask)
