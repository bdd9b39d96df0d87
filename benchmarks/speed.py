"""Time gem_lite and upstream gem_torch side by side, on the same ViT-B/16 weights.

    python benchmarks/speed.py                       # both sides, everything
    python benchmarks/speed.py --cases text loading  # some rows

Makes a virtual environment for upstream the first time (gem_torch 1.0.1 on open_clip_torch 2.23.0)
and runs itself in it. Each side has a process of its own, as its users have it: in one, what the
first frees the other would use again. They take turns, and each figure is the median of its turns,
so that a busy machine slows both: read the ratios. Prints markdown tables; RESULTS.md keeps those
of one machine.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent
PEER = HERE / ".peer"
NAME = "ViT-B/16-quickgelu"
LIBRARIES = ("gem_torch", "gem_lite")
SIDE = 448

# Upstream pins nothing: these are versions of its time that still install.
REQUIREMENTS = (
    *("safetensors", "numpy", "pillow", "einops", "ftfy", "regex", "tqdm", "timm"),
    *("huggingface_hub", "sentencepiece", "protobuf", "matplotlib", "opencv-python-headless"),
)
WITHOUT_DEPENDENCIES = ("gem_torch==1.0.1", "open_clip_torch==2.23.0", "torchvision==0.28.0")

Run = Callable[[Any], object]


def peer_python() -> Path:
    """The interpreter of upstream's environment, which is made if it is not there."""
    python = PEER / ("Scripts" if os.name == "nt" else "bin") / "python"
    if (PEER / "ready").exists():
        return python
    print(f"making upstream's environment in {PEER}", file=sys.stderr)
    venv.create(PEER, with_pip=True, clear=True)
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
    torch_version = metadata.version("torch").partition("+")[0]
    subprocess.run([*install, f"torch=={torch_version}", *REQUIREMENTS], check=True)
    subprocess.run([*install, "--no-deps", *WITHOUT_DEPENDENCIES], check=True)
    # torchvision's wheel registers CUDA operators, which a CPU build of torch does not have.
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    (Path(site) / "torchvision" / "_meta_registrations.py").write_text("")
    (PEER / "ready").touch()
    return python


class Case(NamedTuple):
    """A row of the table."""

    what: str
    run: Run  # takes a model
    precision: str = "fp32"
    new: bool = True  # nothing kept from earlier calls
    tolerance: float = 1e-4  # of what it returns, if that is maps


def cases() -> dict[str, Case]:
    import torch

    generator = torch.Generator().manual_seed(0)
    one, four = (torch.randn(b, 3, SIDE, SIDE, generator=generator) for b in (1, 4))
    colours, things = ("red", "big", "old"), range(50)
    words = [f"{colour} {thing}" for thing in things for colour in colours]
    own = [words[start : start + 5] for start in range(0, 20, 5)]

    def call(model: Any, prompts: int) -> object:
        return model(one, words[:prompts])

    def batched(model: Any) -> object:
        return torch.cat(model.batched_forward(four, own))

    def text(model: Any) -> object:
        return model.encode_text(words)

    two = partial(call, prompts=2)
    some, many = partial(call, prompts=21), partial(call, prompts=150)
    return {
        "two": Case("1 image, 2 prompts, text not kept", two),
        "some": Case("1 image, 21 prompts, repeated", some, new=False),
        "many": Case("1 image, 150 prompts, repeated", many, new=False),
        "text": Case("150 new prompts, text only", text),
        "batched": Case("4 images x 5 prompts, batched", batched),
        "two-bf16": Case("1 image, 2 prompts, ours in bf16", two, "bf16", tolerance=2e-2),
        "batched-bf16": Case("4 images x 5 prompts, ours in bf16", batched, "bf16", tolerance=2e-2),
    }


def create(library: str, weights: Path, precision: str = "fp32") -> Any:
    if library == "gem_torch":
        import gem  # type: ignore[import-not-found]

        return gem.create_gem_model(NAME, str(weights)).eval()
    import gem_lite

    return gem_lite.create_gem_model(NAME, weights, precision=precision)


class Side:
    """A process that has loaded one of the libraries, and does what it is told."""

    def __init__(self, library: str, weights: Path) -> None:
        self.name = library
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--side", library, "--weights", str(weights), *threads()],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(self, **order: str) -> float:
        """Seconds that the order took, see `serve`."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(json.dumps(order), file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} stopped; its error stands above")
        return float(answer)

    def __enter__(self) -> "Side":
        return self

    def __exit__(self, *error: object) -> None:
        self.process.kill()
        self.process.wait()


def serve(library: str, weights: Path) -> None:
    """Do each order on the standard input, and print the seconds it took.

    case: run this row, and save what it returns if `save` names a file. load: make a model from
    this file. memory: peak MiB above the model for this row, in place of seconds.
    """
    import torch

    answers, sys.stdout = sys.stdout, sys.stderr  # what the library prints is no answer
    models: dict[str, Any] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if "load" in order:
            start = time.perf_counter()
            create(library, Path(order["load"]))
            print(time.perf_counter() - start, file=answers, flush=True)
            continue
        case = cases()[order.get("case") or order["memory"]]
        precision = case.precision if library == "gem_lite" else "fp32"
        if precision not in models:
            models[precision] = create(library, weights, precision)
        model = models[precision]
        if "memory" in order:
            print(memory_above(model, case), file=answers, flush=True)
            continue
        if case.new and library == "gem_lite":
            model.clear_text_cache()
        start = time.perf_counter()
        result = case.run(model)
        seconds = time.perf_counter() - start
        if "save" in order:
            torch.save(result, order["save"])
        print(seconds, file=answers, flush=True)


def threads() -> list[str]:
    """The option for the sides, as it was given to this program."""
    import torch

    return ["--threads", str(torch.get_num_threads())]


def take_turns(runs: dict[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """Median seconds of each run: one untimed turn, then one of each, again and again."""
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(repeats):
        for name in list(runs) if turn % 2 == 0 else list(runs)[::-1]:
            times[name].append(runs[name]())
    return {name: statistics.median(values) for name, values in times.items()}


def timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def row(what: str, result: dict[str, float], unit: str, note: str = "") -> None:
    theirs, ours = result["gem_torch"], result["gem_lite"]
    print(f"| {what} | {theirs:.3g} {unit} | {ours:.3g} {unit} | {theirs / ours:.2f} x | {note} |")
    sys.stdout.flush()


def time_calls(chosen: dict[str, Case], sides: dict[str, Side], repeats: int) -> None:
    import torch

    with tempfile.TemporaryDirectory() as folder:
        for name, case in chosen.items():
            results = []
            for library, side in sides.items():
                path = Path(folder) / f"{library}.pt"
                side(case=name, save=str(path))
                results.append(torch.load(path, weights_only=True))
            error = float((results[0] - results[1]).abs().max())
            runs = {library: partial(side, case=name) for library, side in sides.items()}
            short = f"differs by {error:.0e}" + (" !" if error > case.tolerance else "")
            row(case.what, take_turns(runs, repeats), "s", short)


def time_loading(plain: Path, sides: dict[str, Side], repeats: int) -> None:
    import gem_lite

    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "gem_lite.safetensors"
        gem_lite.save(create("gem_lite", plain), converted)
        runs = {
            "gem_torch": partial(sides["gem_torch"], load=str(plain)),
            "gem_lite": partial(sides["gem_lite"], load=str(converted)),
        }
        row("loading: ours converted, upstream's .pt", take_turns(runs, repeats), "s")
    runs = {library: partial(side, load=str(plain)) for library, side in sides.items()}
    row("loading: the same .pt", take_turns(runs, repeats), "s")


def peak_memory() -> float:
    """Peak resident MiB since the last call (Linux)."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")  # starts the peak anew
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def memory_above(model: Any, case: Case) -> float:
    """Peak MiB of a row above the loaded model."""
    sum(float(p.sum()) for p in model.parameters())  # all weights are in memory
    peak_memory()
    before = peak_memory()
    case.run(model)
    return peak_memory() - before


def compare_memory(weights: Path) -> None:
    seen = {}
    for library in LIBRARIES:
        with Side(library, weights) as side:  # one that has done nothing yet
            seen[library] = side(memory="batched")
    row("peak memory above the model, batch of 4", seen, "MiB")


def compare_with_the_machine(weights: Path, repeats: int) -> None:
    """Share of the best rate of matrix products, and GEM's cost over plain CLIP."""
    import torch
    import torch.nn.functional as F

    from gem_lite.fast.switch import Kernels

    image = torch.randn(1, 3, SIDE, SIDE)
    print("\n| one image | best linear layer | image tower | share | GEM over plain CLIP |")
    print("|---|---|---|---|---|")
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        model = create("gem_lite", weights, precision)
        plain = __import__("gem_lite").create_gem_model(NAME, weights, 1, precision=precision)
        tower = model.network.config.image
        n, d = 1 + (SIDE // tower.patch) ** 2, tower.width
        x, weight = torch.randn(n, d, dtype=dtype), torch.randn(4 * d, d, dtype=dtype)
        with Kernels():
            linear = {"linear": partial(timed, partial(F.linear, x, weight))}
            rate = take_turns(linear, 15 * repeats)
        towers = {
            "gem": partial(timed, partial(model.encode_image, image)),
            "clip": partial(timed, partial(plain.encode_image, image)),
        }
        seconds = take_turns(towers, repeats)
        best = 8 * n * d * d / rate["linear"] / 1e9
        reached = work(model, n) / seconds["gem"] / 1e9
        print(
            f"| {precision} | {best:.0f} GFLOP/s | {reached:.0f} GFLOP/s | {reached / best:.0%} |"
            f" {seconds['gem']:.3g} s / {seconds['clip']:.3g} s ="
            f" {seconds['gem'] / seconds['clip']:.2f} x |",
            flush=True,
        )


def profile(weights: Path) -> None:
    """Where the time of one image goes, on PyTorch's own operators and on ours."""
    import torch
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    image = torch.randn(1, 3, SIDE, SIDE)
    for precision in ("fp32", "bf16"):
        model = create("gem_lite", weights, precision)
        for kernels in ("torch", "auto"):
            model.kernels = kernels
            model.encode_image(image)
            with profiler(activities=[ProfilerActivity.CPU]) as seen:
                model.encode_image(image)
            rows = sorted(seen.key_averages(), key=lambda each: -each.self_cpu_time_total)
            total = sum(each.self_cpu_time_total for each in rows)
            shares = (f"{each.key} {each.self_cpu_time_total / total:.0%}" for each in rows[:6])
            print(f"- {precision}, {model.kernels}, {total / 1e6:.2f} s: {', '.join(shares)}")


def work(model: Any, n: int) -> float:
    """Floating-point operations of the image tower for one image of n tokens."""
    tower, gem = model.network.config.image, model.network.method
    d, m = tower.width, tower.mlp_width
    product = 2 * n * n * d  # of a score matrix with something, over all heads
    block = 2 * n * d * (4 * d + 2 * m) + 2 * product
    dual = 2 * n * d * d + len(gem.streams) * 2 * (gem.iters + 1) * product
    embed = 2 * n * 3 * tower.patch**2 * d + 2 * 2 * n * d * model.network.config.embed
    return float(tower.layers * block + gem.blocks * dual + embed)


def processor() -> str:
    """The processor's name, as Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", metavar="ROW", help="some rows; default: all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, help="default: PyTorch's own choice")
    parser.add_argument("--weights", type=Path, help="a plain state dict; default: random ones")
    parser.add_argument("--peer-python", type=Path, help="an environment that has both")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--side", choices=LIBRARIES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not (args.inside or args.side):
        python = args.peer_python or peer_python()
        command = [str(python), __file__, "--inside", *sys.argv[1:]]
        path = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": path})
        raise SystemExit(done.returncode)

    import layouts
    import torch

    torch.set_grad_enabled(False)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.side:
        serve(args.side, args.weights)
        return
    known = cases()
    others = ("loading", "memory", "machine", "profile")
    names = args.cases or [*known, *others]
    if unknown := set(names) - {*known, *others}:
        parser.error(f"unknown rows {sorted(unknown)}; known: {[*known, *others]}")
    with tempfile.TemporaryDirectory() as folder:
        weights = args.weights or Path(folder) / "plain.pt"
        if not weights.exists():
            torch.save(layouts.random_weights(layouts.VIT_B_16), weights)
        versions = ", ".join(
            f"{name} {metadata.version(name)}" for name in ("torch", "gem_torch", "open_clip_torch")
        )
        print(
            f"ViT-B/16, {SIDE} x {SIDE}; {processor()}, {torch.get_num_threads()} threads,"
            f" {torch.backends.cpu.get_cpu_capability()}; Python {platform.python_version()},"
            f" {versions}; median of {args.repeats} turns.\n"
        )
        print("| work | gem_torch, fp32 | gem_lite | ratio | |\n|---|---|---|---|---|")
        chosen = {name: case for name, case in known.items() if name in names}
        with ExitStack() as stack:
            sides = {name: stack.enter_context(Side(name, weights)) for name in LIBRARIES}
            time_calls(chosen, sides, args.repeats)
            if "loading" in names:
                time_loading(weights, sides, args.repeats)
        if "memory" in names:
            compare_memory(weights)
        if "machine" in names:
            compare_with_the_machine(weights, args.repeats)
        if "profile" in names:
            print("\nWhere the time of one image goes, by operator:\n")
            profile(weights)


if __name__ == "__main__":
    main()
