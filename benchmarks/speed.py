"""Time gem_lite and upstream gem_torch side by side, on the same ViT-B/16 weights.

    python benchmarks/speed.py --threads 1 --repeats 5 --clock cpu

Runs in an environment that has both (gem_torch 1.0.1, open_clip_torch 2.23.0). The two take turns
within one process, and each figure is the median of its turns, so that a busy machine slows both:
read the ratios. On a machine with other work, `--clock cpu` with one thread leaves out the time
spent waiting for it. Peak memory is measured in a process for each. Prints markdown tables.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import layouts
import torch
from torch import Tensor

NAME = "ViT-B/16-quickgelu"
LIBRARIES = ("gem_torch", "gem_lite")
WORDS = [f"{colour} {thing}" for colour in ("red", "big") for thing in map(str, range(25))]

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
PARTS = ("calls", "text", "loading", "memory")

Run = Callable[[], object]


def create(library: str, weights: Path) -> Any:
    if library == "gem_torch":
        import gem  # type: ignore[import-not-found]

        return gem.create_gem_model(NAME, str(weights)).eval()
    import gem_lite

    return gem_lite.create_gem_model(NAME, weights)


def seconds(run: Run, clock: Callable[[], float]) -> float:
    start = clock()
    run()
    return clock() - start


def take_turns(runs: dict[str, Run], args: argparse.Namespace) -> dict[str, float]:
    """Median seconds of each run; one untimed turn first, then one of each, again and again."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(args.repeats):
        order = list(runs) if turn % 2 == 0 else list(runs)[::-1]
        for name in order:
            times[name].append(seconds(runs[name], CLOCKS[args.clock]))
    return {name: statistics.median(values) for name, values in times.items()}


def row(what: str, result: dict[str, float], unit: str = "s") -> None:
    theirs, ours = result["gem_torch"], result["gem_lite"]
    figures = f"{theirs:.4g} {unit} | {ours:.4g} {unit} | {theirs / ours:.3g} x"
    print(f"| {what} | {figures} |", flush=True)


def header(title: str) -> None:
    print(f"\n| {title} | gem_torch | gem_lite | ratio |\n|---|---|---|---|")


def peak_memory() -> float:
    """Peak resident MiB since the last call (Linux)."""
    # getrusage would count what the parent process held before the start.
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def measure_memory(
    library: str, weights: Path, size: tuple[int, int], batches: Iterable[int]
) -> dict[str, float]:
    """Peak resident MiB of this process while importing, loading and calling."""
    seen = {"importing torch": peak_memory()}
    model = create(library, weights)
    seen["loading a .pt"] = peak_memory()
    for batch in batches:
        images = torch.randn(batch, 3, *size)
        model(images, WORDS[:5])
        seen[f"{batch} images, 5 prompts"] = peak_memory()
        model.batched_forward(images, [WORDS[:10]] * batch)
        seen[f"batched_forward, {batch} images x 10 prompts"] = peak_memory()
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, nargs=2, default=(448, 448), metavar=("H", "W"))
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 4))
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--parts", choices=PARTS, nargs="+", default=PARTS)
    parser.add_argument("--folder", type=Path, help="keep weights here, and use what is there")
    parser.add_argument("--memory", choices=LIBRARIES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    size = (args.size[0], args.size[1])
    if args.memory:
        seen = measure_memory(args.memory, args.folder / "plain.pt", size, args.batches)
        print(json.dumps(seen))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "plain.pt").exists():
            torch.save(layouts.random_weights(layouts.VIT_B_16), folder / "plain.pt")
        print(
            f"ViT-B/16, {size[0]} x {size[1]}, fp32, {args.threads} thread(s), median of"
            f" {args.repeats} interleaved turns, {args.clock} clock;"
            f" torch {torch.__version__}, {platform.machine()}."
        )
        if "calls" in args.parts:
            time_calls(args, folder, size)
        if "text" in args.parts:
            time_text(args, folder)
        if "loading" in args.parts:
            time_loading(args, folder)
        if "memory" in args.parts:
            compare_memory(args, folder)


def both(args: argparse.Namespace, folder: Path) -> Callable[..., dict[str, float]]:
    """A function that times the same call on both models; new = nothing in our text cache."""
    theirs, ours = (create(library, folder / "plain.pt") for library in LIBRARIES)

    def compare(run: Callable[[Any], object], *, new: bool) -> dict[str, float]:
        def our_turn() -> None:
            if new:
                ours.clear_text_cache()
            run(ours)

        return take_turns({"gem_torch": partial(run, theirs), "gem_lite": our_turn}, args)

    return compare


def time_calls(args: argparse.Namespace, folder: Path, size: tuple[int, int]) -> None:
    compare = both(args, folder)
    for batch in args.batches:
        header(f"batch of {batch}")
        images = torch.randn(batch, 3, *size)

        def tower(model: Any, images: Tensor = images) -> object:
            ours = hasattr(model, "network")
            return model.encode_image(images) if ours else model.model.visual(images)

        def call(model: Any, prompts: int, images: Tensor = images) -> object:
            return model(images, WORDS[:prompts])

        def batched(model: Any, images: Tensor = images) -> object:
            return model.batched_forward(images, [WORDS[i : i + 5] for i in range(len(images))])

        row("image tower, both streams", compare(tower, new=False))
        for prompts in (1, 5, 50):
            row(
                f"whole call, {prompts} new prompts",
                compare(partial(call, prompts=prompts), new=True),
            )
        row("whole call, 50 prompts seen before", compare(partial(call, prompts=50), new=False))
        row("batched_forward, 5 new prompts an image", compare(batched, new=True))


def time_text(args: argparse.Namespace, folder: Path) -> None:
    compare = both(args, folder)
    header("encode_text")

    def encode(model: Any, prompts: int) -> object:
        return model.encode_text(WORDS[:prompts])

    for prompts in (1, 50):
        row(f"{prompts} new prompts", compare(partial(encode, prompts=prompts), new=True))
        row(f"{prompts} prompts seen before", compare(partial(encode, prompts=prompts), new=False))


def time_loading(args: argparse.Namespace, folder: Path) -> None:
    import gem_lite

    header("create_gem_model")
    plain = folder / "plain.pt"
    converted = folder / "gem_lite.safetensors"
    gem_lite.save(create("gem_lite", plain), converted)
    for what, path in (("from a .pt", plain), ("ours from our safetensors", converted)):
        runs: dict[str, Run] = {
            "gem_torch": partial(create, "gem_torch", plain),
            "gem_lite": partial(create, "gem_lite", path),
        }
        row(what, take_turns(runs, args))


def compare_memory(args: argparse.Namespace, folder: Path) -> None:
    header("peak resident memory while")
    seen = {}
    for library in LIBRARIES:
        command = [sys.executable, __file__, "--memory", library, "--folder", str(folder)]
        command += ["--threads", str(args.threads), "--size", *map(str, args.size)]
        command += ["--batches", *map(str, args.batches)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        seen[library] = json.loads(output.splitlines()[-1])
    for what in seen["gem_lite"]:
        row(what, {library: seen[library][what] for library in LIBRARIES}, "MiB")


if __name__ == "__main__":
    main()
