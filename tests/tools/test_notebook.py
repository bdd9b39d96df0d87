"""Notebook habits: results show themselves, and the example runs cell by cell."""

import base64
import copy
import io
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from gem_lite.method.segment import label_maps
from gem_lite.pictures.labels import Segmentation
from gem_lite.pictures.overlays import label_colour

ROOT = Path(__file__).parents[2]


def test_a_segmentation_shows_itself() -> None:
    cosines = torch.zeros(1, 3, 6, 8)
    cosines[0, 0, :3], cosines[0, 1, 3:] = 1, 1
    cosines[0, 2, :, 6:] = 2  # background
    found = Segmentation(*label_maps(cosines, classes=2))
    with Image.open(io.BytesIO(found._repr_png_())) as picture:
        shown = np.asarray(picture)
    assert shown.shape == (6, 8, 3)
    assert tuple(shown[0, 0]) == label_colour(0) and tuple(shown[5, 0]) == label_colour(1)
    assert tuple(shown[0, 7]) == (0, 0, 0)


def test_many_at_once_and_many_classes() -> None:
    labels = torch.zeros(5, 4, 4, dtype=torch.int64)
    found = Segmentation(labels, torch.zeros(5, 700, 4, 4))
    with Image.open(io.BytesIO(found._repr_png_())) as picture:
        assert picture.width > 16 and picture.height > 8


def test_ipython_would_show_it() -> None:
    core = pytest.importorskip("IPython.core.formatters", reason="needs IPython")
    found = Segmentation(torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(1, 2, 4, 4))
    data, _ = core.DisplayFormatter().format(found)
    assert data["image/png"].startswith(b"\x89PNG") or isinstance(data["image/png"], str)


def outputs(notebook: Any) -> list[dict[str, str]]:
    """What each code cell shows, by kind."""
    return [
        dict(output.get("data", {"text/plain": output.get("text", "")}))
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]


def test_the_example_runs_and_shows_what_is_stored(tmp_path: Path) -> None:
    client = pytest.importorskip("nbclient", reason="needs nbclient")
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat")
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    stored = nbformat.read(ROOT / "examples" / "notebook.ipynb", as_version=4)
    nbformat.validate(stored)
    fresh = copy.deepcopy(stored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        client.NotebookClient(
            fresh, timeout=180, resources={"metadata": {"path": str(tmp_path)}}
        ).execute()
    assert list(tmp_path.iterdir()) == []
    before, now = outputs(stored), outputs(fresh)
    assert len(before) > 6 and [*map(sorted, before)] == [*map(sorted, now)]
    number = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
    for old, new in zip(before, now, strict=True):
        texts = old.get("text/plain", ""), new.get("text/plain", "")
        if "image/png" in old or "Segmentation" in texts[0]:
            continue  # arrays, cut where they are long
        assert number.sub("#", texts[0]) == number.sub("#", texts[1])
        values = [[float(each) for each in number.findall(text)] for text in texts]
        assert values[0] == pytest.approx(values[1], abs=0.02, rel=0.02)
    pictures = [each["image/jpeg"] for each in now if "image/jpeg" in each]
    assert len(pictures) == 2
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as sheet:
        assert sheet.width > 1000
