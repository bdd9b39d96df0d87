"""Published protocols stage by stage: authors' labels, OpenCV's pixels, formulas written anew."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from family_model import arrays, picture, random, random_picture, texts, weight
from PIL import Image
from small import small_header
from torch import Tensor

from gem_lite.method.config import ImageConfig, ModelConfig, TextConfig
from gem_lite.method.methods import make_method
from gem_lite.method.model import GEMNetwork
from gem_lite.method.refine import neighbour_weights, refine
from gem_lite.predictor import GEMPredictor
from gem_lite.tools.evaluation.protocols import Settings, settings_for
from gem_lite.tools.evaluation.resize import resize_bilinear
from gem_lite.tools.evaluation.stages import label, patch_padding, picture_scores, resized

# ---- resizing


def test_resizing_is_opencvs_bit_for_bit() -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is the oracle; pip install the test extra")
    draw = np.random.default_rng(0)
    sizes = [np.exp(draw.uniform(0, 5, 4)).astype(int).tolist() for _ in range(300)]
    sizes += [[1, 1, 7, 5], [1, 40, 3, 2], [40, 1, 1, 90], [9, 9, 1, 1], [8, 6, 4, 3], [8, 6, 4, 6]]
    sizes += [[2 * h, 2 * w, h, w] for h, w in ((1, 1), (5, 3), (31, 17))]
    sizes += [[333, 500, 336, 505], [375, 500, 336, 448], [683, 1024, 448, 672]]
    for h, w, height, width in sizes:
        pixels = draw.integers(0, 256, (h, w, 3), dtype=np.uint8)
        expected = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(resize_bilinear(pixels, height, width), expected), (h, w)


def resize_by_hand(row: list[int], width: int) -> list[int]:
    """One row of grey pixels, each step as `resize.py` says it, in plain integers."""
    result = []
    for i in range(width):
        place = float(np.float32((i + 0.5) * (1 / (width / len(row))) - 0.5))
        left = math.floor(place)
        far = place - left
        if left < 0 or left >= len(row) - 1:
            left, far = min(max(left, 0), len(row) - 1), 0.0
        near = round(2048 * (1 - far))
        mixed = row[left] * near + row[min(left + 1, len(row) - 1)] * round(2048 * far)
        result.append(((2048 * (mixed >> 4) >> 16) + 2) >> 2)
    return result


def test_resizing_a_row_by_hand() -> None:
    """Without OpenCV too."""
    for seed, (old, new) in enumerate(((9, 5), (5, 9), (64, 40), (40, 64), (3, 1), (1, 4))):
        row = np.random.default_rng(seed).integers(0, 256, (1, old, 1), dtype=np.uint8)
        assert resize_bilinear(row, 1, new).ravel().tolist() == resize_by_hand(
            row.ravel().tolist(), new
        )


def test_each_protocol_has_its_filter() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    sclip = settings_for("sclip", "voc20").changed({"short_side": 45})
    assert np.array_equal(np.asarray(resized(image, sclip)), resize_bilinear(noise, 45, 60))
    ours = np.asarray(resized(image, sclip.changed({"resize": "bicubic"})))
    assert np.array_equal(ours, np.asarray(image.resize((60, 45), Image.Resampling.BICUBIC)))
    assert not np.array_equal(ours, resize_bilinear(noise, 45, 60))


# ---- the authors' own labels

GROUPS = [0, 0, 1, 2, 3, 3]  # of the golden's six texts; group 0 is background
SIZE = (90, 110)
SCENE = Settings(
    short_side=144,
    square=144,
    resize="opencv",
    window=112,
    stride=56,
    templates=("{}",),
    scale=40.0,
    threshold=None,
    background=(),
    names="",
    rival_names=True,
)
SCENES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "sclip/scene": ("sclip", {}, {}),
    "sclip/scene_thresholds": ("sclip", {}, {"threshold": 0.35, "min_area": 0.1}),
    "sclip/scene_pamr": ("sclip", {}, {"pamr": 10}),
    "sclip/scene_whole": ("sclip", {}, {"window": None, "stride": None, "straight": True}),
    "clearclip/scene": ("clearclip", {}, {"pad": True}),
    "clearclip/scene_padded": (
        "clearclip",
        {},
        {"window": 103, "stride": 51, "pad": True, "threshold": 0.35},
    ),
    "naclip/scene": ("naclip", {}, {}),
    "naclip/scene_pamr": ("naclip", {}, {"pamr": 10, "threshold": 0.35}),
}


def model_a(method: str, settings: dict[str, Any] | None = None) -> GEMPredictor:
    """Model A of golden/family.md under a method; its text tower plays no part."""
    config = ModelConfig(
        embed=32,
        activation="quick_gelu",
        image=ImageConfig(size=112, patch=16, width=128, layers=12, heads=2, mlp_width=512),
        text=TextConfig(context=8, vocab=514, width=8, layers=1, heads=1, mlp_width=8),
    )
    network = GEMNetwork(config, make_method(method, settings))
    state = network.state_dict()
    for name, tensor in state.items():
        if name.startswith("visual."):
            state[name] = weight(name, tuple(tensor.shape), 21, 1.2, 0.5)
    network.load_state_dict(state)
    header = small_header(config=config)
    return GEMPredictor(network.eval(), header, None, kernels="torch").eval()  # type: ignore[arg-type]


def labels_of(model: GEMPredictor, settings: Settings, text: Tensor | None = None) -> Tensor:
    """0 for the group 0 and what is below the threshold, as the repositories have it."""
    image = picture("scene", torch.float32)[None]
    text = texts("texts", torch.float32) if text is None else text
    # Background words come last here: groups 1, 2, 3 are classes 0, 1, 2, and 0 is number 3.
    groups = [(group - 1) % 4 for group in GROUPS]
    return label(model, image, text, groups, 3, settings, SIZE).labels[0]


@pytest.mark.parametrize("name", SCENES)
def test_the_authors_labels(name: str) -> None:
    """The whole path from a normalised picture to labels; one pixel in a thousand may flip."""
    method, method_settings, changes = SCENES[name]
    labels = labels_of(model_a(method, method_settings), SCENE.changed(changes))
    expected = torch.from_numpy(arrays()[f"{name}/labels"].astype(np.int64))
    assert (labels == expected).float().mean() >= 0.999


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("sclip/scene", {"stride": 112}),
        ("sclip/scene_pamr", {"pamr": 8}),
        ("sclip/scene_pamr", {"pamr": 0, "refine": 10}),
        ("clearclip/scene_padded", {"pad": False}),
        ("naclip/scene_pamr", {"rival_names": False}),
    ],
)
def test_a_stage_left_out_shows(name: str, wrong: dict[str, Any]) -> None:
    method, method_settings, changes = SCENES[name]
    settings = SCENE.changed({**changes, **wrong})
    labels = labels_of(model_a(method, method_settings), settings)
    expected = torch.from_numpy(arrays()[f"{name}/labels"].astype(np.int64))
    assert (labels == expected).float().mean() < 0.998


def test_pamr_is_the_authors() -> None:
    """Steps and distances of the golden; its maps are brought to the picture's size by corners."""
    image = random_picture("pamr", (40, 56), dtype=torch.float32)[None]
    maps = torch.from_numpy(random("pamr").standard_normal((1, 2, 10, 14)).astype(np.float32))
    maps = F.interpolate(maps, size=(40, 56), mode="bilinear", align_corners=True)
    near = neighbour_weights(image, distances=(1, 3), contrast=0.1, centres=2)
    refined = refine(maps, near, distances=(1, 3), steps=4)
    expected = torch.from_numpy(arrays()["pamr/out"])
    assert (refined[0] - expected).abs().max() < 2e-5 * expected.abs().max()


# ---- windows, names


@pytest.mark.parametrize(
    ("size", "expected"),
    [((16, 32), (0, 0, 0, 0)), ((17, 32), (0, 0, 7, 8)), ((31, 20), (6, 6, 0, 1))],
)
def test_padding_is_centred(size: tuple[int, int], expected: tuple[int, int, int, int]) -> None:
    assert patch_padding(*size, 16) == expected


def test_a_low_panorama_is_padded_not_stretched() -> None:
    """30 pixels are one row of patches where the rest is cut off, and two where it is filled up."""
    model = model_a("clearclip")
    image = picture("wide", torch.float32)[None, :, :30]
    text = texts("texts", torch.float32)
    cut, filled = (SCENE.changed({"window": 80, "stride": 40, "pad": pad}) for pad in (False, True))
    with torch.no_grad():
        assert picture_scores(model, image, text, cut).grid == (1, 5)
        scores = picture_scores(model, image, text, filled)
        assert scores.grid == (2, 5) and scores.window == (30, 80)
        expected = model(
            F.pad(image[..., :80], (0, 0, 1, 1)), text, normalize=False, size="patches"
        )
    torch.testing.assert_close(scores.scores[0], expected.flatten(2))


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_name_that_background_shares_is_background(
    chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """COCO-Object's "bed": as in the originals, background has the lowest number and wins."""
    if chunk:
        monkeypatch.setattr("gem_lite.tools.evaluation.stages.CHUNK_BYTES", 1)
    model, image = model_a("sclip"), picture("native", torch.float32)[None]
    text = texts("texts", torch.float32)[:2]
    both = torch.cat([text, text[:1]])  # the class 0, the class 1, and 0's name for background
    alone = label(model, image, text, [0, 1], 2, SCENE, (112, 112)).labels
    shared = label(model, image, both, [0, 1, 2], 2, SCENE, (112, 112)).labels
    assert set(alone.unique().tolist()) == {1, 2}
    assert torch.equal(shared, torch.where(alone == 1, 0, alone))


def test_a_softmax_over_names_before_the_maximum() -> None:
    """From the cosines on, in the repositories' order of steps."""
    model, image = model_a("naclip"), picture("native", torch.float32)[None]
    text, groups = texts("texts", torch.float32), torch.tensor([3, 3, 0, 1, 2, 2])
    settings = SCENE.changed({"window": None, "stride": None, "threshold": 0.4, "min_area": 0.2})
    result = label(model, image, text, groups.tolist(), 3, settings, (90, 100))
    with torch.no_grad():
        maps = model(image, text, normalize=False)
    maps = F.interpolate(maps, size=(90, 100), mode="bilinear")[0]
    names = (40 * maps).softmax(dim=0)
    probs = torch.stack([names[groups == group].amax(dim=0) for group in (3, 0, 1, 2)])
    area = F.one_hot(probs.argmax(dim=0), 4)[..., 1:].sum(dim=(0, 1))
    probs[1:] *= (area > 0.2 * area.sum())[:, None, None]
    expected = probs.argmax(dim=0)
    expected[probs.amax(dim=0) < 0.4] = 0
    assert len(expected.unique()) > 1
    assert (area <= 0.2 * area.sum()).any() and (probs.amax(dim=0) < 0.4).any()
    assert (result.labels[0] == expected).float().mean() > 0.9999
