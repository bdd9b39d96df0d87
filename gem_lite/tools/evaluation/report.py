"""What an evaluation leaves behind: a table, a JSON file with every setting, a CSV of classes."""

import csv
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...checkpoints.files import atomic_file

Rows = Sequence[tuple[str, Sequence[float]]]  # a class and its figures in [0, 1]


def table(rows: Rows, columns: Sequence[str]) -> str:
    """Classes and their figures as percentages; "-" where there is none."""
    width = max(len(name) for name in ("class", *(name for name, _ in rows)))
    lines = [f"{'class':{width}}" + "".join(f"  {column:>8}" for column in columns)]
    for name, values in rows:
        cells = ["-" if math.isnan(value) else f"{100 * value:.2f}" for value in values]
        lines.append(f"{name:{width}}" + "".join(f"  {cell:>8}" for cell in cells))
    return "\n".join(lines)


def write_files(result: dict[str, Any], rows: Rows, columns: Sequence[str], folder: Path) -> None:
    """result.json and classes.csv. A kill leaves no table beside another evaluation's result."""
    table_path = folder / "classes.csv"
    table_path.unlink(missing_ok=True)
    write_json(result, folder / "result.json")
    write_csv(rows, columns, table_path)


def write_json(result: dict[str, Any], path: Path) -> None:
    """Write it, complete or not at all; NaN becomes null."""
    with atomic_file(path) as temporary:
        temporary.write_text(
            json.dumps(json_value(result), indent=1, allow_nan=False) + "\n", encoding="utf-8"
        )


def write_csv(rows: Rows, columns: Sequence[str], path: Path) -> None:
    """One class a line, figures with all their digits, empty where there is none."""
    with atomic_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *columns])
        for name, values in rows:
            writer.writerow([name, *("" if math.isnan(value) else value for value in values)])


def json_value(value: Any) -> Any:
    """The value as JSON has it: NaN and infinity as None, tuples as lists, keys as strings."""
    if isinstance(value, dict):
        return {str(name): json_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [json_value(each) for each in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
