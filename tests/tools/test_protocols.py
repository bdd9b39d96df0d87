"""The papers' protocols from files to labels and mIoU, beside a second writing of their pipelines.

What is written here follows the repositories of SCLIP, ClearCLIP and NACLIP and mmsegmentation step
by step, with OpenCV, and shares nothing with the package but the network and its texts.
"""

import json
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


def maps_of(model: GEMPredictor, image: Tensor, text: Tensor, size: tuple[int, int]) -> Tensor:
    """Cosines of every patch and name, bilinear to `size`: [1, names, h, w]."""
    features = model.encode_image(image)
    logits = F.normalize(features.gem, dim=-1) @ text.T
    logits = logits.permute(0, 2, 1).reshape(1, len(text), *features.grid)
    return F.interpolate(logits, size=size, mode="bilinear")


def slid(model: GEMPredictor, image: Tensor, text: Tensor, settings: Any) -> Tensor:
    _, crop, stride, *_, padded = settings
    height, width = image.shape[2:]
    total, count = torch.zeros(1, len(text), height, width), torch.zeros(1, 1, height, width)
    for row in range(max(height - crop + stride - 1, 0) // stride + 1):
        for column in range(max(width - crop + stride - 1, 0) // stride + 1):
            bottom, right = min(row * stride + crop, height), min(column * stride + crop, width)
            top, left = max(bottom - crop, 0), max(right - crop, 0)
            part = image[:, :, top:bottom, left:right]
            h, w = part.shape[2:]
            x, y = (-w % 16) // 2, (-h % 16) // 2
            if padded:
                part = F.pad(part, (x, -w % 16 - x, y, -h % 16 - y))
            maps = maps_of(model, part, text, (part.shape[2], part.shape[3]))
            if padded:
                maps = maps[:, :, y : y + h, x : x + w]
            total[:, :, top:bottom, left:right] += maps
            count[:, :, top:bottom, left:right] += 1
    return total / count


def pamr(image: Tensor, maps: Tensor, steps: int) -> Tensor:
    """By gathering every neighbour's value, pixel offsets clamped at the borders."""
    height, width = image.shape[2:]
    rows, columns = torch.arange(height), torch.arange(width)

    def shifted(x: Tensor, dy: int, dx: int) -> Tensor:
        y, x_ = (rows + dy).clamp(0, height - 1), (columns + dx).clamp(0, width - 1)
        return x[:, :, y][:, :, :, x_]

    offsets = [(dy * d, dx * d) for d in (8, 16) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
    around = torch.stack([shifted(image, *offset) for offset in offsets], dim=2)
    deviation = around.std(dim=2)
    neighbours = [offset for offset in offsets if offset != (0, 0)]
    affinity = torch.stack(
        [
            (-(image - shifted(image, *offset)).abs() / (1e-8 + 0.1 * deviation)).mean(dim=1)
            for offset in neighbours
        ],
        dim=1,
    ).softmax(dim=1)
    for _ in range(steps):
        maps = sum(
            (
                shifted(maps, *offset) * affinity[:, k : k + 1]
                for k, offset in enumerate(neighbours)
            ),
            start=torch.zeros_like(maps),
        )
    return maps


def segmented(
    model: GEMPredictor, path: Path, sets: list[list[str]], settings: Any, text: Tensor
) -> NDArray[np.int64]:
    """The number of the line that wins each pixel."""
    short, crop, _, scale, threshold, area, steps, _ = settings
    bgr = cv2.imread(str(path), cv2.IMREAD_COLOR)
    height, width = bgr.shape[:2]
    factor = min(2048 / max(height, width), short / min(height, width))
    target = (int(width * factor + 0.5), int(height * factor + 0.5))
    rgb = cv2.resize(bgr, target, interpolation=cv2.INTER_LINEAR)[..., ::-1].astype(np.float32)
    pixels = (rgb - np.float32(MEAN)) / np.float32(STD)
    image = torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None]
    if crop:
        maps = slid(model, image, text, settings)
    else:
        maps = maps_of(model, image, text, (image.shape[2], image.shape[3]))
    maps = F.interpolate(maps, size=(height, width), mode="bilinear")
    if steps:
        colours = F.interpolate(image, size=(height, width), mode="bilinear")
        maps = pamr(colours, maps, steps)
    probs = (maps[0] * scale).softmax(dim=0)
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
    generator = torch.Generator().manual_seed(3)
    known: dict[str, Tensor] = {}

    def encode_text(names: list[str], templates: Any = None) -> Tensor:
        assert len(templates) == 80
        for name in names:
            known.setdefault(name, F.normalize(torch.randn(20, generator=generator), dim=-1))
        return torch.stack([known[name] for name in names])[None]

    model.encode_text = encode_text  # type: ignore[method-assign, assignment]
    return model


Check = Callable[[str, str], tuple[float, float, float]]


@pytest.fixture
def check(model: GEMPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    """Agreement of pixels, their mIoU as reported, and as counted here."""
    monkeypatch.setattr(factory, "create_model_and_transforms", lambda *a, **k: (model, None))

    def run(protocol: str, dataset: str) -> tuple[float, float, float]:
        made = make(dataset, tmp_path / "data", count=2, seed=5)
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
    assert agreement >= 0.999
    assert reported == pytest.approx(counted, abs=2e-3)
