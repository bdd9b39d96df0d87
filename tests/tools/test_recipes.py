"""The recipes of docs/recipes.md, run as they stand against the packages that they are for."""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gem_lite.tools.cli import main

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "recipes.md"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "weights").mkdir()
    shutil.copy(ROOT / "weights" / "demo.png", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(heading: str, number: int = 0) -> dict[str, Any]:
    """What a section's block leaves behind, by name."""
    (section,) = (
        part for part in PAGE.read_text(encoding="utf-8").split("\n## ") if part.startswith(heading)
    )
    code = section.split("```python\n")[1 + number].split("```")[0]
    names: dict[str, Any] = {}
    exec(compile(code, f"{PAGE.name}: {heading}", "exec"), names)
    return names


def test_supervision() -> None:
    pytest.importorskip("supervision", reason="needs supervision")
    names = recipe("supervision")
    detections, found = names["detections"], names["found"]
    assert len(detections) >= 2
    assert {"fish", "drum"} <= set(detections.data["class_name"])
    labels = names["labels"]
    for mask, number, box in zip(
        detections.mask, detections.class_id, detections.xyxy, strict=True
    ):
        assert np.array_equal(mask, labels == number + 1)
        rows, columns = np.nonzero(mask)
        assert box.tolist() == [columns.min(), rows.min(), columns.max(), rows.max()]
    assert ((detections.confidence > 0) & (detections.confidence <= 1)).all()
    assert names["annotated"].shape == (found.picture.height, found.picture.width, 3)
    boxes = recipe("supervision", 1)["detections"]
    assert set(boxes.class_id) == {0, 1} and boxes.xyxy.max() <= 256


def test_datasets(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(folder / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    pytest.importorskip("datasets", reason="needs datasets")
    labelled = recipe("Hugging Face")["labelled"]
    assert len(labelled) == 3 and "image" not in labelled.column_names
    first, *others = labelled
    assert first["error"] == "" and all(each == first for each in others)
    found = json.loads(first["coco"])
    assert {each["category_id"] for each in found} == {1, 2} and len(first["boxes"]) == 2


def test_spark_on_pandas_frames(folder: Path) -> None:
    pandas = pytest.importorskip("pandas", reason="needs pandas")
    names = recipe("Spark")
    data = (folder / "weights" / "demo.png").read_bytes()
    frame = pandas.DataFrame({"path": ["a.png", "b.png"], "content": [data, b"no picture"]})
    (rows,) = names["label"](iter([frame]))
    assert list(rows.columns) == [each.split()[0] for each in names["columns"].split(", ")]
    assert rows["path"].tolist() == ["a.png", "b.png"]
    assert rows["error"][0] == "" and "not a picture" in rows["error"][1]
    assert {each["category_id"] for each in json.loads(rows["coco"][0])} == {1, 2}


def test_spark(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sql = pytest.importorskip("pyspark.sql", reason="needs PySpark")
    if shutil.which("java") is None:
        pytest.skip("needs Java")
    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    (folder / "weights" / "b.png").write_bytes(b"no picture")
    names = recipe("Spark")
    spark = sql.SparkSession.builder.master("local[2]").getOrCreate()
    try:
        rows = sorted(names["labelled"](spark, str(folder / "weights")).collect())
    finally:
        spark.stop()
    assert [Path(row.path).name for row in rows] == ["b.png", "demo.png"]
    bad, good = rows
    assert good.error == "" and (good.height, good.width) == (256, 256)
    alone = names["labeller"]({"content": [(folder / "weights" / "demo.png").read_bytes()]})
    assert {each["category_id"] for each in json.loads(good.coco)} == {1, 2}
    assert good.coco == alone["coco"][0]
    assert "not a picture" in bad.error and bad.coco == ""


def test_label_studio(folder: Path) -> None:
    words = ["fish", "drum"]
    arguments = ["segment", "weights", "-p", *words, "--format", "label-studio", "-o", "tasks"]
    assert main([*arguments, "--model", "tiny-emoji"]) == 0
    recipe("Label Studio")
    (task,) = json.loads((folder / "tasks.json").read_text())
    assert task["data"]["image"] == "/data/local-files/?d=photos/demo.png"
    strokes = task["predictions"][0]["result"]
    assert [each["value"]["brushlabels"] for each in strokes] == [["fish"], ["drum"]]
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="needs the SDK")
    for each in strokes:
        decoded = brush.decode_rle(each["value"]["rle"])
        assert 0 < np.count_nonzero(decoded) < len(decoded) == 4 * 256 * 256


def test_fiftyone() -> None:
    pytest.importorskip("fiftyone", reason="needs FiftyOne")
    names = recipe("FiftyOne")
    sample, found = names["sample"], names["found"]
    assert sample["fish"].map.shape == (256, 256) and list(sample["fish"].range) == [0, 1]
    assert sample["umbrella_presence"] == pytest.approx(found.presence["umbrella"])
    assert set(np.unique(sample["segmentation"].mask)) <= {0, 1, 2, 3}
