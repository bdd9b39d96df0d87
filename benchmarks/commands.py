"""`gem-lite heatmap` and `segment` on a folder of JPEGs beside the bare model on the same tensors.

    python benchmarks/commands.py                               # the model in the box, 300 pictures
    python benchmarks/commands.py --model ViT-B/16 --pictures 40   # random weights, at 448 x 448

A command's rate is that of its last pictures: its time for all of them less that for one of them,
which pays for the start and the model.
"""

import argparse
import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import gem_lite  # noqa: E402
from gem_lite.background import BACKGROUND  # noqa: E402
from gem_lite.inference import maps_and_presence  # noqa: E402
from gem_lite.tools.cli import main as command  # noqa: E402

WORDS = ["cat", "dog", "fish", "drum", "tree"]
SIZE = (480, 640)


def run(name: str, folder: Path, model: list[str], output: Path) -> float:
    """Seconds of a command."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        code = command([name, str(folder), "-p", *WORDS, "-o", str(output), *model])
    assert code == 0
    return time.perf_counter() - start


def main() -> None:
    """Print a row for each command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="tiny-emoji")
    parser.add_argument("--pictures", type=int, default=300)
    parser.add_argument("--commands", nargs="+", default=["heatmap", "segment"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, one = Path(name, "all"), Path(name, "one")
        rng = np.random.default_rng(0)
        for place, count in ((folder, args.pictures), (one, 1)):
            place.mkdir()
            for index in range(count):
                coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
                picture = Image.fromarray(coarse).resize(SIZE[::-1], Image.Resampling.BICUBIC)
                picture.save(place / f"{index:04d}.jpg", quality=90)
        if args.model == "tiny-emoji":
            options = ["--model", "tiny-emoji", "--pretrained", "v2"]
            model, transform = gem_lite.create_model_and_transforms("tiny-emoji", "v2")
        else:
            model, transform = gem_lite.create_model_and_transforms(args.model)
            gem_lite.save(model, Path(name, "random.safetensors"))
            options = ["--model", args.model, "--pretrained", str(Path(name, "random.safetensors"))]
        paths = sorted(folder.iterdir())[: min(args.pictures, 100)]
        images = [transform(Image.open(path))[None] for path in paths]

        def bare(kind: str) -> float:
            start = time.perf_counter()
            with torch.inference_mode():
                for image in images:
                    if kind == "heatmap":
                        maps_and_presence(model, image, WORDS)
                    else:
                        model.segment(image, WORDS, background=BACKGROUND, size=SIZE)
            return len(images) / (time.perf_counter() - start)

        print("| | bare model | command | ratio |\n|---|---|---|---|")
        for kind in args.commands:
            bare(kind)  # encodes the words, warms up
            rates = [bare(kind)]
            start = run(kind, one, options, Path(name, f"{kind}-one"))
            start = min(start, run(kind, one, options, Path(name, f"{kind}-two")))
            took = run(kind, folder, options, Path(name, kind)) - start
            rates.append(bare(kind))
            rate, own = (args.pictures - 1) / took, sum(rates) / 2
            print(f"| `{kind}` | {own:.2f} a second | {rate:.2f} a second | {rate / own:.1%} |")


if __name__ == "__main__":
    main()
