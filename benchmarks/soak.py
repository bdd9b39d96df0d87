"""Memory over thousands of calls with changing prompts and sizes; threads against one alone.

python benchmarks/soak.py --calls 2000
"""

import argparse
import sys
import threading
from pathlib import Path

import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gem_lite as gem


def resident() -> float:
    """Megabytes that the process holds (Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS in /proc/self/status")


def picture(random: np.random.Generator, smallest: int, largest: int) -> Image.Image:
    h, w = random.integers(smallest, largest + 1, 2)
    return Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8))


def threads_agree(model: gem.GEMPredictor, images: list[torch.Tensor], words: list[str]) -> float:
    """Largest difference of a map between 8 threads at once and one alone."""
    with torch.inference_mode():
        alone = [model(image, words) for image in images]
    worst: list[float] = []

    def work(first: int) -> None:
        with torch.inference_mode():
            for index in range(first, len(images), 8):
                worst.append(float((model(images[index], words) - alone[index]).abs().max()))

    pool = [threading.Thread(target=work, args=(first,)) for first in range(8)]
    for thread in pool:
        thread.start()
    for thread in pool:
        thread.join()
    return max(worst)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--model", default="tiny-emoji")
    parser.add_argument("--pretrained", default="v2")
    parser.add_argument("--sides", type=int, nargs=2, default=(32, 160), help="of the input")
    args = parser.parse_args()
    random = np.random.default_rng(0)
    model, transform = gem.create_model_and_transforms(args.model, args.pretrained)
    for index in range(args.calls):
        if index % (args.calls // 8) == 0:
            print(f"{index:5} calls {resident():8.1f} MB", flush=True)
        words = [f"thing {random.integers(1 << 30)}" for _ in range(random.integers(1, 6))]
        resize = gem.get_gem_img_transform(
            int(random.integers(*args.sides)), transform.mean, transform.std
        )
        with torch.inference_mode():
            model(resize(picture(random, 100, 200))[None], words, return_ori=index % 5 == 0)
    print(f"{args.calls:5} calls {resident():8.1f} MB")
    images = [transform(picture(random, 50, 300))[None] for _ in range(16)]
    print(f"8 threads against one: {threads_agree(model, images, ['cat', 'dog']):.2g}")


if __name__ == "__main__":
    main()
