"""Notebook habits: results show themselves, and the example runs cell by cell."""

import io
import runpy
from pathlib import Path

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


def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "examples" / "notebook.py"
    cells = path.read_text(encoding="utf-8").split("# %%")
    assert len(cells) > 8 and cells[0] == ""
    monkeypatch.chdir(tmp_path)
    names = runpy.run_path(str(path))
    assert names["maps"].shape[1] == len(names["words"]) == len(names["overlays"])
    assert names["difference"] > 0.01 and names["sheet"].width == 480
    assert list(tmp_path.iterdir()) == []
