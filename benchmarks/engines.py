"""Time gem_lite against the engines that its network can be exported to, on the same weights.

    pip install onnx onnxscript onnxruntime openvino
    python benchmarks/engines.py                       # every row
    python benchmarks/engines.py --cases 448 448-bf16  # some rows

The image tower of a random ViT-B/16 is exported with `torch.onnx.export(dynamo=True)`, at fixed
sizes, which suits the engines best. Each side has a process of its own and they take turns; each
figure is the median of its turns, and the ratios are those of one run. Prints markdown tables;
RESULTS.md keeps those of one machine.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import layouts
import torch
import torch.nn.functional as F
from torch import Tensor, nn

NAME = "ViT-B/16-quickgelu"
Run = Callable[[], Tensor]


class Case(NamedTuple):
    """A row of the table. Both streams are asked for, or GEM's maps alone."""

    what: str
    batch: int
    side: int
    bf16: bool = False
    both: bool = True

    @property
    def images(self) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(self.batch, 3, self.side, self.side, generator=generator)


CASES = {
    "448": Case("float32, 1 image, 448", 1, 448),
    "448-gem": Case("float32, 1 image, 448, GEM's maps alone", 1, 448, both=False),
    "896": Case("float32, 1 image, 896", 1, 896),
    "batch": Case("float32, 4 images, 448", 4, 448),
    "448-bf16": Case("bfloat16, 1 image, 448", 1, 448, bf16=True),
    "batch-bf16": Case("bfloat16, 4 images, 448", 4, 448, bf16=True),
}
WIDTH = 512  # of the space shared with text


class Tower(nn.Module):
    """The image tower as it is exported: its features alone."""

    def __init__(self, visual: nn.Module, both: bool) -> None:
        super().__init__()
        self.visual = visual
        self.both = both

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features = self.visual(images)
        return (features.gem, features.clip) if self.both else (features.gem,)


def words() -> Tensor:
    """Embeddings of some words: what every side's maps are made with."""
    return F.normalize(torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1)), dim=-1)


def cosines(features: Any) -> Tensor:
    """[b, n, e] of patches -> [b, n, words]."""
    return F.normalize(torch.as_tensor(features).float(), dim=-1) @ words().T


def created(weights: Path, case: Case, depth: int | None = None) -> Any:
    import gem_lite

    precision: Any = "bf16" if case.bf16 else "fp32"
    return gem_lite.create_gem_model(NAME, weights, depth, precision=precision)


def exported(weights: Path, folder: Path, case: Case) -> Path:
    """The tower in float32 as an ONNX file; a hint makes OpenVINO compute it in bfloat16."""
    path = folder / f"{case.batch}-{case.side}-{case.both}.onnx"
    if not path.exists():
        tower = Tower(created(weights, case._replace(bf16=False)).network.visual, case.both)
        with redirect_stdout(sys.stderr):
            torch.onnx.export(tower.eval(), (case.images,), path, dynamo=True, verbose=False)
    return path


def gem_lite(weights: Path, case: Case, kernels: Any = "auto", depth: int | None = None) -> Run:
    model, images, text = created(weights, case, depth), case.images, words()
    model.kernels = kernels
    if case.both:
        return lambda: cosines(model.encode_image(images).gem)
    return lambda: model(images, text, normalize=False, size="patches").flatten(2).mT


def onnx_runtime(path: Path, case: Case) -> Run:
    import onnxruntime  # type: ignore[import-not-found]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: case.images.numpy()}
    return lambda: cosines(session.run(None, inputs)[0][:, 1:])


def openvino(path: Path, case: Case) -> Run:
    from openvino import Core  # type: ignore[import-not-found]

    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if case.bf16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = Core().compile_model(path, "CPU", settings)
    images = case.images.numpy()
    return lambda: cosines(compiled(images)[0][:, 1:])


SIDES: dict[str, Callable[[Path, Path, Case], Run]] = {
    "gem_lite": lambda weights, folder, case: gem_lite(weights, case),
    "PyTorch's kernels": lambda weights, folder, case: gem_lite(weights, case, "torch"),
    "ONNX Runtime": lambda weights, folder, case: onnx_runtime(
        exported(weights, folder, case), case
    ),
    "OpenVINO": lambda weights, folder, case: openvino(exported(weights, folder, case), case),
    "plain CLIP": lambda weights, folder, case: gem_lite(weights, case, depth=1),
}
FLOAT32_ONLY = {"ONNX Runtime"}


class Side:
    """A process of one side and one case, which runs it whenever it is told to."""

    def __init__(self, name: str, case: str, folder: Path) -> None:
        command = [sys.executable, __file__, "--side", name, "--cases", case]
        command += ["--folder", str(folder), "--threads", str(torch.get_num_threads())]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.result = folder / f"{name} {case}.pt"
        self.loading = self()  # the first answer is the time until it was ready

    def __call__(self) -> float:
        """Seconds of one run."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit("a side stopped; its error stands above")
        return float(answer)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


def serve(name: str, case: str, folder: Path) -> None:
    """At each line of the standard input, run and print the seconds it took."""
    answers, sys.stdout = sys.stdout, sys.stderr
    start = time.perf_counter()
    run = SIDES[name](folder / "plain.pt", folder, CASES[case])
    sys.stdin.readline()
    print(time.perf_counter() - start, file=answers, flush=True)
    torch.save(run(), folder / f"{name} {case}.pt")
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(time.perf_counter() - start, file=answers, flush=True)


def compare(name: str, folder: Path, sides: list[str], repeats: int) -> None:
    """Print one row for each side: its median, our gain, and how far it is from PyTorch."""
    case = CASES[name]
    sides = [side for side in sides if not (case.bf16 and side in FLOAT32_ONLY)]
    if {"ONNX Runtime", "OpenVINO"} & set(sides):
        exported(folder / "plain.pt", folder, case)
    with ExitStack() as stack:
        running = {side: Side(side, name, folder) for side in sides}
        for side in running.values():
            stack.callback(side.stop)
        times: dict[str, list[float]] = {side: [] for side in sides}
        for turn in range(repeats + 1):
            for side in sides if turn % 2 == 0 else sides[::-1]:
                seconds = running[side]()
                if turn:  # the first is for warming up
                    times[side].append(seconds)
        ours = torch.load(running["gem_lite"].result)
        for side in sides:
            ratios = [a / b for a, b in zip(times[side], times["gem_lite"], strict=True)]
            differs = float((torch.load(running[side].result) - ours).abs().max())
            print(
                f"| {case.what} | {side} | {statistics.median(times[side]):.3f} s |"
                f" {statistics.median(ratios):.2f} x | {differs:.0e} |"
                f" {running[side].loading:.2f} s |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, help="default: PyTorch's own choice")
    parser.add_argument("--folder", type=Path, help="keep the weights and exported files here")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.side:
        serve(args.side, args.cases[0], args.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        if not (folder / "plain.pt").exists():
            torch.save(layouts.random_weights(layouts.VIT_B_16), folder / "plain.pt")
        packages = ("torch", "onnxruntime", "openvino")
        versions = ", ".join(f"{package} {metadata.version(package)}" for package in packages)
        print(
            f"ViT-B/16; {torch.get_num_threads()} threads,"
            f" {torch.backends.cpu.get_cpu_capability()}; {versions}; median of {args.repeats}.\n"
        )
        print("| work | side | seconds | / gem_lite | maps differ | loading |")
        print("|---|---|---|---|---|---|", flush=True)
        for name in args.cases:
            compare(name, folder, args.sides, args.repeats)
        print("\n| file | MB |\n|---|---|")
        for path in sorted(folder.glob("*.onnx*")):
            print(f"| {path.name} | {path.stat().st_size / 1e6:.1f} |")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
