"""How time and memory of gem_lite grow with the work: size, batch, prompts, iterations, model.

    python benchmarks/growth.py                     # a table
    python benchmarks/growth.py --plot growth.svg   # and a plot (needs matplotlib)

Random weights; each row in a process of its own. Time is the median of a few calls with the texts
kept from the call before; memory is the peak above the loaded model, the maps returned included.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from speed import peak_memory, processor

ROOT = Path(__file__).resolve().parent.parent
BASE: dict[str, Any] = {"model": "ViT-B/16", "side": 448, "batch": 1, "prompts": 2, "iters": 1}
AXES: dict[str, tuple[Any, ...]] = {
    "side": (224, 336, 448, 672, 896),
    "batch": (1, 4, 8, 16),
    "prompts": (1, 10, 100, 1000),
    "iters": (0, 1, 2, 3, 4),
    "model": ("ViT-B/32", "ViT-B/16", "ViT-L/14"),
}


def measure(work: dict[str, Any], repeats: int) -> dict[str, float]:
    """Median seconds and peak MiB of one kind of call; runs in a process of its own."""
    import torch

    import gem_lite

    torch.set_grad_enabled(False)
    model = gem_lite.create_gem_model(work["model"], None, ss_attn_iter=work["iters"])
    images = torch.randn(work["batch"], 3, work["side"], work["side"])
    words = [str(number) for number in range(work["prompts"])]
    model.encode_text(words)
    sum(float(p.sum()) for p in model.parameters())  # all weights are in memory
    peak_memory()
    before = peak_memory()
    model(images, words)
    memory = peak_memory() - before
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        model(images, words)
        times.append(time.perf_counter() - start)
    return {"seconds": statistics.median(times), "MiB": memory}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """One panel for each axis: seconds against it, memory as figures at the points."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(AXES), figsize=(15, 3.2), sharey=True)
    for panel, axis in zip(panels, AXES, strict=True):
        points = [row for row in rows if row["axis"] == axis]
        xs = range(len(points))
        panel.plot(xs, [row["seconds"] for row in points], marker="o", color="#1f5fa8")
        panel.set_xticks(xs, [str(row[axis]) for row in points])
        for x, row in zip(xs, points, strict=True):
            note = f"{row['MiB']:.0f} MiB"
            panel.annotate(
                note,
                (x, row["seconds"]),
                (0, 9),
                textcoords="offset points",
                size=7,
                ha="center",
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )
        panel.set_xlabel({"iters": "iterations", "side": "side in pixels"}.get(axis, axis))
        panel.set_yscale("log")
        panel.grid(alpha=0.3)
        panel.margins(x=0.22, y=0.2)
    panels[0].set_ylabel("seconds a call")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path, help="file to draw to, such as growth.svg")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if args.work:
        print(json.dumps(measure(json.loads(args.work), args.repeats)))
        return
    print(f"{processor()}; {BASE['model']}, {BASE['side']} x {BASE['side']}, 1 image, 2 prompts,")
    print("1 iteration, fp32, but for what the row says.\n")
    print("| | seconds | MiB above the model |\n|---|---|---|")
    rows = []
    for axis in args.axes:
        for value in AXES[axis]:
            work = {**BASE, axis: value}
            command = [sys.executable, __file__, "--work", json.dumps(work)]
            command += ["--repeats", str(args.repeats)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append({**work, "axis": axis, **json.loads(done.stdout.splitlines()[-1])})
            print(
                f"| {axis} {value} | {rows[-1]['seconds']:.3g} | {rows[-1]['MiB']:.0f} |",
                flush=True,
            )
    if args.plot:
        plot(rows, args.plot)


if __name__ == "__main__":
    main()
