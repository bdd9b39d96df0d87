"""`gem-lite evaluate` from end to end: published layouts through the real command and model."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from published import CONTEXT_NUMBERS, WRITERS, list_name, make, save

import gem_lite
from gem_lite import factory
from gem_lite.checkpoints import known
from gem_lite.tools.cli import main
from gem_lite.tools.evaluation import evaluate as evaluation
from gem_lite.tools.evaluation import run as running
from gem_lite.tools.evaluation.datasets import open_set
from gem_lite.tools.quality.controls import CONTROLS
from gem_lite.tools.quality.scenes import Sprites, scenes

ROOT = Path(__file__).parents[2]
MODEL = ["--model", "tiny-emoji", "--pretrained", "v1"]
# Squashed to a small square, so that the small model is quick.
QUICK = ["--protocol", "gem", "--square", "128", "--scale", "50", "--threshold", "0"]
QUICK += ["--background", "background"]
FOLDS = ("voc20", "context59", "ade150", "stuff171", "cityscapes")  # without background


@pytest.fixture(scope="module")
def shared_model() -> tuple[Any, Any]:
    return gem_lite.create_model_and_transforms("tiny-emoji", "v1")


@pytest.fixture
def run(
    shared_model: tuple[Any, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., tuple[int, str, str]]:
    """The command in this process, with one model for all tests: exit code, stdout, stderr."""
    monkeypatch.setattr(factory, "create_model_and_transforms", lambda *a, **k: shared_model)

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main(["evaluate", *map(str, arguments), *MODEL])
        return code, *capsys.readouterr()

    return call


Run = Callable[..., tuple[int, str, str]]


def miou_by_hand(
    truth: dict[str, NDArray], predictions: Path, classes: int, background: bool
) -> tuple[float, float]:
    """From the saved predictions: mean IoU over the classes that occur, and pixel accuracy."""
    both, either, right, counted = np.zeros(classes + 1), np.zeros(classes + 1), 0, 0
    for name, labels in truth.items():
        found = np.asarray(Image.open(predictions / f"{name}.png"))
        keep = np.full(labels.shape, True) if background else labels > 0
        right, counted = right + (found == labels)[keep].sum(), counted + keep.sum()
        for k in range(classes + 1):
            both[k] += ((labels == k) & (found == k) & keep).sum()
            either[k] += (((labels == k) | (found == k)) & keep).sum()
    first = 0 if background else 1
    present = either[first:] > 0
    return float((both[first:][present] / either[first:][present]).mean()), right / counted


def result_of(folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return result


@pytest.mark.parametrize(
    ("dataset", "raw"),
    [*((name, False) for name in WRITERS), ("stuff171", True), ("coco_object", True)]
    + [("cityscapes", True), ("context60", True)],
)
def test_published_layouts(dataset: str, raw: bool, run: Run, tmp_path: Path) -> None:
    """The reported mIoU is that of the saved predictions, and GEM's is far above plain CLIP's."""
    made = make(dataset, tmp_path / "data", raw=raw)
    arguments = ["--dataset", dataset, "--root", made.root, "--names", made.names, *QUICK]
    seen = {}
    methods = {"gem": [], "plain": ["--plain"]}
    for method, flags in methods.items():
        out = tmp_path / method
        code, text, _ = run(*arguments, "--output", out, "--save-predictions", *flags)
        assert code == 0
        result = seen[method] = result_of(out)
        miou, accuracy = miou_by_hand(
            made.truth, out / "predictions", made.classes, dataset not in FOLDS
        )
        assert result["miou"] == pytest.approx(miou, abs=1e-12)
        assert result["pixel_accuracy"] == pytest.approx(accuracy, abs=1e-12)
        assert f"miou {100 * miou:.2f}" in text
        assert sorted(path.stem for path in (out / "predictions").iterdir()) == sorted(made.truth)
        assert not list(out.glob("partial*"))
    # Only a few of the classes occur, and each that is found by mistake counts as a zero in mIoU:
    # the bounds are low, but the ratio is not. Seen: twice to fifty times plain CLIP's.
    gem, plain = seen["gem"], seen["plain"]
    assert gem["pixel_accuracy"] > plain["pixel_accuracy"] + 0.07
    assert gem["miou"] > 1.8 * plain["miou"] + 0.005


def test_pascal_context_as_published(tmp_path: Path) -> None:
    """One JSON file of run lengths, or .mat files of 459 classes: the same labels as the PNGs."""
    for kind in ("png", "json", "mat"):
        (tmp_path / kind).mkdir()
        make("context60", tmp_path / kind / "data", raw=kind == "json", count=2)
    base = tmp_path / "mat" / "data" / "VOC2010"
    expected = {}
    for item in open_set("context60", tmp_path / "png" / "data").items:
        expected[item.name] = np.asarray(Image.open(item.labels))
        assert set(np.unique(expected[item.name])) - {0}
    data = open_set("context60", tmp_path / "json" / "data")
    assert {item.name for item in data.items} == set(expected)
    for item in data.items:
        assert np.array_equal(data.truth(item), expected[item.name])
    scipy_io = pytest.importorskip("scipy.io", reason="scipy reads .mat files; the context extra")
    shutil.rmtree(base / "SegmentationClassContext")
    shutil.rmtree(base / "ImageSets")
    list_name(base / "ImageSets" / "Main" / "val.txt", "2008_999999")  # has no labels of Context
    (base / "trainval").mkdir()
    for name, labels in expected.items():
        stored = np.array([1, *CONTEXT_NUMBERS], dtype=np.uint16)[labels]  # 1: an infrequent class
        scipy_io.savemat(base / "trainval" / f"{name}.mat", {"LabelMap": stored})
        list_name(base / "ImageSets" / "Main" / "val.txt", name)
    data = open_set("context60", tmp_path / "mat" / "data")
    for item in data.items:
        assert np.array_equal(data.truth(item), expected[item.name])
    (base / "trainval" / f"{name}.mat").write_bytes(b"MATLAB 5.0 and nothing more")
    with pytest.raises(ValueError, match=rf"{name}.mat cannot be read as a .mat file"):
        [data.truth(item) for item in data.items]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text[:-9], "is not Pascal Context's trainval_merged.json"),
        (lambda text: text.replace('"phase"', '"fase"'), "is not Pascal Context's"),
        (lambda text: text.replace('"height": 1', '"height": 9'), "an area does not fit 9"),
        (lambda text: text.replace('"category_id": ', '"category_id": 9'), "from 0 to 459"),
        (lambda text: text.replace('"category_id": ', '"category_id": 1e999, "x": '), "infinity"),
        (lambda text: text.replace('"height": 1', '"height": 1e9, "x": 1'), "1000000000.0 x"),
        (lambda text: text.replace('"height": 1', '"height": 99999999'), "pixels"),
        (lambda text: text.replace('"counts": "', '"counts": "' + 20 * "o"), "longer than any"),
        (lambda text: text.replace('"val"', '"test"'), "there are no labels of the split val"),
    ],
)
def test_a_damaged_pascal_context(
    change: Callable[[str], str], message: str, tmp_path: Path
) -> None:
    make("context60", tmp_path / "data", raw=True, count=1)
    merged = tmp_path / "data" / "VOC2010" / "trainval_merged.json"
    merged.write_text(change(merged.read_text()))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        data = open_set("context60", tmp_path / "data")
        [data.truth(item) for item in data.items]


@pytest.mark.parametrize("pictures", ["val2017", "images/val2017"])
@pytest.mark.parametrize("labels", ["val2017", "stuffthingmaps/val2017", "annotations/val2017"])
def test_the_archives_of_coco_wherever_they_are_unpacked(
    pictures: str, labels: str, tmp_path: Path
) -> None:
    made = make("stuff171", tmp_path / "data", raw=True, count=2)
    for old, new in (("images/val2017", pictures), ("annotations/val2017", labels)):
        for path in list((made.root / old).iterdir()):
            (made.root / new).mkdir(parents=True, exist_ok=True)
            path.rename(made.root / new / path.name)
    for old in ("images", "annotations"):
        if not any((made.root / old).rglob("*.*")):
            shutil.rmtree(made.root / old)
    data = open_set("stuff171", made.root)
    for item in data.items:
        truth = np.where(data.truth(item) < 0, 0, data.truth(item))
        assert np.array_equal(truth, made.truth[item.name])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images, palette labels and a names file; the first row of pixels is not counted."""
    root = tmp_path_factory.mktemp("data") / "made"
    names = ["airplane", "banana", "car", "guitar", "pizza", "strawberry"]
    sprites = Sprites.load(ROOT / "examples/scenes/sprites.npz")
    sprites = sprites.select(styles=["noto"], names=names)
    for number, scene in enumerate(scenes(sprites, seed=3, count=8, things=(3, 3), jitter=0.0)):
        labels = np.array([0, *(names.index(name) + 1 for name in scene.names)])[scene.mask]
        labels[0] = 255
        save(root / "labels" / f"picture {number}.png", labels[:100], palette=True)
        save(root / "images" / f"picture {number}.jpg", scene.image[:100])
    (root / "names.txt").write_text("# the drawings\n" + "\n".join(names) + "\n")
    return root


def test_a_folder_pair_and_its_files(run: Run, folder: Path, tmp_path: Path) -> None:
    arguments = ["--dataset", "folder", "--root", folder, *QUICK]
    code, text, err = run(*arguments, "--output", tmp_path / "gem")
    assert code == 0 and "pictures are done" not in err
    result = result_of(tmp_path / "gem")
    assert run(*arguments, "--output", tmp_path / "plain", "--plain")[0] == 0
    assert result["miou"] > result_of(tmp_path / "plain")["miou"] + 0.15
    assert np.sum(result["counts"]) == sum(
        Image.open(p).height * Image.open(p).width - Image.open(p).width
        for p in (folder / "labels").iterdir()
    )
    with open(tmp_path / "gem" / "classes.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows][:2] == ["background", "airplane"] and len(rows) == 7
    values = [float(row["IoU"]) for row in rows if row["IoU"]]
    assert np.mean(values) == pytest.approx(result["miou"], abs=1e-12)
    assert result["settings"]["square"] == 128 and result["settings"]["scale"] == 50
    speed = json.loads((tmp_path / "gem" / "speed.json").read_text())
    assert speed["pictures"] == 8 and speed["pictures_per_second"] > 0
    assert "background" in text and "miou" in text


def test_every_knob_is_written_down_and_counts(run: Run, folder: Path, tmp_path: Path) -> None:
    arguments = ["--dataset", "folder", "--root", folder, "--limit", "2", "--seed", "5"]
    arguments += ["--protocol", "sclip", "--short-side", "112", "--window", "64", "--stride", "48"]
    arguments += ["--templates", "one", "--flip", "--refine", "2", "--no-rival-names"]
    arguments += ["--background", "background", "nothing", "--min-area", "0.05", "--scale", "30"]
    code, _, _ = run(*arguments, "--threshold", "0.2", "--output", tmp_path / "out")
    assert code == 0
    result = result_of(tmp_path / "out")
    assert result["settings"] == {
        "short_side": 112,
        "square": 336,
        "resize": "opencv",
        "window": 64,
        "stride": 48,
        "pad": False,
        "straight": True,
        "flip": True,
        "refine": 2,
        "pamr": 0,
        "templates": ["a photo of a {}."],
        "scale": 30.0,
        "threshold": 0.2,
        "background": ["background", "nothing"],
        "names": "-sclip",
        "rival_names": False,
        "min_area": 0.05,
    }
    assert result["pictures"] == 2 and result["limit"] == 2 and result["seed"] == 5
    assert run(*arguments, "--threshold", "0", "--output", tmp_path / "other")[0] == 0
    assert result_of(tmp_path / "other")["counts"] != result["counts"]


def test_no_way_to_background_is_told(run: Run, folder: Path, tmp_path: Path) -> None:
    arguments = ["--dataset", "folder", "--root", folder, "--limit", "1", "--output", tmp_path]
    arguments += ["--protocol", "ours", "--short-side", "64", "--templates", "one"]
    code, _, err = run(*arguments)
    assert code == 0 and "neither a threshold nor a word for background" in err
    for option in (["--threshold", "0.3"], ["--background", "background"], ["--zero", "ignored"]):
        code, _, err = run(*arguments, *option, "--restart")
        assert code == 0 and "neither" not in err


def test_json(run: Run, folder: Path, tmp_path: Path) -> None:
    """The files' content as one line, and nothing else on standard output."""
    arguments = ["--dataset", "folder", "--root", folder, *QUICK, "--limit", "2"]
    code, text, _ = run(*arguments, "--output", tmp_path, "--json")
    assert code == 0 and len(text.splitlines()) == 1
    printed = json.loads(text)
    assert printed.pop("speed") == json.loads((tmp_path / "speed.json").read_text())
    assert printed == result_of(tmp_path)
    assert printed["method"] == "gem" and printed["method_settings"]["blocks"] > 0


def test_methods_and_settings_of_gem(folder: Path, tmp_path: Path) -> None:
    base = ["evaluate", "--dataset", "folder", "--root", str(folder), *QUICK, *MODEL]
    base += ["--limit", "2", "--output"]
    changes = {
        "gem": ["--gem-depth", "3", "--ss-attn-iter", "3", "--ss-attn-temp", "9"],
        "residual": ["--no-gem-residual"],
        "sclip": ["--method", "sclip"],
        "naclip": ["--method", "naclip:std=3"],
    }
    results = {}
    for name, options in changes.items():
        assert main([*base, str(tmp_path / name), *options]) == 0
        results[name] = result_of(tmp_path / name)
    assert [results[name]["method"] for name in changes] == ["gem", "gem", "sclip", "naclip"]
    gem, residual = results["gem"]["method_settings"], results["residual"]["method_settings"]
    assert (gem["blocks"], gem["iters"], gem["inv_temp"], gem["residual"]) == (2, 3, 9.0, True)
    assert residual["residual"] is False
    counts = [json.dumps(results[name]["counts"]) for name in changes]
    assert results["naclip"]["method_settings"]["std"] == 3 and len(set(counts)) == 4


def test_controls(run: Run, folder: Path, tmp_path: Path) -> None:
    """GEM's own maps score well above each; the labels are those that the control stands for."""
    base = ["--dataset", "folder", "--root", folder, *QUICK, "--save-predictions"]
    assert run(*base, "--output", tmp_path / "gem")[0] == 0
    gem = result_of(tmp_path / "gem")
    for control in CONTROLS:
        assert run(*base, "--output", tmp_path / control, "--control", control)[0] == 0
        result = result_of(tmp_path / control)
        assert result["control"] == control and gem["control"] is None
        assert gem["miou"] > result["miou"] + 0.1
    for path in (tmp_path / "gem" / "predictions").iterdir():
        number = int(path.stem.split()[1])
        own = np.asarray(Image.open(path))
        shifted = np.where(own > 0, (own - 1 + 1 + number % 5) % 6 + 1, 0)
        assert np.array_equal(
            np.asarray(Image.open(tmp_path / "word" / "predictions" / path.name)), shifted
        )
        middle = np.asarray(Image.open(tmp_path / "centre" / "predictions" / path.name))
        assert len(np.unique(middle)) == 2 and middle[0, 0] == 0 < middle[50, 64]
        assert 0.7 < (middle > 0).mean() < 0.9  # 1 - (y^2 + x^2) / 2 above a half: pi / 4


def test_text_is_encoded_once(
    run: Run, folder: Path, tmp_path: Path, shared_model: tuple[Any, Any], monkeypatch: Any
) -> None:
    model = shared_model[0]
    model.clear_text_cache()
    calls = []
    encode = model.network.encode_text

    def counted(tokens: torch.Tensor) -> torch.Tensor:
        calls.append(len(tokens))
        return encode(tokens)

    monkeypatch.setattr(model.network, "encode_text", counted)
    arguments = ["--dataset", "folder", "--root", folder, *QUICK, "--output", tmp_path]
    assert run(*arguments, "--limit", "4")[0] == 0
    assert calls == [7]


# ---- killed and gone on with


def dying(after: int, task: Callable[..., Any] = evaluation.pixel_task) -> Callable[..., Any]:
    """The task of a run that is interrupted after so many pictures."""

    def build(*a: Any, **k: Any) -> Any:
        whole = task(*a, **k)
        left = [after]

        def score(index: int, loaded: Any) -> torch.Tensor:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return whole.score(index, loaded)

        return running.Task(whole.names, whole.shape, whole.load, score)

    return build


def test_a_killed_run_goes_on(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs die, one of them while it saves; the third ends with the same numbers."""
    arguments = ["--dataset", "folder", "--root", folder, *QUICK, "--save-every", "0"]
    assert run(*arguments, "--output", tmp_path / "whole")[0] == 0
    out = tmp_path / "parts"
    monkeypatch.setattr(evaluation, "pixel_task", dying(3))
    assert run(*arguments, "--output", out)[0] == 130
    assert len(running.read_partial(out / "partial-0.npz", key_of(out), (7, 7)).done) == 3
    monkeypatch.setattr(evaluation, "pixel_task", dying(2))
    assert run(*arguments, "--output", out)[0] == 130
    monkeypatch.setattr(evaluation, "pixel_task", dying(3))  # exactly those that are left
    code, _, err = run(*arguments, "--output", out)
    assert code == 0 and "continues: 5 of 8 pictures are done" in err
    first, second = result_of(tmp_path / "whole"), result_of(out)
    assert first == second
    assert not list(out.glob("partial*"))


def key_of(folder: Path) -> str:
    with np.load(folder / "partial-0.npz") as stored:
        return str(stored["key"])


def test_a_partial_file_of_another_run_is_not_mixed_in(
    run: Run, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--dataset", "folder", "--root", folder, *QUICK, "--output", tmp_path / "out"]
    arguments += ["--limit", "2"]
    load = evaluation.pixel_task
    monkeypatch.setattr(
        evaluation,
        "pixel_task",
        lambda *a, **k: running.Task(
            load(*a, **k).names,
            (7, 7),
            lambda index: (_ for _ in ()).throw(KeyboardInterrupt),
            max,
        ),
    )
    assert run(*arguments)[0] == 130
    key_of_all = key_of(tmp_path / "out")
    monkeypatch.setattr(evaluation, "pixel_task", load)
    code, _, err = run(*arguments, "--scale", "20")
    assert code == 2 and "of a run with another settings; give another --output" in err
    assert len(err.splitlines()) == 1
    assert run(*arguments, "--scale", "20", "--restart")[0] == 0
    partial = tmp_path / "out" / "partial-0.npz"
    partial.write_bytes(b"nonsense")
    code, _, err = run(*arguments)
    assert code == 2 and "cannot be read" in err and "--restart" in err
    counts, done = np.zeros((7, 7), dtype=np.int64), np.array(["picture 0"])
    for key in ("no json", "[1, 2]", "17", "[" * 100_000):
        np.savez_compressed(partial, counts=counts, done=done, key=key)
        code, _, err = run(*arguments)
        assert code == 2 and "partial-0.npz has a key that is not a JSON object" in err
        assert len(err.splitlines()) == 1
    np.savez_compressed(partial, counts=counts[:3], done=done, key=key_of_all)
    code, _, err = run(*arguments)
    assert code == 2 and "has counts torch.int64 [3, 7]; expected torch.int64 [7, 7]" in err


# ---- mistakes

MISTAKES: dict[str, tuple[list[str], str]] = {
    "no folder": (
        ["--dataset", "voc21", "--root", "nowhere"],
        "--root nowhere: there is no such folder",
    ),
    "voc": (["--dataset", "voc20", "--root", "."], ". is not voc20 as published: there is no"),
    "context": (["--dataset", "context60", "--root", "."], "there is no JPEGImages"),
    "ade": (["--dataset", "ade150", "--root", "."], "http://sceneparsing.csail.mit.edu/"),
    "coco": (["--dataset", "stuff171", "--root", "."], "there is no folder images/val2017"),
    "cityscapes": (["--dataset", "cityscapes", "--root", "."], "https://www.cityscapes-dataset"),
    "openimages": (["--dataset", "openimages", "--root", "."], "oidv7-val-annotations-point"),
    "folder": (["--dataset", "folder", "--root", "."], "no folder images"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_wrong_folder(
    arguments: list[str], message: str, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last line says what is wrong and where to get it; the lines above draw what should be."""
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 2 and out == ""
    lines = err.splitlines()
    assert message in lines[-1]
    if arguments[-1] == ".":
        assert lines[0] == "expected layout:" and "  ROOT/" in lines[1] and len(lines) >= 4
    assert os.listdir(tmp_path) == []


def test_wrong_labels(run: Run, folder: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    shutil.copytree(folder, bad)
    first = sorted((bad / "labels").iterdir())[0]
    arguments = ["--dataset", "folder", "--root", bad, *QUICK, "--output", tmp_path / "out"]
    size = Image.open(first).size
    for stored, message in (
        (
            Image.new("L", size, 33),
            "holds the value 33, which folder with 6 classes does not have",
        ),
        (Image.new("L", (5, 7)), "has 7 x 5 pixels"),
        (Image.new("RGB", size), "has mode RGB"),
    ):
        stored.save(first)
        code, _, err = run(*arguments, "--restart")
        assert code == 2 and message in err.splitlines()[-1] and first.name in err
    Image.new("L", size).save(first)
    broken = sorted((bad / "images").iterdir())[1]
    broken.write_bytes(b"no picture")
    code, _, err = run(*arguments, "--restart")
    assert code == 2 and f"{broken.name} cannot be read as a picture" in err
    for wrong, message in (
        (["--limit", "0"], "--limit is 0"),
        (["--scale", "-1"], "scale is -1"),
        (["--names", "nothing.txt"], "no file nothing.txt"),
        (["--templates", "nothing.txt"], "no file nothing.txt"),
        (["--window", "-3"], "--window is -3"),
        (["--output", first], "is a file"),
    ):
        code, _, err = run(*arguments, "--restart", *wrong)
        assert code == 2 and message in err.splitlines()[-1], err


@pytest.mark.parametrize("here", [True, False])
def test_the_model_by_default(
    here: bool,
    shared_model: tuple[Any, Any],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The published numbers' own, fetched if need be, and told; never the model in the box."""
    asked = []

    def create(*arguments: Any, **options: Any) -> tuple[Any, Any]:
        asked.append(arguments[:2])
        return shared_model

    monkeypatch.setattr(factory, "create_model_and_transforms", create)
    monkeypatch.setattr(known, "find_file", lambda row: Path("x") if here else None)
    arguments = ["evaluate", "--dataset", "folder", "--root", str(folder), *QUICK, "--limit", "1"]
    assert main([*arguments, "--output", str(tmp_path / "out")]) == 0
    assert asked == [("ViT-B/16", "openai")]
    err = capsys.readouterr().err
    assert "model ViT-B/16 openai (for photographs" in err and ("fetched" in err) != here
    assert main([*arguments, "--output", str(tmp_path / "other"), "--model", "tiny-emoji"]) == 0
    assert asked[1:] == [("tiny-emoji", "v2")]


# ---- several processes


def torchrun(processes: int, arguments: list[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "gem_lite", "evaluate", *arguments, *MODEL],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.fixture(scope="module")
def whole(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process writes of the folder, with one thread as torchrun gives each process."""
    out = tmp_path_factory.mktemp("whole") / "out"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums round the same way
    try:
        arguments = ["--dataset", "folder", "--root", str(folder), *QUICK, *MODEL]
        assert main(["evaluate", *arguments, "--output", str(out)]) == 0
    finally:
        torch.set_num_threads(threads)
    return out


def test_processes_give_the_same_numbers(
    run: Run, folder: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2 processes go on where one was stopped, and write the very same file."""
    arguments = ["--dataset", "folder", "--root", str(folder), *QUICK, "--save-every", "0"]
    arguments += ["--output", str(tmp_path / "out")]
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "pixel_task", dying(3))
        assert run(*arguments)[0] == 130
    text, err = (job := torchrun(2, arguments)).communicate(timeout=200)
    assert job.returncode == 0, err
    assert text.count("miou") == 1  # one process reports
    assert "continues: 3 of 8 pictures are done" in err
    out = tmp_path / "out"
    assert json.loads((out / "speed.json").read_text())["processes"] == 2
    assert (out / "result.json").read_bytes() == (whole / "result.json").read_bytes()
    assert not list(out.glob("partial*"))


@pytest.mark.skipif(sys.platform != "linux", reason="finds a process by Linux's /proc")
def test_a_process_that_is_killed_ends_the_run(
    run: Run, folder: Path, whole: Path, tmp_path: Path
) -> None:
    """kill -9 of one of 2 while the other waits for it; one process goes on to the same numbers."""
    root, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(folder, root)
    arguments = ["--dataset", "folder", "--root", str(root), *QUICK, "--save-every", "0"]
    arguments += ["--output", str(out)]
    held = sorted((root / "images").iterdir())[3]  # the second one's second picture
    content = held.read_bytes()
    held.unlink()
    os.mkfifo(held)  # whoever reads it waits for ever
    job = torchrun(2, arguments)
    try:
        done = [0, 0]
        for _ in range(6000):
            for rank, path in enumerate(sorted(out.glob("partial-*.npz"))):
                done[rank] = len(running.read_partial(path, key_of_path(path), (7, 7)).done)
            if done == [4, 1] or job.poll() is not None:
                break
            time.sleep(0.02)
        assert done == [4, 1]
        os.kill(process_of_rank(1, job.pid), signal.SIGKILL)
        _, err = job.communicate(timeout=60)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode != 0
    assert any(
        line.startswith("gem-lite: ") and "start the same command again" in line
        for line in err.splitlines()
    ), err
    assert not (out / "result.json").exists()
    held.unlink()
    held.write_bytes(content)
    code, _, err = run(*arguments)
    assert code == 0 and "continues: 5 of 8 pictures are done" in err
    assert not list(out.glob("partial*"))
    assert result_of(out)["counts"] == result_of(whole)["counts"]


def process_of_rank(rank: int, launcher: int) -> int:
    """The launcher's child of this rank."""
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            variables = path.with_name("environ").read_text().split("\0") if parent else []
        except OSError:  # it has ended
            continue
        if parent == launcher and f"RANK={rank}" in variables:
            return int(path.parent.name)
    raise LookupError(f"{launcher} has no process of rank {rank}")


def key_of_path(path: Path) -> str:
    with np.load(path) as stored:
        return str(stored["key"])


def test_told_to_stop(folder: Path, tmp_path: Path) -> None:
    """SIGTERM, which the launcher sends when another process dies: one line, and work is kept."""
    out = tmp_path / "out"
    arguments = ["--dataset", "folder", "--root", str(folder), *QUICK, "--output", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "gem_lite", "evaluate", *arguments, *MODEL, "--save-every", "0"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    for _ in range(2000):
        if list(out.glob("partial*")) or process.poll() is not None:
            break
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    if process.returncode == 0:
        pytest.skip("it was done before the signal came")
    assert process.returncode == 143
    assert "torchrun" not in err and "start the same command again" in err.splitlines()[-1]
    assert running.read_partial(out / "partial-0.npz", key_of(out), (7, 7)).done


def test_shares() -> None:
    from gem_lite.tools.ranks import Rank, share

    items = list(range(11))
    parts = [share(items, Rank(rank, 3, rank)) for rank in range(3)]
    assert sorted(sum(parts, [])) == items and max(map(len, parts)) - min(map(len, parts)) <= 1
    assert share(items) == items


def test_a_broken_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    from gem_lite.tools.ranks import this_rank

    for name, value in (("WORLD_SIZE", "many"), ("RANK", "3")):
        monkeypatch.setenv(name, value)
        with pytest.raises(ValueError, match="RANK"):
            this_rank()
        monkeypatch.delenv(name)


@pytest.mark.parametrize("name", ["heatmap", "segment"])
def test_pictures_are_dealt_out(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What torchrun sets, one process after the other: each picture is worked on once."""
    written: list[set[str]] = []
    monkeypatch.setenv("WORLD_SIZE", "3")
    arguments = [name, str(folder / "images"), "--prompts", "car", "--size", "64", *MODEL]
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        out = tmp_path / str(rank)
        assert main([*arguments, "--output", str(out)]) == 0
        written.append({path.stem.partition("-")[0] for path in out.iterdir() if path.is_file()})
    assert [len(each) for each in written] == [3, 3, 2]
    assert len(set.union(*written)) == 8
