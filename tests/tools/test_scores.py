"""Confusion matrices and mIoU against torchmetrics; OpenImages' points against a loop; settings."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from published import save

from gem_lite.tools.evaluation.confusion import confusion, scores
from gem_lite.tools.evaluation.datasets import LayoutError
from gem_lite.tools.evaluation.layouts import IGNORED
from gem_lite.tools.evaluation.names import DATA, read_names, shipped
from gem_lite.tools.evaluation.openimages import open_points, point_counts, point_scores
from gem_lite.tools.evaluation.protocols import ONE_TEMPLATE, PROTOCOLS, settings_for


@pytest.mark.parametrize("seed", range(8))
def test_miou_is_that_of_torchmetrics(seed: int) -> None:
    """Random label maps with pixels that are not counted, added up over pictures."""
    # Here, for its import takes longer than these tests, in every process that collects them.
    from torchmetrics import JaccardIndex
    from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

    generator = torch.Generator().manual_seed(seed)
    classes = 3 + 4 * seed
    counts = torch.zeros(classes, classes, dtype=torch.int64)
    matrix = MulticlassConfusionMatrix(classes, ignore_index=IGNORED)
    jaccard = JaccardIndex("multiclass", num_classes=classes, average="none", ignore_index=IGNORED)
    accuracy = MulticlassAccuracy(classes, average="micro", ignore_index=IGNORED)
    recall = MulticlassAccuracy(classes, average="none", ignore_index=IGNORED)
    for h, w in ((17, 23), (40, 9), (31, 31)):
        truth = torch.randint(IGNORED, classes, (h, w), generator=generator)
        found = torch.randint(0, classes, (h, w), generator=generator)
        found = torch.where(torch.rand(h, w, generator=generator) < 0.6, truth.clamp(min=0), found)
        counts += confusion(truth, found, classes)
        for metric in (matrix, jaccard, accuracy, recall):
            metric.update(found[None], truth[None])
    assert torch.equal(counts, matrix.compute())
    result = scores(counts, background=True)
    torch.testing.assert_close(torch.tensor(result.iou), jaccard.compute(), rtol=0, atol=1e-6)
    torch.testing.assert_close(torch.tensor(result.recall), recall.compute(), rtol=0, atol=1e-6)
    assert result.miou == pytest.approx(float(jaccard.compute().mean()), abs=1e-6)
    assert result.pixel_accuracy == pytest.approx(float(accuracy.compute()), abs=1e-6)


def test_a_class_that_does_not_occur_has_no_score() -> None:
    truth, found = torch.tensor([[0, 1, 1, IGNORED]]), torch.tensor([[0, 1, 0, 3]])
    result = scores(confusion(truth, found, 4), background=True)
    assert result.iou[:2] == (0.5, 0.5) and math.isnan(result.iou[2]) and math.isnan(result.iou[3])
    assert result.miou == 0.5 and result.pixel_accuracy == pytest.approx(2 / 3)
    without = scores(confusion(truth.clamp(min=1) * (truth > 0) - 1 * (truth < 1), found, 4),
                     background=False)  # fmt: skip
    assert without.iou[0] == 0.5 and len(without.iou) == 3 and without.pixel_accuracy == 0.5


def test_bad_label_maps() -> None:
    with pytest.raises(ValueError, match=r"truth is \[2\], labels \[3\]"):
        confusion(torch.zeros(2), torch.zeros(3), 2)
    with pytest.raises(ValueError, match="from 0 to 7; expected 0 to 1"):
        confusion(torch.zeros(2), torch.tensor([0, 7]), 2)


# ---- points


def points_folder(root: Path) -> dict[str, list[tuple[str, float, float, bool]]]:
    """Two pictures, three labels; one label has no yes in one of them."""
    given = {
        "0001eeaf4aed83f9": [
            ("/m/01yrx", 0.1, 0.2, True),
            ("/m/01yrx", 0.9, 0.9, False),
            ("/m/0bt9lr", 0.5, 0.5, False),
            ("/m/0k4j", 0.99999, 0.0, True),
        ],
        "000595fe6fee6369": [("/m/0bt9lr", 1.0, 1.0, True), ("/m/0bt9lr", 0.3, 0.1, True)],
    }
    root.mkdir()
    lines = ["ImageId,X,Y,Label,EstimatedYesNo,Source,YesVotes,NoVotes,UnsureVotes,TextLabel"]
    for image, points in given.items():
        save(root / "validation" / f"{image}.jpg", np.zeros((20, 30, 3)))
        for label, x, y, yes in points:
            lines.append(f"{image},{x},{y},{label},{'yes' if yes else 'no'},ih,1,0,0,")
    lines.append(f"{image},0.5,0.5,/m/0k4j,unsure,ih,0,0,1,")
    (root / "oidv7-val-annotations-point-labels.csv").write_text("\n".join(lines) + "\n")
    (root / "oidv7-class-descriptions.csv").write_text(
        "LabelName,DisplayName\n/m/01yrx,Cat\n/m/0bt9lr,Dog\n/m/0k4j,Car\n"
    )
    return given


def test_points_are_read_and_counted(tmp_path: Path) -> None:
    given = points_folder(tmp_path / "data")
    data = open_points(tmp_path / "data")
    assert data.classes == ("Cat", "Dog", "Car")
    assert [item.name for item in data.items] == sorted(given)
    assert [[data.classes[k] for k in item.classes] for item in data.items] == [
        ["Cat", "Car"],  # the dog has no yes in this picture
        ["Dog"],
    ]
    counts, asked = [], []
    by_hand: dict[str, list[tuple[bool, bool]]] = {}  # of each class
    pairs: list[list[tuple[bool, bool]]] = []  # of each picture and class
    names = {"/m/01yrx": "Cat", "/m/0bt9lr": "Dog", "/m/0k4j": "Car"}
    for item in data.items:
        generator = torch.Generator().manual_seed(len(item.points))
        maps = torch.rand(len(item.classes), 20, 30, generator=generator)
        counts.append(point_counts(maps, item))
        asked += item.classes
        for place, number in enumerate(item.classes):
            pairs.append([])
            for label, x, y, yes in given[item.name]:
                if names[label] == data.classes[number]:
                    value = maps[place, min(int(20 * y), 19), min(int(30 * x), 29)]
                    pairs[-1].append((yes, bool(value > 0.5)))
            by_hand.setdefault(data.classes[number], []).extend(pairs[-1])
    result = point_scores(torch.cat(counts), asked, 3)
    assert result.counts.tolist() == [
        [sum(pair == kind for pair in by_hand[name]) for kind in KINDS] for name in data.classes
    ]
    assert result.iou == pytest.approx([mean_iou(by_hand[name]) for name in data.classes])
    assert result.by_class == pytest.approx(np.mean(result.iou))
    assert result.by_picture == pytest.approx(np.mean([mean_iou(pair) for pair in pairs]))
    assert result.pooled == pytest.approx(mean_iou(sum(pairs, [])))


# (said yes by people, inside the map's half) in the order of the counts.
KINDS = ((True, True), (False, True), (True, False), (False, False))


def mean_iou(pairs: list[tuple[bool, bool]]) -> float:
    ious = []
    for side in (True, False):
        either = sum(yes == side or inside == side for yes, inside in pairs)
        if either:
            ious.append(sum(yes == side and inside == side for yes, inside in pairs) / either)
    return float(np.mean(ious))


def test_three_averages_of_points() -> None:
    """Two pictures of one class and one of another: worked out by hand."""
    counts = torch.tensor([[4, 0, 0, 4], [0, 2, 2, 0], [1, 1, 0, 0]])
    result = point_scores(counts, [0, 0, 1], 3)
    assert result.iou[:2] == pytest.approx((0.5, 0.25)) and math.isnan(result.iou[2])
    assert result.by_class == pytest.approx(0.375)
    assert result.by_picture == pytest.approx((1 + 0 + 0.25) / 3)
    assert result.pooled == pytest.approx((5 / 10 + 4 / 9) / 2)


def test_points_through_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gem_lite.tools.cli import main

    points_folder(tmp_path / "data")
    arguments = ["evaluate", "--dataset", "openimages", "--root", str(tmp_path / "data")]
    arguments += ["--square", "64", "--model", "tiny-emoji", "--pretrained", "v1"]
    arguments += ["--output", str(tmp_path / "out")]
    assert main(arguments) == 0
    text = (tmp_path / "out" / "result.json").read_text()
    result = json.loads(text)
    assert result["protocol"] == "gem" and np.shape(result["counts"]) == (3, 4)
    assert all(0 <= result[f"p_miou{way}"] <= 1 for way in ("", "_by_picture", "_pooled"))
    scores = {json.dumps(result["counts"])}
    for control in ("word", "subject", "brightness", "centre"):
        assert main([*arguments, "--control", control]) == 0
        controlled = json.loads((tmp_path / "out" / "result.json").read_text())
        assert np.sum(controlled["counts"]) == np.sum(result["counts"])
        scores.add(json.dumps(controlled["counts"]))
    assert len(scores) > 1
    for option in (["--window", "224"], ["--flip"], ["--threshold", "0.5"], ["--scale", "9"]):
        assert main([*arguments, *option]) == 2
        assert f"{option[0]}: not used for openimages" in capsys.readouterr().err
    assert main([*arguments, "--protocol", "sclip"]) == 2
    assert "--protocol sclip has no settings for openimages; use gem" in capsys.readouterr().err


def test_points_that_cannot_be_read(tmp_path: Path) -> None:
    root = tmp_path / "data"
    points_folder(root)
    listing = root / "oidv7-val-annotations-point-labels.csv"
    good = listing.read_text()
    listing.write_text(good.replace("0.1,0.2", "left,0.2"))
    with pytest.raises(ValueError, match="line 2: could not convert"):
        open_points(root)
    listing.write_text(good.replace("0.1,0.2", "nan,0.2"))
    with pytest.raises(ValueError, match=r"line 2: the point \(nan, 0.2\) lies outside"):
        open_points(root)
    listing.write_text(good.replace("0.1,0.2,", "0.1,"))
    with pytest.raises(ValueError, match="line 2: zip"):
        open_points(root)
    for junk in (b'"' + 200_000 * b"x", b"ImageId,\xff\xfe\n"):
        listing.write_bytes(junk)
        with pytest.raises(ValueError, match="cannot be read as CSV"):
            open_points(root)
    listing.write_text(good.replace("EstimatedYesNo", "Answer"))
    with pytest.raises(ValueError, match=r"no columns \['EstimatedYesNo'\]"):
        open_points(root)
    listing.write_text(good)
    (root / "validation" / "000595fe6fee6369.jpg").unlink()
    with pytest.raises(LayoutError, match="name 000595fe6fee6369, but there is no"):
        open_points(root)


# ---- settings and data files


def test_protocols_say_what_the_papers_say() -> None:
    sclip, clear = settings_for("sclip", "voc21"), settings_for("clearclip", "voc21")
    assert (sclip.short_side, sclip.window, sclip.stride) == (336, 224, 112)
    assert (sclip.scale, sclip.threshold, sclip.min_area) == (65, 0.1, 0.1)
    assert len(sclip.templates) == 80 and len(sclip.background) == 26
    assert settings_for("sclip", "voc20").scale == 40
    assert settings_for("sclip", "context60").threshold == 0.1
    assert settings_for("sclip", "coco_object").scale == 50
    assert settings_for("sclip", "stuff171").short_side == 448
    assert settings_for("sclip", "cityscapes").short_side == 560
    assert (clear.short_side, clear.window, clear.stride) == (448, 448, 224)
    assert (clear.scale, clear.threshold) == (50, 0.5)
    assert settings_for("clearclip", "context60").threshold == 0.15
    assert settings_for("clearclip", "coco_object").threshold == 0.4
    assert settings_for("clearclip", "cityscapes").window == 224
    gem = settings_for("gem", "voc21")
    assert gem.input_size(300, 500) == (448, 448) and gem.templates == ONE_TEMPLATE
    assert set(PROTOCOLS) == {"gem", "sclip", "clearclip", "naclip", "ours"}
    assert settings_for("ours", "voc21").resize == gem.resize == "bicubic" != sclip.resize
    person = {word: read_names(shipped(f"voc20{word}"))[14] for word in ("-sclip", "-clearclip")}
    assert len(person["-sclip"]) == 7 and person["-clearclip"] == ("person",)
    assert settings_for("clearclip", "voc21").names == "-clearclip"
    assert settings_for("clearclip", "ade150").names == "-sclip"
    for name in ("voc20", "voc21"):
        naclip = settings_for("naclip", name)
        assert naclip.window is None and naclip.pamr == 10 and naclip.scale == 40
    assert settings_for("naclip", "voc21").threshold == 0.1
    assert settings_for("naclip", "voc21").min_area == 0
    assert settings_for("naclip", "stuff171").short_side == 336
    assert settings_for("naclip", "cityscapes").short_side == 560
    assert settings_for("naclip", "context60").window == 224
    assert settings_for("sclip", "voc21").without_background().threshold is None
    with pytest.raises(ValueError, match="no protocol 'other'; known: sclip, clearclip"):
        settings_for("other", "voc21")
    with pytest.raises(ValueError, match=r"no settings \['size'\]"):
        gem.changed({"size": 3})


@pytest.mark.parametrize(
    ("size", "expected"),
    [((375, 500), (336, 448)), ((500, 333), (505, 336)), ((100, 3000), (68, 2048))],
)
def test_input_sizes(size: tuple[int, int], expected: tuple[int, int]) -> None:
    """Ratio kept, rounded to the nearest; the long side has an end."""
    assert settings_for("sclip", "voc21").input_size(*size) == expected


COUNTS = {"voc20": 20, "context59": 59, "ade150": 150, "stuff171": 171, "coco_object": 80}


@pytest.mark.parametrize(("name", "count"), [*COUNTS.items(), ("cityscapes", 19)])
def test_class_names(name: str, count: int) -> None:
    for file in (name, f"{name}-sclip"):
        classes = read_names(shipped(file))
        assert len(classes) == count
        assert "person" in [names[0] for names in classes]
    assert f"`{name}.txt`" in (DATA / "README.md").read_text()


def test_templates_and_names_files(tmp_path: Path) -> None:
    templates = settings_for("sclip", "voc20").templates
    assert len(set(templates)) == 80 and all(text.count("{}") == 1 for text in templates)
    assert templates[0] == "a bad photo of a {}." and templates[-1] == "a tattoo of the {}."
    path = tmp_path / "names.txt"
    path.write_text("# mine\ncat, kitten\n\n dog \n")
    assert read_names(path) == (("cat", "kitten"), ("dog",))
    path.write_text("# nothing\n")
    with pytest.raises(ValueError, match="is empty; expected one entry a line"):
        read_names(path)
    Image.new("L", (9, 9)).save(tmp_path / "names.png")
    with pytest.raises(ValueError, match="not text in UTF-8"):
        read_names(tmp_path / "names.png")
