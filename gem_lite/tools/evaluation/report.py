"""What an evaluation leaves behind: a table, a JSON file with every setting, a CSV of classes."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...checkpoints.files import atomic_file


def table(rows: Sequence[tuple[str, Sequence[float]]], columns: Sequence[str]) -> str:
    """Classes and their figures in [0, 1] as percentages; "-" where there is none."""
    width = max(len(name) for name in ("class", *(name for name, _ in rows)))
    lines = [f"{'class':{width}}" + "".join(f"  {column:>8}" for column in columns)]
    for name, values in rows:
        cells = ["-" if math.isnan(value) else f"{100 * value:.2f}" for value in values]
        lines.append(f"{name:{width}}" + "".join(f"  {cell:>8}" for cell in cells))
    return "\n".join(lines)


def write_json(result: dict[str, Any], path: Path) -> None:
    """Write it, complete or not at all; NaN becomes null."""
    with atomic_file(path) as temporary:
        temporary.write_text(
            json.dumps(_plain(result), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )


def write_csv(
    rows: Sequence[tuple[str, Sequence[float]]], columns: Sequence[str], path: Path
) -> None:
    """One class a line, figures in [0, 1] with all their digits, empty where there is none."""
    with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *columns])
        for name, values in rows:
            writer.writerow([name, *("" if math.isnan(value) else value for value in values)])


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
