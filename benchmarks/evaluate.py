"""How near `gem-lite evaluate` comes to the model's own rate, in pictures a second.

    python benchmarks/evaluate.py                  # ViT-B/16 at 448, VOC's 21 classes
    python benchmarks/evaluate.py --protocol sclip # windows, 80 templates
    python benchmarks/evaluate.py --profile        # where the command's time goes

Random ViT-B/16 weights, and a folder in VOC's layout whose labelled collages have VOC's usual size,
500 x 375. The whole command, with everything from JPEG files to the confusion matrix, and the bare
model (the image tower and the maps of all names, texts kept, images in memory) take turns in one
process. Starting and loading the model are left out of both.
"""

import argparse
import contextlib
import io
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from speed import processor

ROOT = Path(__file__).resolve().parent.parent
NAME = "ViT-B/16-quickgelu"


def write_voc(root: Path, count: int) -> None:
    """Collages with labels as VOC publishes its pictures; the first class names are drawings."""
    import numpy as np
    from PIL import Image

    from gem_lite.pictures.labels import voc_palette
    from gem_lite.tools.quality.scenes import Sprites, scenes

    base = root / "VOC2012"
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / part).mkdir(parents=True)
    sprites = Sprites.load(ROOT / "examples" / "scenes" / "sprites.npz")
    number = {name: k for k, name in enumerate(sprites.concepts[:20], start=1)}
    sprites = sprites.select(names=list(number))
    names = []
    for index, scene in enumerate(scenes(sprites, seed=0, count=count, size=500)):
        names.append(f"2007_{index:06d}")
        Image.fromarray(scene.image[:375]).save(base / f"JPEGImages/{names[-1]}.jpg", quality=90)
        numbers = np.array([0, *(number[name] for name in scene.names)], dtype=np.uint8)
        picture = Image.fromarray(numbers[scene.mask[:375]])
        picture.putpalette(voc_palette())
        picture.save(base / f"SegmentationClass/{names[-1]}.png")
    (base / "ImageSets/Segmentation/val.txt").write_text("\n".join(names) + "\n")


def evaluate(arguments: list[str], output: Path) -> dict[str, Any]:
    """Run the command in this process; what it says of its own speed."""
    from gem_lite.tools.cli import main

    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = main(["evaluate", *arguments, "--output", str(output)])
    if code:
        raise SystemExit(err.getvalue())
    speed: dict[str, Any] = json.loads((output / "speed.json").read_text())
    return speed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=16, help="of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, help="default: PyTorch's own choice")
    parser.add_argument("--protocol", default="gem")
    parser.add_argument("--save-predictions", action="store_true")
    parser.add_argument("--profile", action="store_true", help="where the command's time goes")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    import torch
    from PIL import Image

    import gem_lite
    from gem_lite.tools.evaluation.datasets import open_set
    from gem_lite.tools.evaluation.protocols import settings_for

    torch.set_grad_enabled(False)
    if args.threads:
        torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        weights, data = Path(folder) / "weights.safetensors", Path(folder) / "data"
        torch.manual_seed(0)
        gem_lite.save(gem_lite.create_gem_model(NAME), weights)
        write_voc(data, args.pictures)
        arguments = ["--dataset", "voc21", "--root", str(data), "--protocol", args.protocol]
        arguments += ["--model", NAME, "--pretrained", str(weights), "--background", "background"]
        arguments += ["--save-predictions"] if args.save_predictions else []

        model = gem_lite.create_gem_model(NAME, weights)
        settings = settings_for(args.protocol, "voc21")
        found = open_set("voc21", data, names=settings.names)
        transform = gem_lite.get_gem_img_transform(settings.input_size(375, 500))
        images = [transform(Image.open(item.image))[None] for item in found.items]
        words = [*(name for names in found.classes for name in names), "background"]

        def bare() -> float:
            start = time.perf_counter()
            for image in images:
                model(image, words, normalize=False)
            return len(images) / (time.perf_counter() - start)

        def command() -> float:
            rate: float = evaluate(arguments, Path(folder) / "out")["pictures_per_second"]
            return rate

        model(images[0], words)
        if args.profile:
            profile(command)
            return
        evaluate([*arguments, "--limit", "2"], Path(folder) / "warm")
        print(
            f"{NAME}, random weights, {tuple(images[0].shape[-2:])} pixels, {len(words)} names;"
            f" {args.pictures} pictures of 500 x 375 a turn; {processor()},"
            f" {torch.get_num_threads()} threads, {os.cpu_count()} cores.\n"
        )
        print("| | bare model | command | ratio |\n|---|---|---|---|")
        rates: dict[str, list[float]] = {"bare": [], "command": []}
        for turn in range(args.turns):
            for name in ("bare", "command") if turn % 2 == 0 else ("command", "bare"):
                rates[name].append(bare() if name == "bare" else command())
            one, other = rates["bare"][-1], rates["command"][-1]
            print(f"| turn {turn + 1} | {one:.3f} /s | {other:.3f} /s | {other / one:.3f} |")
            sys.stdout.flush()
        one, other = (statistics.median(values) for values in rates.values())
        print(f"| median | {one:.3f} /s | {other:.3f} /s | {other / one:.3f} |")


def profile(command: Any) -> None:
    """The command's operators in the main thread, by their own time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU]) as seen:
        command()
    rows = sorted(seen.key_averages(), key=lambda each: -each.self_cpu_time_total)
    total = sum(each.self_cpu_time_total for each in rows)
    for each in rows[:16]:
        print(f"{each.key:40} {each.self_cpu_time_total / total:6.1%}")


if __name__ == "__main__":
    main()
