"""Many pictures through a model: read ahead and written behind in threads, batched in between."""

from __future__ import annotations

import argparse
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image
from torch import Tensor

from ...predictor import GEMPredictor
from ..progress import Progress
from ..ranks import share, this_rank
from .console import one_line, say_json, tell
from .inputs import Input, Inputs
from .model import check_work

_T = TypeVar("_T")
THREADS = 2  # that read, and as many that write: decoding takes a part of what the model takes
# RuntimeError is torch's, which says so when memory is not enough.
_ERRORS = (ValueError, OSError, MemoryError, RuntimeError)


class Loaded(NamedTuple):
    """A picture that was read, and what the model sees of it."""

    input: Input
    picture: Image.Image
    tensor: Tensor  # [3, h, w]


def for_each_picture(
    inputs: Inputs,
    load: Callable[[Input], Loaded],
    work: Callable[[list[Loaded]], list[_T]],
    write: Callable[[_T, Input], dict[str, Any]],
    *,
    batch: int,
    as_json: bool,
    say: Callable[[dict[str, Any]], None],
) -> int:
    """Load, work, write; results are said in the order of the inputs. Returns the exit code.

    `work` gets up to `batch` pictures whose tensors have one size. A picture that cannot be read or
    worked on is reported and left out. What goes wrong while writing ends the command, since it
    would go wrong again. `load` and `write` run in threads, with Pillow and NumPy alone: PyTorch's
    operators would start threads there that keep the model's waiting. Under torchrun each process
    takes its share of the pictures; the first reports what is missing.
    """
    failed = 0

    def failure(name: str, message: str) -> None:
        nonlocal failed
        failed += 1
        tell(message)
        if as_json:
            say_json({"input": name, "error": one_line(message)})

    missing = inputs.missing if this_rank().rank == 0 else {}
    for name, message in missing.items():
        failure(name, message)
    chosen = share(inputs.pictures)
    progress = Progress(len(chosen), "pictures")
    done = 0
    written: deque[tuple[Input, Future[dict[str, Any]]]] = deque()

    def finish(leave: int) -> None:
        nonlocal done
        while len(written) > leave:
            source, future = written.popleft()
            entry = future.result()
            done += 1
            if as_json:
                say_json({"input": source.source, **entry})
            else:
                say(entry)

    with _threads() as reading, _threads() as writing, _warnings_told():
        for group, errors in _groups(reading, load, chosen, batch):
            for source, error in errors:
                finish(0)
                done += 1
                failure(source.source, _named(source, error))
            if not group:
                continue
            progress.show(done + len(written), group[0].input.source)
            for each, result in _worked(work, group):
                if isinstance(result, Exception):
                    finish(0)
                    done += 1
                    failure(each.input.source, _named(each.input, result))
                else:
                    written.append((each.input, writing.submit(write, result, each.input)))
            while written and written[0][1].done():
                finish(len(written) - 1)
            finish(2 * batch + THREADS)
        finish(0)
    progress.clear()
    if failed and len(chosen) + len(missing) > 1:
        tell(f"{failed} of {len(chosen) + len(missing)} inputs failed")
    return 1 if failed else 0


def loader(
    args: argparse.Namespace, model: GEMPredictor, transform: Callable[[Image.Image], Tensor]
) -> Callable[[Input], Loaded]:
    """Reads a picture and makes what the model sees of it, if that is not too much."""

    def load(source: Input) -> Loaded:
        picture = source.open()
        check_work(args, (picture.height, picture.width), model)
        return Loaded(source, picture, transform(picture))

    return load


def batch_size(wanted: int | None, device: torch.device) -> int:
    """Pictures in one forward pass. On a CPU one at a time is as fast, and needs less memory."""
    if wanted is None:
        return 1 if device.type == "cpu" else 8
    if wanted < 1:
        raise ValueError(f"--batch is {wanted}; expected at least 1")
    return wanted


def _groups(
    reading: ThreadPoolExecutor,
    load: Callable[[Input], Loaded],
    chosen: list[Input],
    batch: int,
) -> Iterator[tuple[list[Loaded], list[tuple[Input, Exception]]]]:
    """Neighbours of one size, up to `batch`; and what could not be read, in its place."""
    ahead: deque[tuple[Input, Future[Loaded]]] = deque()
    rest = iter(chosen)
    group: list[Loaded] = []
    while True:
        while len(ahead) < batch + THREADS and (source := next(rest, None)) is not None:
            ahead.append((source, reading.submit(load, source)))
        if not ahead:
            break
        source, future = ahead.popleft()
        try:
            loaded = future.result()
        except _ERRORS as error:
            yield group, []
            yield [], [(source, error)]
            group = []
            continue
        if group and (len(group) == batch or group[0].tensor.shape != loaded.tensor.shape):
            yield group, []
            group = []
        group.append(loaded)
        if len(group) == batch:
            yield group, []
            group = []
    yield group, []


def _worked(
    work: Callable[[list[Loaded]], list[_T]], group: list[Loaded]
) -> Iterator[tuple[Loaded, _T | Exception]]:
    """The results of a batch; where it fails, such as for memory, of each picture by itself."""
    try:
        yield from zip(group, work(group), strict=True)
    except _ERRORS as error:
        if len(group) == 1:
            yield group[0], error
            return
        for each in group:
            yield from _worked(work, [each])


def _named(source: Input, error: Exception) -> str:
    text = str(error) or type(error).__name__
    return text if source.source in text or source.source == "-" else f"{source.source}: {text}"


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads that end with the block; what has not begun by then, for an error, never does."""
    pool = ThreadPoolExecutor(THREADS)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _warnings_told() -> Iterator[None]:
    """Pillow's warnings, which are about metadata, are left out; others become lines."""
    with warnings.catch_warnings(record=True) as caught:
        yield
    for text in dict.fromkeys(str(each.message) for each in caught if "PIL" not in each.filename):
        tell(text)
