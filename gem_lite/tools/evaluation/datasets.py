"""The data sets' folders as published: which picture belongs to which labels, and what those mean.

Labels come out in the package's convention: 0 = background, k + 1 = class k, IGNORED = not counted.
Only Pillow and numpy read them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .context import MAX_PIXELS
from .layouts import IGNORED, LAYOUTS, UNKNOWN, Item, Table, counted
from .names import read_names, shipped


class LayoutError(FileNotFoundError):
    """A folder that is not the data set; `drawing` shows what was expected, line by line."""

    def __init__(self, problem: str, drawing: str) -> None:
        super().__init__(problem)
        self.drawing = drawing


@dataclass(frozen=True)
class SegmentationSet:
    """A data set, ready to be read."""

    name: str
    classes: tuple[tuple[str, ...], ...]  # names of each class, without background
    background: bool  # whether 0 is a class that is scored
    items: tuple[Item, ...]
    table: Table

    def renamed(self, classes: tuple[tuple[str, ...], ...]) -> "SegmentationSet":
        """The same set under other class names. Raises ValueError for another number of them."""
        if len(classes) != len(self.classes):
            raise ValueError(
                f"{len(classes)} class names for {self.name}; expected {len(self.classes)}"
            )
        return replace(self, classes=classes)

    def truth(self, item: Item) -> NDArray[np.int16]:
        """Labels [h, w] at the picture's own size. Raises ValueError for values out of range."""
        values = _picture_values(item.labels) if item.read is None else item.read()
        labels = self.table[values.astype(np.uint8)]
        if (labels == UNKNOWN).any():
            wrong = int(values[labels == UNKNOWN].max())
            raise ValueError(
                f"{item.labels} holds the value {wrong}, which {self.name} with"
                f" {len(self.classes)} classes does not have"
            )
        return labels


def _picture_values(path: Path) -> NDArray[np.generic]:
    try:
        with Image.open(path, formats=("PNG",)) as stored:
            if stored.width * stored.height > MAX_PIXELS:
                raise ValueError(f"{stored.width} x {stored.height} pixels")
            mode, values = stored.mode, np.asarray(stored)
    except Exception as error:  # a damaged file breaks its decoder in every way there is
        raise ValueError(f"{path} cannot be read as a picture ({error})") from error
    if mode not in ("P", "L", "1", "I;16", "I"):
        raise ValueError(f"{path} has mode {mode}; expected class numbers (P or L)")
    if values.max(initial=0) > 255 or values.min(initial=0) < 0:
        raise ValueError(f"{path} holds values outside 0..255; expected class numbers")
    return values


def open_set(
    name: str, root: Path, *, split: str | None = None, names: str = ""
) -> SegmentationSet:
    """A known data set below `root`, which is its own folder or one of those around it.

    names: a suffix for another wording of the class names, such as "-sclip". Raises ValueError for
    an unknown data set, FileNotFoundError with the expected layout when `root` has another one.
    """
    if name not in LAYOUTS:
        raise ValueError(f"no data set {name!r}; known: {', '.join(LAYOUTS)}, folder, openimages")
    layout = LAYOUTS[name]
    try:
        items, table = layout.find(root, split or layout.split)
    except FileNotFoundError as error:
        raise LayoutError(
            f"{root} is not {name} as published: {error} (download: {layout.page})", layout.tree
        ) from error
    _unique(items)
    classes = read_names(shipped(layout.names + names))
    return SegmentationSet(name, classes, layout.background, tuple(items), table)


def open_folder(
    images: Path,
    labels: Path,
    names: Path,
    *,
    zero: str = "background",
    ignored: Sequence[int] = (255,),
) -> SegmentationSet:
    """Any two folders of pictures and of PNGs with class numbers, paired by their names.

    names: a file with the names of a class in each line. zero: what the number 0 is: "background"
    (as in VOC), "ignored" (as in ADE20K; both count classes from 1), or "class", the first one.
    ignored: numbers that are not counted. Raises FileNotFoundError or ValueError.
    """
    for folder in (images, labels):
        if not folder.is_dir():
            raise LayoutError(
                f"no folder {folder}; give --images, --labels and --names for others", _FOLDER_TREE
            )
    classes = read_names(names)
    truths = {path.stem: path for path in sorted(labels.glob("*.png"))}
    pictures = [path for path in sorted(images.iterdir()) if path.suffix.lower() in _PICTURES]
    items = [Item(path.stem, path, truths[path.stem]) for path in pictures if path.stem in truths]
    if not items:
        raise LayoutError(
            f"no picture in {images} has a PNG of the same name in {labels}", _FOLDER_TREE
        )
    _unique(items)
    table = counted(len(classes), zero)
    for value in ignored:
        table[value] = IGNORED
    return SegmentationSet("folder", classes, zero == "background", tuple(items), table)


_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
_FOLDER_TREE = """\
  ROOT/images/a.jpg
  ROOT/labels/a.png   palette or grey PNG of class numbers
  ROOT/names.txt      one class a line"""


def _unique(items: Sequence[Item]) -> None:
    seen: set[str] = set()
    for item in items:
        if item.name in seen:
            raise ValueError(f"two pictures are called {item.name}; expected one of each name")
        seen.add(item.name)
