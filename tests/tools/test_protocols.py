"""The papers' protocols from files to labels and mIoU, beside a second writing of their pipelines.

What is written here follows the repositories of SCLIP, ClearCLIP and NACLIP and mmsegmentation step
by step, with OpenCV, and shares nothing with the package but the network and its texts.
"""

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from published import NAMES_FILES, make
from small import small_model
from torch import Tensor

from gem_lite import factory
from gem_lite.predictor import GEMPredictor
from gem_lite.tools.cli import main
from gem_lite.tools.commands import evaluate as command

cv2 = pytest.importorskip("cv2", reason="OpenCV reads and resizes as the originals do")
DATA = Path(command.__file__).parents[1] / "evaluation" / "data"
MEAN, STD = (122.7709383, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.3231630)

# short side, window, stride, scale, threshold, area, PAMR steps, padded windows
SCLIP = {
    "voc20": (336, 224, 112, 40, 0, 0, 0, False),
    "voc21": (336, 224, 112, 65, 0.1, 0.1, 0, False),
    "context59": (336, 224, 112, 40, 0, 0, 0, False),
    "context60": (336, 224, 112, 50, 0.1, 0, 0, False),
    "coco_object": (336, 224, 112, 50, 0.1, 0, 0, False),
    "stuff171": (448, 224, 112, 40, 0, 0, 0, False),
    "cityscapes": (560, 224, 112, 40, 0, 0, 0, False),
    "ade150": (336, 224, 112, 40, 0, 0, 0, False),
}
CLEARCLIP = {
    "voc20": (448, 448, 224, 50, 0, 0, 0, True),
    "voc21": (448, 448, 224, 50, 0.5, 0, 0, True),
    "context60": (448, 448, 224, 50, 0.15, 0, 0, True),
    "coco_object": (448, 448, 224, 50, 0.4, 0, 0, True),
    "cityscapes": (448, 224, 224, 50, 0, 0, 0, True),
    "stuff171": (448, 448, 224, 50, 0, 0, 0, True),
}
NACLIP = {
    "voc20": (336, 0, 0, 40, 0, 0, 10, False),
    "voc21": (336, 0, 0, 40, 0.1, 0, 10, False),
    "context60": (336, 224, 112, 40, 0.1, 0, 10, False),
    "coco_object": (336, 224, 112, 40, 0.1, 0, 10, False),
    "stuff171": (336, 224, 112, 40, 0, 0, 10, False),
}
CASES = [
    (protocol, dataset)
    for protocol, table in (("sclip", SCLIP), ("clearclip", CLEARCLIP), ("naclip", NACLIP))
    for dataset in table
]


def name_sets(protocol: str, dataset: str) -> list[list[str]]:
    """A line for each class, background's first where it is one, as in the repositories' files."""
    file = NAMES_FILES.get(dataset, dataset)
    own = protocol == "clearclip" and file in ("voc20", "coco_object")
    lines = (DATA / f"{file}-{'clearclip' if own else 'sclip'}.txt").read_text().splitlines()
    sets = [line.split(", ") for line in lines]
    if dataset in ("voc21", "coco_object") and protocol != "clearclip":
        sets.insert(0, (DATA / "background-sclip.txt").read_text().split())
    elif dataset in ("voc21", "context60", "coco_object"):
        sets.insert(0, ["background"])
    return sets


def resizing(length: int, target: int) -> Tensor:
    """Bilinear resizing of one side, pixel centres at halves, as a matrix [target, length]."""
    centres = (torch.arange(target) + 0.5) * length / target - 0.5
    away = (centres.clamp(0, length - 1)[:, None] - torch.arange(length)).abs()
    return (1 - away).clamp(min=0)


def spans(length: int, crop: int, stride: int) -> list[tuple[int, int]]:
    """From where to where the windows reach; one over all of it for a crop of 0."""
    if not crop:
        return [(0, length)]
    found = []
    for k in range(max(length - crop + stride - 1, 0) // stride + 1):
        end = min(k * stride + crop, length)
        found.append((max(end - crop, 0), end))
    return found


def slid(
    model: GEMPredictor, image: Tensor, text: Tensor, settings: Any, size: tuple[int, int]
) -> Tensor:
    """Cosines of every name at the picture's `size`: [names, h, w].

    From patches to their window's pixels, the mean of all windows over a pixel, and the picture's
    own size: all of it is linear in the patches, and the same for every row and every column.
    """
    _, crop, stride, *_, padded = settings
    places = [spans(length, crop, stride) for length in image.shape[2:]]
    windows_over = []  # for each row, then for each column
    for length, found in zip(image.shape[2:], places, strict=True):
        number = torch.zeros(length)
        for start, end in found:
            number[start:end] += 1
        windows_over.append(number)
    total = torch.zeros(len(text), *size)
    for top, bottom in places[0]:
        for left, right in places[1]:
            part = image[:, :, top:bottom, left:right]
            h, w = part.shape[2:]
            x, y = (-w % 16) // 2, (-h % 16) // 2
            if padded:
                part = F.pad(part, (x, -w % 16 - x, y, -h % 16 - y))
            else:
                x = y = 0
            features = model.encode_image(part)
            logits = text @ F.normalize(features.gem[0], dim=-1).T
            to_pixels = [
                resizing(patches, length)[before : before + inside]
                for patches, length, before, inside in zip(
                    features.grid, part.shape[2:], (y, x), (h, w), strict=True
                )
            ]
            down, across = (
                resizing(length, target)[:, start:end] / number[start:end] @ matrix
                for length, target, (start, end), number, matrix in zip(
                    image.shape[2:],
                    size,
                    ((top, bottom), (left, right)),
                    windows_over,
                    to_pixels,
                    strict=True,
                )
            )
            total += down @ logits.reshape(-1, *features.grid) @ across.T
    return total


def pamr(image: Tensor, maps: Tensor, steps: int) -> Tensor:
    """By looking up every neighbour's value, pixel offsets clamped at the borders."""
    height, width = image.shape[2:]
    rows, columns = torch.arange(height), torch.arange(width)

    def place(dy: int, dx: int) -> Tensor:
        y, x = (rows + dy).clamp(0, height - 1), (columns + dx).clamp(0, width - 1)
        return (y[:, None] * width + x).flatten()

    offsets = [(dy * d, dx * d) for d in (8, 16) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    colours = image[0].flatten(1).double()
    deviation = torch.stack([colours[:, place(*offset)] for offset in offsets]).std(dim=0)
    near = torch.stack([place(*offset) for offset in offsets if offset != (0, 0)], dim=1)
    unlike = (colours[:, :, None] - colours[:, near]).abs()
    affinity = (-unlike / (1e-8 + 0.1 * deviation[:, :, None])).mean(dim=0).softmax(dim=1).float()
    values = maps.flatten(1).T.contiguous()
    for _ in range(steps):
        values = F.embedding_bag(near, values, per_sample_weights=affinity, mode="sum")
    return values.T.reshape(maps.shape)


def segmented(
    model: GEMPredictor, path: Path, sets: list[list[str]], settings: Any, text: Tensor
) -> NDArray[np.int64]:
    """The number of the line that wins each pixel."""
    short, _, _, scale, threshold, area, steps, _ = settings
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    height, width = bgr.shape[:2]
    factor = min(2048 / max(height, width), short / min(height, width))
    target = (int(width * factor + 0.5), int(height * factor + 0.5))
    rgb = cv2.resize(bgr, target, interpolation=cv2.INTER_LINEAR)[..., ::-1].astype(np.float32)
    pixels = (rgb - np.float32(MEAN)) / np.float32(STD)
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    maps = slid(model, image, text, settings, (height, width))
    if steps:
        colours = F.interpolate(image, size=(height, width), mode="bilinear")
        maps = pamr(colours, maps, steps)
    probs = (maps * scale).softmax(dim=0)
    lines = torch.tensor([k for k, names in enumerate(sets) for _ in names])
    best = torch.stack([probs[lines == k].amax(dim=0) for k in range(len(sets))])
    if area:
        pixels_of = F.one_hot(best.argmax(dim=0), len(sets))[:, :, 1:].sum(dim=(0, 1))
        best[1:] *= (pixels_of > area * pixels_of.sum())[:, None, None]
    labels = best.argmax(dim=0)
    labels[best.amax(dim=0) < threshold] = 0
    return labels.numpy()


@pytest.fixture(scope="module")
def model() -> GEMPredictor:
    """Random weights, with texts far enough apart that many names win somewhere."""
    model = small_model(size=224, patch=16)

    def direction(name: str) -> Tensor:  # of the name alone, whichever tests run before
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        return F.normalize(torch.randn(20, generator=generator), dim=-1)

    def encode_text(names: list[str], templates: Any = None) -> Tensor:
        assert len(templates) == 80
        return torch.stack([direction(name) for name in names])[None]

    model.encode_text = encode_text  # type: ignore[method-assign, assignment]
    return model


Check = Callable[[str, str], tuple[float, float, float]]


@pytest.fixture
def check(model: GEMPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Agreement of pixels, their mIoU as reported, and as counted here."""
    monkeypatch.setattr(factory, "create_model_and_transforms", lambda *a, **k: (model, None))

    def run(protocol: str, dataset: str) -> tuple[float, float, float]:
        made = make(dataset, tmp_path / "data", count=2, seed=5, grain=8)
        out = tmp_path / "out"
        arguments = ["--dataset", dataset, "--root", str(made.root), "--protocol", protocol]
        arguments += ["--save-predictions", "--output", str(out), "--model", "tiny-emoji"]
        assert main(["evaluate", *arguments]) == 0
        sets = name_sets(protocol, dataset)
        table = {"sclip": SCLIP, "clearclip": CLEARCLIP, "naclip": NACLIP}[protocol]
        text = model.encode_text([n for names in sets for n in names], templates=[""] * 80)[0]
        background = int(dataset in ("voc21", "context60", "coco_object"))
        equal = pixels = 0
        both, either = np.zeros(len(sets)), np.zeros(len(sets))
        for name, truth in made.truth.items():
            path = next(
                path
                for path in sorted(made.root.rglob(f"{name}*"))
                if not {"SegmentationClass", "SegmentationClassContext", "annotations", "gtFine"}
                & set(path.parts)
            )
            with torch.no_grad():
                expected = segmented(model, path, sets, table[dataset], text)
            expected = expected + 1 - background  # as saved: 0 is background
            labels = np.asarray(Image.open(out / "predictions" / f"{name}.png"))
            assert len(np.unique(expected)) > 1
            equal, pixels = equal + int((labels == expected).sum()), pixels + labels.size
            counted = np.full(truth.shape, True) if background else truth > 0
            for k in range(len(sets)):
                here, there = truth == k + 1 - background, expected == k + 1 - background
                both[k] += (here & there & counted).sum()
                either[k] += ((here | there) & counted).sum()
        miou = float((both[either > 0] / either[either > 0]).mean())
        return equal / pixels, json.loads((out / "result.json").read_text())["miou"], miou

    return run


@pytest.mark.parametrize(("protocol", "dataset"), CASES)
def test_labels_and_miou(protocol: str, dataset: str, check: Check) -> None:
    agreement, reported, counted = check(protocol, dataset)
    assert agreement >= 0.9998
    assert reported == pytest.approx(counted, abs=5e-4)
