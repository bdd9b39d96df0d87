"""Small data sets in the exact folders of the published ones, made from labelled collages."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gem_lite.pictures.labels import voc_palette
from gem_lite.tools.evaluation.names import read_names, shipped
from gem_lite.tools.quality.scenes import Sprites, scenes

SPRITES = Path(__file__).parent.parent / "examples" / "scenes" / "sprites.npz"
UNUSED_COCO_IDS = (11, 25, 28, 29, 44, 65, 67, 68, 70, 82, 90)
NAMES_FILES = {"voc21": "voc20", "context60": "context59"}


@dataclass
class Made:
    """What was written: the folder, a names file that the small model understands, the truth."""

    root: Path
    names: Path
    truth: dict[str, NDArray[np.int64]]  # 0 = background or not counted, k + 1 = class k
    classes: int


def make(dataset: str, root: Path, *, count: int = 3, seed: int = 0, raw: bool = False) -> Made:
    """raw: where the field converts the published labels first, leave them as published."""
    file = NAMES_FILES.get(dataset, dataset)
    sprites = Sprites.load(SPRITES).select(styles=["noto", "fluent-emoji-flat"])
    # The drawings' names take the places of the first classes, so that the small model knows them.
    own = [names[0] for names in read_names(shipped(file))]
    rest = [name for name in own if name not in sprites.concepts]
    words = [*sprites.concepts, *rest][: len(own)]
    sprites = sprites.select(names=[word for word in words if word in sprites.concepts])
    root.mkdir(parents=True)
    names = root.parent / f"{root.name}-names.txt"
    names.write_text("\n".join(words) + "\n")
    made = Made(root, names, {}, len(words))
    collages = scenes(sprites, seed=seed, count=count, size=128, things=(3, 3), jitter=0.0)
    for number, scene in enumerate(collages):
        height, width = (128, 96 + 4 * number) if number % 2 else (100 + 4 * number, 128)
        image, mask = scene.image[:height, :width], scene.mask[:height, :width]
        numbers = np.array([0, *(words.index(name) + 1 for name in scene.names)])
        name = WRITERS[dataset](root, number, image, numbers[mask], raw)
        made.truth[name] = numbers[mask]
    return made


def save(path: Path, pixels: NDArray, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels.astype(np.uint8))
    if palette:
        picture.putpalette(voc_palette())
    picture.save(path, **({"quality": 95} if path.suffix == ".jpg" else {}))


def list_name(path: Path, name: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        file.write(name + "\n")


def voc(root: Path, number: int, image: NDArray, labels: NDArray, raw: bool) -> str:
    name = f"2007_{number:06d}"
    base = root / "VOCdevkit" / "VOC2012"
    list_name(base / "ImageSets/Segmentation/val.txt", name)
    save(base / "JPEGImages" / f"{name}.jpg", image)
    save(base / "SegmentationClass" / f"{name}.png", labels, palette=True)
    return name


def context(root: Path, number: int, image: NDArray, labels: NDArray, raw: bool) -> str:
    name = f"2008_{number:06d}"
    base = root / "VOC2010"
    list_name(base / "ImageSets/SegmentationContext/val.txt", name)
    save(base / "JPEGImages" / f"{name}.jpg", image)
    save(base / "SegmentationClassContext" / f"{name}.png", labels)
    return name


def ade(root: Path, number: int, image: NDArray, labels: NDArray, raw: bool) -> str:
    name = f"ADE_val_{number + 1:08d}"
    base = root / "ADEChallengeData2016"
    save(base / "images/validation" / f"{name}.jpg", image)
    save(base / "annotations/validation" / f"{name}.png", labels)
    return name


def stuff(root: Path, number: int, image: NDArray, labels: NDArray, raw: bool) -> str:
    name = f"{number + 139:012d}"
    ids = [i for i in range(182) if i not in UNUSED_COCO_IDS] if raw else list(range(171))
    save(root / "images/val2017" / f"{name}.jpg", image)
    stored = np.array([255, *ids])[labels]
    save(root / "annotations/val2017" / f"{name}{'' if raw else '_labelTrainIds'}.png", stored)
    return name


def coco_object(root: Path, number: int, image: NDArray, labels: NDArray, raw: bool) -> str:
    name = f"{number + 139:012d}"
    save(root / "images/val2017" / f"{name}.jpg", image)
    if raw:  # background: 255 in the upper half, some stuff in the lower
        ids = [i for i in range(91) if i not in UNUSED_COCO_IDS]
        ground = np.where(np.arange(len(labels)) < len(labels) // 2, 255, 122)[:, None]
        stored = np.where(labels > 0, np.array([0, *ids])[labels], ground)
        save(root / "annotations/val2017" / f"{name}.png", stored)
    else:
        save(root / "annotations/val2017" / f"{name}_instanceTrainIds.png", labels)
    return name


def cityscapes(root: Path, number: int, image: NDArray, labels: NDArray, raw: bool) -> str:
    city = ("frankfurt", "lindau")[number % 2]
    name = f"{city}_{number:06d}_000019"
    save(root / "leftImg8bit/val" / city / f"{name}_leftImg8bit.png", image)
    ids = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    stored = np.array([4, *ids] if raw else [255, *range(19)])[labels]
    ending = "labelIds" if raw else "labelTrainIds"
    save(root / "gtFine/val" / city / f"{name}_gtFine_{ending}.png", stored)
    return name


WRITERS = {
    "voc20": voc,
    "voc21": voc,
    "context59": context,
    "context60": context,
    "ade150": ade,
    "stuff171": stuff,
    "coco_object": coco_object,
    "cityscapes": cityscapes,
}
