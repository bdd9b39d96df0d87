"""`Labeller`: batches in, columns out, equal to the model's own; travels as settings."""

import io
import json
import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import gem_lite as gem
from gem_lite import factory, labeller
from gem_lite.labeller import Labeller

WORDS = ["cat", ["remote control", "remote"]]
SIZES = [(40, 60), (40, 60), (31, 50)]  # (h, w)
ALL = labeller.OUTPUTS


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def pixels() -> list[NDArray[np.uint8]]:
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (*size, 3), dtype=np.uint8) for size in SIZES]


def make(weights: Path, **settings: Any) -> Labeller:
    return Labeller(WORDS, model="small", pretrained=str(weights), device="cpu", **settings)


def test_columns_are_the_models_own(weights: Path, pixels: list[NDArray[np.uint8]]) -> None:
    label = make(weights, outputs=ALL, background=["wall", "cat"], scale=20.0)
    batch = {"key": np.array(["a", "b", "c"]), "image": [encoded(each) for each in pixels]}
    columns = label(batch)
    assert list(columns) == ["key", "height", "width", "error", *ALL]
    assert columns["key"] is batch["key"] and list(batch) == ["key", "image"]
    assert list(zip(columns["height"], columns["width"], strict=True)) == SIZES
    assert columns["error"] == ["", "", ""]
    model, transform = gem.create_model_and_transforms("small", weights)
    for row, each in enumerate(pixels):
        image = transform(Image.fromarray(each))[None]
        size = SIZES[row]
        # "cat" is asked for, so it is no background.
        found = model.segment(image, WORDS, background=["wall"], scale=20.0, size=size)
        expected, confidence = found.labels[0].numpy(), found.confidence[0].numpy()
        assert set(np.unique(expected)) == {0, 1, 2}
        masks = columns["masks"][row]
        assert masks.shape == (2, *size) and masks.dtype == bool
        annotations = json.loads(columns["coco"][row])
        for number, mask in enumerate(masks):
            assert np.array_equal(mask, expected == number + 1)
            assert annotations[number]["category_id"] == number + 1
            assert annotations[number]["area"] == mask.sum()
            assert columns["scores"][row][number] == pytest.approx(
                confidence[mask].mean(), abs=1e-6
            )
            left, top, right, bottom = columns["boxes"][row][number]
            assert mask[top:bottom, left:right].sum() == mask.sum()
            assert annotations[number]["bbox"] == [left, top, right - left, bottom - top]
        with Image.open(io.BytesIO(columns["labels"][row])) as picture:
            assert np.array_equal(np.asarray(picture), expected)


def test_run_lengths_are_pycocotools(weights: Path, pixels: list[NDArray[np.uint8]]) -> None:
    oracle = pytest.importorskip("pycocotools.mask")
    columns = make(weights, outputs=("coco", "masks"), background=None)({"image": pixels})
    for row, masks in enumerate(columns["masks"]):
        for annotation in json.loads(columns["coco"][row]):
            theirs = oracle.encode(np.asfortranarray(masks[annotation["category_id"] - 1]))
            assert annotation["segmentation"]["counts"] == theirs["counts"].decode()


@pytest.mark.parametrize(
    "form",
    [
        encoded,
        lambda pixels: pixels,
        Image.fromarray,
        lambda pixels: {"bytes": encoded(pixels), "path": None},
        lambda pixels: memoryview(encoded(pixels)),
        lambda pixels: np.dstack([pixels, pixels[:, :, 0]]),  # alpha, which CLIP drops
    ],
    ids=["bytes", "array", "PIL", "Hugging Face", "memory", "alpha"],
)
def test_forms_of_pictures(weights: Path, pixels: list[NDArray[np.uint8]], form: Any) -> None:
    expected = make(weights)({"image": [encoded(each) for each in pixels]})["coco"]
    given = make(weights, image="jpg", keep_image=True, prefix="gem_")
    columns = given({"jpg": list(map(form, pixels))})
    assert columns["gem_coco"] == expected and len(columns["jpg"]) == 3


def test_one_array_of_pictures_and_a_path(
    weights: Path, pixels: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    """What `read_images` gives: a column that is one array [n, h, w, 3]."""
    expected = make(weights)({"image": pixels[:2]})["coco"]
    assert make(weights)({"image": np.stack(pixels[:2])})["coco"] == expected
    grey = pixels[0][:, :, :1]
    Image.fromarray(grey[:, :, 0]).save(tmp_path / "a.png")
    columns = make(weights)({"image": [str(tmp_path / "a.png"), grey]})
    assert columns["coco"][0] == columns["coco"][1] != ""


def test_what_cannot_be_labelled_keeps_its_row(
    weights: Path, pixels: list[NDArray[np.uint8]]
) -> None:
    good = encoded(pixels[0])
    bad = [
        good[:200],
        b"",
        None,
        pixels[0].astype(np.float32),
        "missing.jpg",
        np.zeros((9, 9, 7), np.uint8),
    ]
    label = make(weights, outputs=ALL)
    columns = label({"number": list(range(8)), "image": [good, *bad, good]})
    assert columns["number"] == list(range(8))
    assert [bool(text) for text in columns["error"]] == [False, *[True] * 6, False]
    for text, part in zip(
        columns["error"][1:7],
        (
            "cannot be read",
            "is not a picture",
            "is NoneType",
            "float32, shape [40, 60, 3]",
            "missing",
            "[9, 9, 7]",
        ),
        strict=True,
    ):
        assert part in text and "\n" not in text
    assert columns["coco"][1:7] == [""] * 6 and columns["labels"][1:7] == [b""] * 6
    assert np.isnan(columns["scores"][1:7]).all() and columns["height"][1:7] == [0] * 6
    assert columns["coco"][0] == columns["coco"][7] == label({"image": [good]})["coco"][0] != ""


def test_an_empty_batch(weights: Path) -> None:
    columns = make(weights)({"key": [], "image": []})
    assert columns == {"key": [], "height": [], "width": [], "error": [], "coco": []}


def test_sizes(weights: Path, pixels: list[NDArray[np.uint8]]) -> None:
    wide = np.zeros((4, 4000, 3), np.uint8)
    columns = make(weights, size=48, mask_side=30, outputs=("coco", "masks"))(
        {"image": [*pixels, wide]}
    )
    assert [mask.shape[1:] for mask in columns["masks"]] == [(20, 30), (20, 30), (19, 30), (0, 0)]
    assert "48000 x 48 pixels" in columns["error"][3] and columns["width"][0] == 60
    assert json.loads(columns["coco"][0])[0]["segmentation"]["size"] == [20, 30]


def test_batches_by_the_models_size_agree(weights: Path, pixels: list[NDArray[np.uint8]]) -> None:
    """Several in one pass: pictures of other sizes too, and in the order they came."""
    singly = make(weights, outputs=("masks", "scores"))({"image": pixels * 2})
    together = make(weights, outputs=("masks", "scores"), batch=4)({"image": pixels * 2})
    for one, other in zip(singly["masks"], together["masks"], strict=True):
        assert (one != other).mean() < 0.01
    np.testing.assert_allclose(singly["scores"], together["scores"], atol=1e-4)


def test_memory_that_is_short_costs_no_neighbour(
    weights: Path, pixels: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = labeller.Labeller._segment
    fault: Exception = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB")

    def short(self: Labeller, model: Any, group: list[Any]) -> Any:
        if any(seen.size == SIZES[2] for seen in group):
            raise fault
        return real(self, model, group)

    monkeypatch.setattr(labeller.Labeller, "_segment", short)
    label = make(weights, batch=3)
    assert [text[:18] for text in label({"image": pixels})["error"]] == [
        "",
        "",
        "CUDA out of memory",
    ]
    fault = RuntimeError(
        "CUDA error: an illegal memory-free instruction".replace("memory-free ", "")
    )
    with pytest.raises(RuntimeError, match="illegal instruction"):  # no row's fault
        label({"image": pixels})


def test_it_travels_as_its_settings(
    weights: Path, pixels: list[NDArray[np.uint8]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In any number of copies and threads, a process reads the model once."""
    made: list[Any] = []
    real = factory.create_model_and_transforms

    def counted(*given: Any, **named: Any) -> Any:
        made.append(given)
        return real(*given, **named)

    monkeypatch.setattr(factory, "create_model_and_transforms", counted)
    monkeypatch.setattr(labeller, "_MODELS", {})
    label = make(weights, method="clearclip", settings={"last": 1})
    assert made == []
    copies = [pickle.loads(pickle.dumps(label)) for _ in range(4)]
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda one=one: results.append(one({"image": pixels})))
        for one in copies
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and len(results) == 4
    assert all(result == results[0] for result in results)
    label({"image": pixels})
    assert len(pickle.dumps(label)) < 2000 and len(made) == 1
    other = make(weights, method="naclip", settings={"std": 1.0})({"image": pixels})
    assert len(made) == 2 and other["coco"] != results[0]["coco"]


def test_the_sender_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys, pickle; from gem_lite.labeller import Labeller;"
        " print(len(pickle.dumps(Labeller(['cat']))), 'torch' in sys.modules)"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True
    )
    assert done.stdout.split()[1] == "False"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"words": "cat"}, TypeError, r"the string 'cat'; expected a list"),
        ({"words": []}, ValueError, "at least one word"),
        ({"words": ["cat", []]}, ValueError, "at least one name for each"),
        ({"outputs": ["rle"]}, ValueError, r"unknown output 'rle'; expected some of \['coco'"),
        ({"batch": 0}, ValueError, "batch is 0; expected a whole number"),
        ({"size": 1.5}, ValueError, r"size is 1\.5"),
    ],
    ids=str,
)
def test_wrong_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Labeller(**{"words": ["cat"], **settings})


def test_what_only_the_model_knows_ends_the_call(
    weights: Path, pixels: list[NDArray[np.uint8]], tmp_path: Path
) -> None:
    """It is no row's fault, so it is no row's error."""
    with pytest.raises(ValueError, match="no column 'image' among"):
        make(weights)({"picture": pixels})
    with pytest.raises(ValueError, match="a column 'error' already; give a prefix"):
        make(weights)({"image": pixels, "error": ["", "", ""]})
    with pytest.raises(ValueError, match="threshold is 7"):
        make(weights, threshold=7.0)({"image": pixels})
    with pytest.raises(ValueError, match="unknown method 'gme'"):
        make(weights, method="gme")({"image": pixels})
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        Labeller(["cat"], pretrained=str(tmp_path / "none.pt"))({"image": pixels})


def test_a_pandas_frame(weights: Path, pixels: list[NDArray[np.uint8]]) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"key": [1, 2], "image": [encoded(each) for each in pixels[:2]]})
    result = pandas.DataFrame(make(weights)(frame[::-1]))
    assert result["key"].tolist() == [2, 1]
    expected = make(weights)({"image": pixels[1::-1]})["coco"]
    assert result["coco"].tolist() == expected
