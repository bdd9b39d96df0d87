"""Small data sets in the exact folders of the published ones, made from labelled collages."""

import json
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


def make(
    dataset: str,
    root: Path,
    *,
    count: int = 3,
    seed: int = 0,
    raw: bool = False,
    grain: int = 0,
) -> Made:
    """raw: where the field converts the published labels first, leave them as published.

    grain: noise of so many levels up and down. PAMR divides by the deviation of the colours around
    a pixel: where they are flat, it weighs rounding errors, and no second writing agrees.
    """
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
        if grain:
            noise = np.random.default_rng(number).integers(-grain, grain + 1, image.shape)
            image = (image + noise).clip(0, 255).astype(np.uint8)
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
    save(base / "JPEGImages" / f"{name}.jpg", image)
    if raw:
        add_to_merged(base / "trainval_merged.json", number, name, labels)
    else:
        list_name(base / "ImageSets/SegmentationContext/val.txt", name)
        save(base / "SegmentationClassContext" / f"{name}.png", labels)
    return name


# Pascal Context's numbers of its 59 frequent classes, aeroplane to wood.
CONTEXT_NUMBERS = [
    *(2, 9, 18, 19, 22, 23, 25, 31, 33, 34, 44, 45, 46, 59, 65, 68, 72, 80, 85, 98, 104, 105),
    *(113, 115, 144, 158, 159, 162, 187, 189, 207, 220, 232, 258, 259, 260, 284, 295, 296, 308),
    *(324, 326, 347, 349, 354, 355, 360, 366, 368, 397, 415, 416, 420, 424, 427, 440, 445, 454),
    458,
]


def run_length_text(inside: NDArray) -> str:
    """COCO's text form of a mask [h, w]: runs down the columns, five bits a letter."""
    flat = np.concatenate([[False], inside.T.ravel(), [not inside.T.ravel()[-1]]])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    lengths = np.diff(np.concatenate([[0], edges])).tolist()
    letters = []
    for place, length in enumerate(lengths):
        value = length - lengths[place - 2] if place > 2 else length
        while True:
            group, value = value & 31, value >> 5
            last = value == (-1 if group & 16 else 0)
            letters.append(chr(48 + (group if last else group | 32)))
            if last:
                break
    return "".join(letters)


def add_to_merged(path: Path, number: int, name: str, labels: NDArray) -> None:
    """One picture more in `trainval_merged.json`, with things in it that nobody needs."""
    empty: dict = {"images": [], "annos_segmentation": [], "annos_occlusion": [], "categories": []}
    content = json.loads(path.read_text()) if path.is_file() else empty
    height, width = labels.shape
    for phase, file in (("val", f"{name}.jpg"), ("train", f"2007_{number:06d}.jpg")):
        content["images"].append(
            {
                "image_id": 1000 * (phase == "train") + number,
                "file_name": file,
                "height": height,
                "width": width,
                "phase": phase,
            }
        )
    content["annos_occlusion"].append({"image_id": number, "edges": {"indices": [[1, 2]]}})
    # The first area lies under all others.
    whole = {"counts": run_length_text(labels >= 0), "size": [height, width]}
    areas = [(CONTEXT_NUMBERS[-1], whole)] if labels.min() > 0 else []
    for label in np.unique(labels[labels > 0]).tolist():
        counts = run_length_text(labels == label)
        areas.append((CONTEXT_NUMBERS[label - 1], {"counts": counts, "size": [height, width]}))
    for category, area in areas:
        content["annos_segmentation"].append(
            {
                "id": len(content["annos_segmentation"]),
                "image_id": number,
                "category_id": category,
                "segmentation": area,
                "parts": [{"part_id": 3, "segmentation": area}],
            }
        )
    path.write_text(json.dumps(content))


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
