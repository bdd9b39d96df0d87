"""The demonstration: one sheet, which is also the first picture of the README."""

from pathlib import Path

import numpy as np
from PIL import Image

from gem_lite.tools.cli import main
from gem_lite.tools.demo import FIRST_PICTURE, SIDE, demo_picture

ROOT = Path(__file__).parents[2]


def test_the_sheet(tmp_path: Path) -> None:
    assert main(["demo", "--output", str(tmp_path / "demo.png")]) == 0
    with Image.open(tmp_path / "demo.png") as file:
        sheet = np.asarray(file.convert("RGB")).astype(int)
    _, words = demo_picture(FIRST_PICTURE)
    columns = (len(words) + 4) // 2
    assert sheet.shape[1] == columns * (SIDE + 8) + 8
    # What docs/figures.py drew, up to the rounding of another machine.
    with Image.open(ROOT / "docs" / "demo.png") as file:
        shown = np.asarray(file.convert("RGB")).astype(int)
    assert shown.shape == sheet.shape and np.abs(shown - sheet).mean() < 1

    def coloured(number: int) -> float:
        row, column = divmod(number, columns)
        left = 8 + column * (SIDE + 8)
        height = sheet.shape[0] // 2
        tile = sheet[row * height + 60 : row * height + 300, left : left + SIDE]
        return float((np.ptp(tile, axis=-1) > 40).mean())

    *there, absent = (coloured(1 + index) for index in range(len(words) + 1))
    assert min(there) > 0.02 and absent == 0.0
