"""`gem_lite.load`: pictures in any form in, an object out that equals what the tensor API gives."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import gem_lite
from gem_lite.background import BACKGROUND
from gem_lite.locator import Locator, PictureMaps
from gem_lite.tools.demo import demo_picture

WORDS = ["cat", "remote control", "sky"]


@pytest.fixture(scope="module")
def locator(weights: Path) -> Locator:
    return gem_lite.load("small", weights, device="cpu")


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((90, 60), Image.Resampling.NEAREST)


def test_the_tensor_api_says_the_same(locator: Locator, picture: Image.Image) -> None:
    found: Any = locator(picture, WORDS)
    model, image = locator.model, locator.transform(picture)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            found.cosines, model(image, WORDS, normalize=False, size="patches")[0]
        )
        present = model.presence(image, WORDS)[0]
        common = model(image, WORDS, normalize="common", size=(60, 90))[0]
        labels = model.segment(
            image, WORDS, background=[w for w in BACKGROUND if w != "sky"], size=(60, 90)
        )
    assert list(found.presence) == WORDS
    assert list(found.presence.values()) == pytest.approx(present.tolist())
    assert found.maps.shape == (3, 60, 90)
    torch.testing.assert_close(found.maps, common)
    assert found.segment().labels.equal(labels.labels)
    plain: Any = locator(picture, WORDS, plain=True)
    with torch.no_grad():
        expected = model(image, WORDS, normalize=False, return_ori=True, size="patches")[0]
        torch.testing.assert_close(plain.cosines, expected)
        own = model.segment(image, WORDS, return_ori=True, size=(60, 90))
    assert plain.segment(background=None).labels.equal(own.labels)
    assert found.segment(background=0.9, refine_steps=2).labels.eq(0).any()


def test_every_form_of_a_picture(locator: Locator, picture: Image.Image, tmp_path: Path) -> None:
    picture.save(tmp_path / "a.png")
    array = np.array(picture)
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    forms = [
        *(picture, tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()),
        *(array, tensor, tensor.float() / 255, tensor.double() / 255),
    ]
    found: Any = locator(forms, "cat")
    assert isinstance(found, list) and len(found) == len(forms)
    for each in found:
        assert each.cosines.equal(found[0].cosines) and each.picture.size == (90, 60)
    batch: Any = locator(torch.stack([tensor, tensor.flip(2)]), ["cat"])
    assert len(batch) == 2 and batch[0].cosines.equal(found[0].cosines)
    assert not batch[1].cosines.equal(found[0].cosines)
    assert isinstance(locator(picture, "cat"), PictureMaps) and locator([], "cat") == []


@pytest.mark.parametrize(
    ("form", "error", "message"),
    [
        (torch.zeros(4, 5), ValueError, r"shape \[4, 5\]; expected \[3, h, w\]"),
        (torch.randn(3, 8, 8), ValueError, "before any normalisation"),
        (torch.ones(3, 8, 8, dtype=torch.int64), ValueError, "torch.int64 from 1 to 1"),
        (5, TypeError, "the picture is int"),
        ([5], TypeError, "picture 0 is int"),
        (np.zeros((8, 8, 3)), TypeError, "array of float64"),
        ("none.png", FileNotFoundError, "no picture at none.png"),
    ],
)
def test_what_is_no_picture(
    locator: Locator, form: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        locator(form, ["cat"])


def test_words_once_and_some(locator: Locator, picture: Image.Image) -> None:
    found: Any = locator(picture, ["cat", "dog", "cat"])
    assert found.words == ["cat", "dog"] and found.maps.shape[0] == 2
    with pytest.raises(ValueError):
        locator(picture, [])


def test_boxes_lie_around_the_hot_part(locator: Locator, picture: Image.Image) -> None:
    cosines = torch.full((2, 6, 8), 0.1)
    cosines[:, 1:3, 4:8] = 0.5
    large = picture.resize((2048, 1536))
    image = locator.transform(large)[None]
    present = torch.tensor([0.9, 0.1])
    found = PictureMaps(large, ["a", "b"], cosines, present, locator, image, "{}", False)
    boxes = found.boxes()
    (box,) = boxes["a"]
    assert boxes["b"] == []  # probably absent
    for side, expected in zip(box[:4], (1024, 256, 2048, 768), strict=True):
        assert side == pytest.approx(expected, abs=60)
    assert box.score == pytest.approx(0.9)
    assert found.boxes(threshold=0.95)["a"] == []


def test_saved_and_shown(locator: Locator, picture: Image.Image, tmp_path: Path) -> None:
    found: Any = locator(picture, WORDS)
    with Image.open(io.BytesIO(found._repr_jpeg_())) as shown:
        assert shown.size == found.sheet().size and shown.width > 4 * 240
    for name in ("a.png", "a.jpg"):
        found.save(tmp_path / name)
        with Image.open(tmp_path / name) as saved:
            assert saved.size == shown.size
    found.save(str(tmp_path / "a.npz"))
    with np.load(tmp_path / "a.npz") as arrays:
        assert arrays["prompts"].tolist() == WORDS
        np.testing.assert_array_equal(arrays["maps"], found.cosines.numpy())
        assert arrays["presence"].tolist() == pytest.approx(list(found.presence.values()))
    with pytest.raises(ValueError, match="does not end as a picture"):
        found.save(tmp_path / "a.txt")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["a.jpg", "a.npz", "a.png"]
    assert "'cat': 0." in repr(found) and "90 x 60" in repr(found)
    assert repr(locator) == "Locator('small', 'random', cpu)"


def test_show(locator: Locator, picture: Image.Image, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[tuple[int, int]] = []
    monkeypatch.setattr(Image.Image, "show", lambda self: shown.append(self.size))
    found: Any = locator(picture, "cat")
    found.show()
    assert shown == [found.sheet().size]


def test_the_default_is_in_the_box_and_knows_what_is_there() -> None:
    locator = gem_lite.load()
    header = locator.model.header
    assert (header.model, header.pretrained) == gem_lite.available_models()[-2]
    picture, words = demo_picture("demo-2.png")
    found: Any = locator(picture, [*words, "umbrella"])
    *there, absent = found.presence.values()
    assert min(there) > 0.5 > absent
    assert found.boxes()["umbrella"] == [] and all(found.boxes()[word] for word in words)


def test_settings_and_size(weights: Path, picture: Image.Image) -> None:
    other = gem_lite.load("small", weights, method="maskclip", size=80, device="cpu")
    assert other.model.method.name == "maskclip"
    found: Any = other(picture, "cat")
    assert found.cosines.shape == (1, 10, 15)
    with pytest.raises(ValueError, match="unknown model 'ViT-B/61'; nearest known"):
        gem_lite.load("ViT-B/61")
    with pytest.raises(FileNotFoundError, match="no folder"):
        gem_lite.load("local-dir:/none")
