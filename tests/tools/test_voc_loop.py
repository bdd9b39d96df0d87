"""The data set example, on a small folder in the form of Pascal VOC."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small import small_model

import gem_lite as gem

ROOT = Path(__file__).parents[2]
NAMES = ["cat", "dog", "remote control"]
SIZES = [(30, 44), (52, 37), (40, 40)]  # (h, w)

sys.path.insert(0, str(ROOT / "examples"))
import voc_loop  # noqa: E402


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Noise with blocks of classes; a model with random weights finds what it finds."""
    root = tmp_path_factory.mktemp("voc")
    random = np.random.default_rng(0)
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / part).mkdir(parents=True)
    for number, (h, w) in enumerate(SIZES):
        pixels = random.integers(0, 256, (h, w, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "JPEGImages" / f"{number}.jpg")
        mask = np.zeros((h, w), dtype=np.uint8)
        mask[: h // 2, : w // 2], mask[h // 2 :, w // 3 :], mask[:4] = 1, 2, 3
        mask[:, -3:] = 255
        picture = Image.fromarray(mask).convert("P")
        picture.putdata(mask.flatten())
        picture.save(root / "SegmentationClass" / f"{number}.png")
    (root / "ImageSets" / "Segmentation" / "val.txt").write_text("0\n1\n2\n")
    gem.save(small_model(), root / "model.safetensors")
    return root


def by_hand(root: Path, *, background: bool, threshold: float, scale: float) -> list[float]:
    """The scores from sets of pixels, one picture and one class at a time."""
    model, transform = gem.create_model_and_transforms("small", root / "model.safetensors")
    both, either = np.zeros(4), np.zeros(4)
    for number, (h, w) in enumerate(SIZES):
        picture = Image.open(root / "JPEGImages" / f"{number}.jpg")
        truth = np.asarray(Image.open(root / "SegmentationClass" / f"{number}.png"))
        with torch.no_grad():
            cosine = model(transform(picture)[None], NAMES, normalize=False)
        maps = F.interpolate(cosine, (h, w), mode="bilinear", align_corners=False)[0]
        chances = (scale * maps).softmax(dim=0).numpy()
        found = chances.argmax(axis=0) + 1
        if background:
            found[chances.max(axis=0) < threshold] = 0
        counted = (truth != 255) & (background | (truth > 0))
        for label in range(4):
            both[label] += ((truth == label) & (found == label) & counted).sum()
            either[label] += (((truth == label) | (found == label)) & counted).sum()
    with np.errstate(invalid="ignore"):
        return list(both / either)


def scores_of(out: str) -> dict[str, float]:
    return {line[:20].strip(): float(line[20:]) for line in out.splitlines()}


@pytest.mark.parametrize(("background", "workers"), [(True, 0), (False, 0), (True, 2)])
def test_scores(
    folder: Path, background: bool, workers: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(folder), "--model", "small", "--pretrained", str(folder / "model.safetensors")]
    arguments += ["--names", *NAMES, "--threshold", "0.4", "--scale", "20", "--batch-size", "2"]
    arguments += ["--workers", str(workers), "--device", "cpu"]
    arguments += [] if background else ["--no-background"]
    assert voc_loop.main(arguments) == 0
    found = scores_of(capsys.readouterr().out)
    expected = by_hand(folder, background=background, threshold=0.4, scale=20.0)
    assert list(found) == ["background", *NAMES, "mIoU"]
    for score, wanted in zip(found.values(), [*expected, np.nanmean(expected)], strict=True):
        assert score == pytest.approx(100 * wanted, abs=0.006, nan_ok=True)
    assert np.isnan(found["background"]) != background
    assert 5 < found["mIoU"] < 95


def test_a_perfect_answer_and_a_wrong_one() -> None:
    truth = torch.tensor([[0, 1, 255], [2, 2, 255]])
    counts = voc_loop.confusion(truth, truth.clamp(max=2), 4)
    assert counts.diagonal().tolist() == [1, 1, 2, 0] and int(counts.sum()) == 4
    scores = voc_loop.intersection_over_union(counts)
    assert scores[:3].tolist() == [1, 1, 1] and scores[3].isnan()
    wrong = voc_loop.confusion(truth, torch.ones(2, 3, dtype=torch.int64), 4)
    assert voc_loop.intersection_over_union(wrong)[:3].tolist() == [0, 0.25, 0]


def test_pascals_own_names() -> None:
    assert len(voc_loop.VOC_NAMES) == 20
    assert [voc_loop.VOC_NAMES[i] for i in (0, 10, 14, 19)] == [
        "aeroplane",
        "dining table",
        "person",
        "television monitor",
    ]


def test_as_a_script_and_its_errors(folder: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    script = [sys.executable, str(ROOT / "examples" / "voc_loop.py")]
    model = ["--model", "small", "--pretrained", str(folder / "model.safetensors")]
    done = subprocess.run(
        [*script, str(tmp_path), *model],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert "val.txt; expected a folder in the form of Pascal VOC" in done.stderr
    assert len(done.stderr.splitlines()) == 1
