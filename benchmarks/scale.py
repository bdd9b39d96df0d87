"""Ray Data's rate (examples/ray_label.py) against bare processes that only run the model.

    python benchmarks/scale.py [--shards 8] [--pictures 4] [--workers 2]

ViT-B/16 with random weights at 448, PyTorch with one thread in each worker. The bare processes hold
their pictures as tensors and write nothing; Ray's workers open WebDataset shards, decode, segment,
encode run lengths and write parquet. Both are counted from when every worker has its first shard
behind it, so that starting up (Ray 5 to 10 s, the model 1 s) is left out. Needs the extra `ray`.
"""

import argparse
import io
import multiprocessing as mp
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import layouts  # noqa: E402

WORDS = ["cat", "dog", "tree", "house", "traffic light"]


def make_shards(folder: Path, shards: int, pictures: int) -> None:
    """WebDataset shards of noisy JPEGs of 640 x 480."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"{shard:03}.tar", "w") as archive:
            for index in range(pictures):
                coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
                stream = io.BytesIO()
                Image.fromarray(coarse).resize((640, 480)).save(stream, "JPEG")
                member = tarfile.TarInfo(f"{shard:03}{index:03}.jpg")
                member.size = stream.tell()
                archive.addfile(member, io.BytesIO(stream.getvalue()))


def bare(
    weights: str, precision: str, shards: int, pictures: int, times: "mp.Queue[float]"
) -> None:
    """One process that segments tensors; puts the time after each shard's worth of them."""
    import torch

    import gem_lite as gem

    torch.set_num_threads(1)
    model = gem.create_gem_model("ViT-B/16", weights, precision=precision)
    image = torch.randn(1, 3, 448, 448)
    for _ in range(shards):
        for _ in range(pictures):
            with torch.inference_mode():
                model.segment(image, WORDS, background=["background"], size=(480, 640))
        times.put(time.time())


def rate(times: list[float], workers: int, pictures: int) -> float:
    """Pictures a second between every worker's first shard and the end."""
    times = sorted(times)
    return (len(times) - workers) * pictures / (times[-1] - times[workers - 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--pictures", type=int, default=4, help="in a shard")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    args = parser.parse_args()
    import gem_lite as gem

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_shards(folder / "shards", args.shards, args.pictures)
        weights = str(folder / "random.pt")
        import torch

        torch.save(layouts.random_weights(layouts.VIT_B_16), weights)
        converted = str(folder / "random.safetensors")
        gem.save(gem.create_gem_model("ViT-B/16", weights, activation="gelu"), converted)
        queue: mp.Queue[float] = mp.get_context("spawn").Queue()
        each = args.shards // args.workers
        processes = [
            mp.get_context("spawn").Process(
                target=bare, args=(converted, args.precision, each, args.pictures, queue)
            )
            for _ in range(args.workers)
        ]
        for process in processes:
            process.start()
        times = [queue.get() for _ in range(each * args.workers)]
        for process in processes:
            process.join()
        alone = rate(times, args.workers, args.pictures)
        print(f"bare processes: {alone:.3f} pictures/s", flush=True)
        command = [sys.executable, str(ROOT / "examples" / "ray_label.py"), str(folder / "shards")]
        command += ["--output", str(folder / "out"), "--words", *WORDS, "--model", "ViT-B/16"]
        command += ["--pretrained", converted, "--workers", str(args.workers)]
        command += ["--precision", args.precision]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        written = [file.stat().st_mtime for file in (folder / "out").glob("*.parquet")]
        with_ray = rate(written, args.workers, args.pictures)
        print(f"Ray Data: {with_ray:.3f} pictures/s, {with_ray / alone:.3f} of it")


if __name__ == "__main__":
    main()
