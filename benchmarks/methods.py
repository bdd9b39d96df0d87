"""Time each method against the operations that it has to do.

    python benchmarks/methods.py                # every method
    python benchmarks/methods.py gem sc_clip    # some

Random ViT-B/16 at 448 x 448, one image, four words that are kept, float32. What a method has to do
is plain CLIP's call on the same model, and the products that its equations add (`BILLS`), each
timed alone as bare PyTorch operators on the same kernels. The two take turns. Prints a markdown
table; RESULTS.md keeps that of one machine.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts
import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gem_lite
from gem_lite.fast import switch

SIDE, WIDTH, HEADS, WORDS = 448, 768, 12, 4
TOKENS = 1 + (SIDE // 16) ** 2
Run = Callable[[], object]

# Operations that a method adds to plain CLIP's call, and how many; below 0: what plain CLIP does
# and the method need not, where nothing reads what CLIP's last block returns.
BILLS: dict[str, dict[str, int]] = {
    "clip": {},
    "maskclip": {"attend": -1},
    "sclip": {"attend": 1},
    "clearclip": {"mlp": -1},
    "naclip": {"attend": -1, "attend with a bias": 1, "mlp": -1},
    "clip_surgery": {"attend": 5, "out": 5, "mlp": -1},
    "gem": {"attend": 35, "out": 5, "mlp": -1},  # 3 streams, refined and read, 6 blocks
    "videogem": {"attend": 41, "out": 6, "mlp": -1},
    "itaclip": {"weights": 8, "add weights": 8, "read": 1, "attend": -1, "mlp": -1},
    "resclip": {  # the middle blocks' mean is the same in both passes
        **{"weights": 4, "weights with a bias": 2, "add weights": 6, "read": 2, "out": 1},
        **{"attend": -1, "mlp": -1, "PAMR": 1, "paths": 1},
    },
    "sc_clip": {
        **{"project": 1, "weights": 2, "add weights": 2, "read": 2, "out": 1, "attend": -1},
        **{"mlp": -1, "cosines": 2, "distances": 1, "aggregate": 2},
    },
    "sfp": {
        **{"project": 1, "weights": 3, "add weights": 3, "read": 2, "out": 1, "attend": -1},
        **{"mlp": -1, "cosines": 2, "aggregate": 2},
    },
    "legrad": {  # two blocks again, from kept tokens, and for each word back to the weights
        **{"weights": 2, "read": 2, "out": 2 + 2 * WORDS, "mlp": 2, "mlp back": 2 * WORDS},
        **{"products": 2 * WORDS, "add weights": 2 * WORDS},
    },
    "registers": {  # the first half of six blocks to find neurons, then all with a register
        **{"project": 18, "attend": 18, "out": 18, "half of mlp": 6, "mlp": 12},
    },
}


def operations() -> dict[str, Run]:
    """Bare operators of the sizes of this network, by the names in `BILLS`."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    n, d = TOKENS, WIDTH
    x, patches = random(1, n, d), random(1, n - 1, d)
    q, k, v = (random(1, HEADS, n, d // HEADS) for _ in range(3))
    mixed = random(1, HEADS, n, n).softmax(dim=-1)
    alike = random(1, n - 1, n - 1)
    bias, more = random(n, n), torch.zeros(1, HEADS, n, n)
    into, out, up, down = (random(*s) * 0.03 for s in ((3 * d, d), (d, d), (4 * d, d), (d, 4 * d)))
    hidden = random(1, n, 4 * d)
    maps, near = random(1, WORDS, SIDE, SIDE), random(16, SIDE, SIDE).softmax(dim=0)
    index = torch.randint(0, n - 1, (n - 1, n - 1), generator=generator)
    classes = torch.zeros(1, n - 1, dtype=torch.int64)

    def mlp() -> Tensor:
        return F.linear((y := F.linear(x, up)) * torch.sigmoid(1.702 * y), down)

    def weights(bias: Tensor | None = None) -> Tensor:
        scores = 0.125 * q @ k.mT
        return (scores if bias is None else scores + bias).softmax(dim=-1)

    def pamr() -> None:
        total = maps
        for _ in range(10):
            total = sum((total.roll((i, 8), (-2, -1)) * near[i] for i in range(16)), 0 * maps)

    def paths() -> None:
        leaves = torch.zeros(1, n - 1, n - 1, dtype=torch.bool)
        for _ in range(SIDE // 16 - 1):  # a place on each path, its class, another or not
            row = (index.double() * 0.5).round().long()
            leaves |= classes[:, row.clamp(max=n - 2)] != classes[:, :, None]

    return {
        "attend": lambda: F.scaled_dot_product_attention(q, k, v),
        "attend with a bias": lambda: F.scaled_dot_product_attention(q, k, v, attn_mask=bias),
        "weights": weights,
        "weights with a bias": lambda: weights(bias),
        "add weights": lambda: more + mixed,
        "products": lambda: q @ k.mT,
        "read": lambda: mixed @ v,
        "project": lambda: F.linear(x, into),
        "out": lambda: F.linear(x, out),
        "mlp": mlp,
        "half of mlp": lambda: F.linear(x, up),
        "mlp back": lambda: F.linear(F.linear(x, down.T) * hidden, up.T),
        "cosines": lambda: patches @ patches.mT,
        "distances": lambda: torch.cdist(patches, patches, compute_mode="use_mm_for_euclid_dist"),
        "aggregate": lambda: alike @ patches,
        "PAMR": pamr,
        "paths": paths,
    }


def seconds(run: Run, kernels: str) -> float:
    """Seconds of one run."""
    with switch.mode(kernels):
        start = time.perf_counter()
        run()
        return time.perf_counter() - start


def medians(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median seconds of each: an untimed turn, then all in turns."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name in list(runs)[:: 1 if turn % 2 else -1]:
            times[name].append(runs[name]())
    return {name: statistics.median(values) for name, values in times.items()}


def create(folder: Path) -> Any:
    """A random ViT-B/16."""
    path = folder / "random.pt"
    torch.save(layouts.random_weights(layouts.VIT_B_16), path)
    return gem_lite.create_gem_model("ViT-B/16", path, activation="quick_gelu")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", choices=[*BILLS, []], help="default: all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    image = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    words = ["cat", "remote control", "sofa", "wall"]
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        plain = create(Path(folder)).with_method("clip")
        names = args.names or list(BILLS)
        needed = {operation for name in names for operation in BILLS[name]}
        bare = {name: run for name, run in operations().items() if name in needed}
        models = {name: plain.with_method(name) for name in names}

        def call(model: Any) -> float:
            start = time.perf_counter()
            model(image, words)
            return time.perf_counter() - start

        runs: dict[str, Callable[[], float]] = {"plain": lambda: call(plain)}
        runs |= {f"op {k}": lambda run=run: seconds(run, plain.kernels) for k, run in bare.items()}
        runs |= {name: lambda model=model: call(model) for name, model in models.items()}
        times = medians(runs, args.repeats)
    print("| method | seconds | plain CLIP and what it adds | ratio |\n|---|---|---|---|")
    for name in names:
        bill = BILLS[name].items()
        due = times["plain"] + sum(count * times[f"op {operation}"] for operation, count in bill)
        print(f"| {name} | {times[name]:.3f} | {due:.3f} | {times[name] / due:.2f} |")
    print("\nOne of each, ms: " + "; ".join(f"{k} {1e3 * times[f'op {k}']:.1f}" for k in bare))


if __name__ == "__main__":
    main()
