"""How each data set lies on the disk as published, and what the numbers in its labels mean."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .context import json_labels, mat_labels

Table = NDArray[np.int16]  # [256]: label for each value of a stored picture
IGNORED = -1  # of a pixel that is not counted
UNKNOWN = -2  # of a value that must not occur


@dataclass(frozen=True)
class Item:
    """One picture and its labels."""

    name: str  # unique in the data set; predictions are saved under it
    image: Path
    labels: Path  # a picture, or what `read` takes the values from
    read: Callable[[], NDArray[np.uint8]] | None = None


@dataclass(frozen=True)
class Layout:
    """How a data set lies on the disk."""

    names: str
    background: bool
    page: str
    tree: str
    find: Callable[[Path, str], tuple[list[Item], Table]]
    split: str = "val"


def counted(classes: int, zero: str) -> Table:
    """The table for numbers that count classes from 1, or from 0."""
    table = np.full(256, UNKNOWN, dtype=np.int16)
    if zero == "class":
        table[:classes] = np.arange(1, classes + 1)
    else:
        table[1 : classes + 1] = np.arange(1, classes + 1)
        table[0] = 0 if zero == "background" else IGNORED
    return table


def _with_void(classes: int, zero: str) -> Table:
    table = counted(classes, zero)
    table[255] = IGNORED
    return table


def _inside(root: Path, *candidates: str) -> Path:
    """The first of these folders that is there."""
    for candidate in candidates:
        if (root / candidate).is_dir():
            return root / candidate
    raise FileNotFoundError(f"there is no folder {candidates[0]}")


def _base(root: Path, marker: str, *around: str) -> Path:
    """The data set's own folder: `root`, or one of `around` in it, whichever has `marker`."""
    for base in (root, *(root / folder for folder in around)):
        if (base / marker).exists():
            return base
    raise FileNotFoundError(f"there is no {marker}")


def _listed(base: Path, listing: str, labels: str) -> list[Item]:
    path = base / listing
    if not path.is_file():
        raise FileNotFoundError(f"there is no {listing}")
    folder = _inside(base, labels)
    stems = path.read_text(encoding="utf-8").split()
    if not stems:
        raise FileNotFoundError(f"{listing} names no picture")
    items = [Item(s, base / "JPEGImages" / f"{s}.jpg", folder / f"{s}.png") for s in stems]
    for item in items:
        if not item.image.is_file() or not item.labels.is_file():
            missing = item.labels if item.image.is_file() else item.image
            raise FileNotFoundError(f"{listing} names {item.name}, but there is no {missing}")
    return items


def _voc(zero: str) -> Callable[[Path, str], tuple[list[Item], Table]]:
    def find(root: Path, split: str) -> tuple[list[Item], Table]:
        base = _base(root, "SegmentationClass", "VOC2012", "VOCdevkit/VOC2012")
        items = _listed(base, f"ImageSets/Segmentation/{split}.txt", "SegmentationClass")
        return items, _with_void(20, zero)

    return find


def _context(zero: str) -> Callable[[Path, str], tuple[list[Item], Table]]:
    def find(root: Path, split: str) -> tuple[list[Item], Table]:
        base = _base(root, "JPEGImages", "VOC2010", "VOCdevkit/VOC2010")
        if (base / "SegmentationClassContext").is_dir():
            listing = f"ImageSets/SegmentationContext/{split}.txt"
            items = _listed(base, listing, "SegmentationClassContext")
        else:
            items = _context_as_published(root, base, split)
        return items, _with_void(59, zero)

    return find


def _context_as_published(root: Path, base: Path, split: str) -> list[Item]:
    for folder in (base, root):
        merged, mats = folder / "trainval_merged.json", folder / "trainval"
        if merged.is_file():
            labels = json_labels(merged, split)
            items = [
                Item(Path(name).stem, base / "JPEGImages" / name, merged, read)
                for name, read in sorted(labels.items())
            ]
            break
        if any(mats.glob("*.mat")):
            listed = (base / "ImageSets" / part / f"{split}.txt" for part in _CONTEXT_LISTS)
            listing = next((path for path in listed if path.is_file()), None)
            if listing is None:
                raise FileNotFoundError(f"there is no ImageSets/Main/{split}.txt")
            items = []
            for stem in listing.read_text(encoding="utf-8").split():
                path = mats / f"{stem}.mat"
                if path.is_file():  # some pictures of VOC have no labels of Context
                    image = base / "JPEGImages" / f"{stem}.jpg"
                    items.append(Item(stem, image, path, partial(mat_labels, path)))
            break
    else:
        raise FileNotFoundError(
            "there is no SegmentationClassContext, trainval_merged.json or trainval/*.mat"
        )
    if not items:
        raise FileNotFoundError(f"there are no labels of the split {split}")
    for item in items:
        if not item.image.is_file():
            raise FileNotFoundError(
                f"{item.labels.name} has {item.name}, but there is no {item.image}"
            )
    return items


_CONTEXT_LISTS = ("SegmentationContext", "Main")


def _ade(root: Path, split: str) -> tuple[list[Item], Table]:
    base = _base(root, "annotations", "ADEChallengeData2016")
    images = _inside(base, f"images/{split}")
    labels = _inside(base, f"annotations/{split}")
    return _paired(images, labels, ".jpg", (".png",))[0], _with_void(150, "ignored")


def _stuff(root: Path, split: str) -> tuple[list[Item], Table]:
    items, ending = _coco(root, split, ("_labelTrainIds.png", ".png"))
    if ending != ".png":
        return items, _with_void(171, "class")
    table = np.full(256, UNKNOWN, dtype=np.int16)
    table[_coco_ids()] = np.arange(1, 172)
    table[255] = IGNORED
    return items, table


def _object(root: Path, split: str) -> tuple[list[Item], Table]:
    items, ending = _coco(root, split, ("_instanceTrainIds.png", ".png"))
    if ending != ".png":
        return items, counted(80, "background")
    # As the field converts it: all stuff, and what has no label, is background.
    table = np.zeros(256, dtype=np.int16)
    table[_coco_ids()[:80]] = np.arange(1, 81)
    return items, table


def _coco(root: Path, split: str, endings: Sequence[str]) -> tuple[list[Item], str]:
    images = _inside(root, f"images/{split}", split)
    tops = ("annotations", "stuffthingmaps", "stuffthingmaps_trainval2017")
    # Unpacked in one place, the archives of pictures and of labels share a folder.
    labels = _inside(root, *(f"{top}/{split}" for top in tops), split)
    return _paired(images, labels, ".jpg", endings)


def _coco_ids() -> NDArray[np.int64]:
    """The 171 numbers in use among COCO-Stuff's 0 .. 181."""
    unused = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
    return np.array([number for number in range(182) if number not in unused])


def _cityscapes(root: Path, split: str) -> tuple[list[Item], Table]:
    base = _base(root, "gtFine", "cityscapes")
    images = _inside(base, f"leftImg8bit/{split}")
    labels = _inside(base, f"gtFine/{split}")
    end = "_leftImg8bit"
    items: list[Item] = []
    # The published archive has labelIds; the data set's own tool writes labelTrainIds from them.
    ending = "_gtFine_labelTrainIds.png"
    if not any(labels.glob(f"*/*{ending}")):
        ending = "_gtFine_labelIds.png"
    for path in sorted(images.glob(f"*/*{end}.png")):
        name = path.stem.removesuffix(end)
        truth = labels / path.parent.name / f"{name}{ending}"
        if not truth.is_file():
            raise FileNotFoundError(f"{path.name} has no {truth}")
        items.append(Item(name, path, truth))
    if not items:
        raise FileNotFoundError(f"there are no pictures */*{end}.png in {images}")
    if ending == "_gtFine_labelTrainIds.png":
        return items, _with_void(19, "class")
    table = np.full(256, IGNORED, dtype=np.int16)
    table[_CITYSCAPES_IDS] = np.arange(1, 20)
    return items, table


# labelIds of the 19 classes that are evaluated.
_CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33]


def _paired(
    images: Path, labels: Path, picture: str, endings: Sequence[str]
) -> tuple[list[Item], str]:
    """Every picture with the labels of its name, under the first ending that the labels have."""
    pictures = sorted(images.glob(f"*{picture}"))
    if not pictures:
        raise FileNotFoundError(f"there are no pictures *{picture} in {images}")
    ending = next((e for e in endings if (labels / f"{pictures[0].stem}{e}").is_file()), endings[0])
    items = [Item(path.stem, path, labels / f"{path.stem}{ending}") for path in pictures]
    for item in items:
        if not item.labels.is_file():
            raise FileNotFoundError(f"{item.image.name} has no {item.labels}")
    return items, ending


_VOC_TREE = """\
  ROOT/VOC2012/JPEGImages/2007_000033.jpg
  ROOT/VOC2012/SegmentationClass/2007_000033.png
  ROOT/VOC2012/ImageSets/Segmentation/val.txt"""
_CONTEXT_TREE = """\
  ROOT/VOC2010/JPEGImages/2008_000002.jpg (from VOCtrainval_03-May-2010.tar)
and one of
  ROOT/VOC2010/trainval_merged.json
  ROOT/VOC2010/trainval/2008_000002.mat   (and ROOT/VOC2010/ImageSets/Main/val.txt; needs scipy)
  ROOT/VOC2010/SegmentationClassContext/2008_000002.png
    (0 = background, 1 to 59, as mmsegmentation writes them, and
    ROOT/VOC2010/ImageSets/SegmentationContext/val.txt)"""
_ADE_TREE = """\
  ROOT/ADEChallengeData2016/images/validation/ADE_val_00000001.jpg
  ROOT/ADEChallengeData2016/annotations/validation/ADE_val_00000001.png"""
_COCO_TREE = """\
  ROOT/images/val2017/000000000139.jpg         (or ROOT/val2017, from val2017.zip)
  ROOT/annotations/val2017/000000000139.png    (or ROOT/stuffthingmaps/val2017, or
                  ROOT/val2017, from stuffthingmaps_trainval2017.zip; or converted, *{ending})"""
_CITYSCAPES_TREE = """\
  ROOT/leftImg8bit/val/frankfurt/frankfurt_000000_000294_leftImg8bit.png
  ROOT/gtFine/val/frankfurt/frankfurt_000000_000294_gtFine_labelTrainIds.png   (or _labelIds.png)"""
_VOC_PAGE = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/"
_CONTEXT_PAGE = "https://cs.stanford.edu/~roozbeh/pascal-context/ and .../VOC/voc2010/"
_STUFF_PAGE = "https://github.com/nightrome/cocostuff and https://cocodataset.org/#download"

LAYOUTS = {
    "voc20": Layout("voc20", False, _VOC_PAGE, _VOC_TREE, _voc("ignored")),
    "voc21": Layout("voc20", True, _VOC_PAGE, _VOC_TREE, _voc("background")),
    "context59": Layout("context59", False, _CONTEXT_PAGE, _CONTEXT_TREE, _context("ignored")),
    "context60": Layout("context59", True, _CONTEXT_PAGE, _CONTEXT_TREE, _context("background")),
    "ade150": Layout(
        "ade150", False, "http://sceneparsing.csail.mit.edu/", _ADE_TREE, _ade, "validation"
    ),
    "stuff171": Layout(
        "stuff171",
        False,
        _STUFF_PAGE,
        _COCO_TREE.format(ending="_labelTrainIds.png"),
        _stuff,
        "val2017",
    ),
    "coco_object": Layout(
        "coco_object",
        True,
        _STUFF_PAGE,
        _COCO_TREE.format(ending="_instanceTrainIds.png"),
        _object,
        "val2017",
    ),
    "cityscapes": Layout(
        "cityscapes",
        False,
        "https://www.cityscapes-dataset.com/downloads/",
        _CITYSCAPES_TREE,
        _cityscapes,
    ),
}
