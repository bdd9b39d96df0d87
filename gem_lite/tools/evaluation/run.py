"""The loop of an evaluation: load ahead, score one picture at a time, keep what is done, add up."""

import io
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...checkpoints.files import atomic_file
from ..ranks import Rank, share, total, wait_for_all

AHEAD = 4  # pictures that are loaded before they are needed
LOADERS = 2  # threads


@dataclass(frozen=True)
class Task:
    """What to do with each picture; the counts of all are added up."""

    names: tuple[str, ...]  # of the pictures, all different
    shape: tuple[int, ...]  # of the counts
    load: Callable[[int], Any]  # from disk to tensors, in a thread
    score: Callable[[int, Any], Tensor]  # int64 counts of one picture


@dataclass
class Partial:
    """What one process has done so far."""

    counts: Tensor
    done: set[str] = field(default_factory=set)

    def save(self, path: Path, key: str) -> None:
        """Write it, complete or not at all."""
        content = io.BytesIO()
        np.savez_compressed(
            content, counts=self.counts.numpy(), done=np.array(sorted(self.done)), key=key
        )
        _replace(path, content.getvalue())


def run(
    task: Task,
    *,
    folder: Path,
    key: str,
    rank: Rank,
    device: str,
    save_every: float = 10.0,
    advance: Callable[[int, int], None] = lambda done, left: None,
) -> Tensor:
    """The counts over all pictures, the same in every process.

    folder: where the partial files are. The run continues those that an earlier one of the same
    `key` (a JSON object of all that the counts depend on) left, by any number of processes.
    save_every: seconds between two savings; what was done after the last one is done again.
    advance: called with the numbers of pictures done and left in all, as far as known here.
    Raises ValueError when the folder holds partial files of another key, ConnectionError when
    another process ended early.
    """
    partials = {
        number: read_partial(path, key, task.shape) for number, path in _files(folder).items()
    }
    done = set().union(*(partial.done for partial in partials.values()))
    left = [index for index, name in enumerate(task.names) if name not in done]
    wait_for_all(rank, device)  # nobody writes before everybody has read
    empty = Partial(torch.zeros(task.shape, dtype=torch.int64))
    before = partials.get(rank.rank, empty)
    path = folder / f"partial-{rank.rank}.npz"
    mine = share(left, rank)
    saved = time.monotonic()
    advance(len(done), len(left))
    # Replaced as one, so that an interruption cannot come between counts and number.
    state = (before.counts, 0)

    def save() -> None:
        names = {task.names[index] for index in mine[: state[1]]}
        Partial(state[0], before.done | names).save(path, key)

    try:
        for number, (index, loaded) in enumerate(_loaded(task, mine), start=1):
            counts = state[0] + task.score(index, loaded).cpu()
            state = (counts, number)
            # The others are taken to be as fast as this one, until they say that they are done.
            finished = min(number * rank.world, max(number, len(left) - rank.world + 1))
            advance(len(done) + finished, len(left) - finished)
            if time.monotonic() - saved >= save_every:
                save()
                saved = time.monotonic()
    finally:
        save()
    counts = total(state[0], rank, device)
    if rank.world > 1:
        advance(len(task.names), 0)
    for number, partial in partials.items():
        if number >= rank.world:  # of an earlier run with more processes
            counts = counts + partial.counts
    return counts


def clear(folder: Path) -> None:
    """Remove the partial files, and what a kill left of one that was being written."""
    for path in [*_files(folder).values(), *folder.glob("partial-*.new")]:
        path.unlink(missing_ok=True)
    for path in folder.glob(".partial-*.tmp"):
        path.unlink(missing_ok=True)


def read_partial(path: Path, key: str, shape: tuple[int, ...]) -> Partial:
    """A partial file of this key. Raises ValueError for another run's, or a damaged file."""
    advice = "delete it, or use --restart"
    try:
        with np.load(path, allow_pickle=False) as stored:
            theirs = str(stored["key"])
            counts, done = torch.from_numpy(stored["counts"]), set(stored["done"].tolist())
    except Exception as error:  # a damaged zip file makes numpy raise of every kind
        raise ValueError(f"{path} cannot be read ({error}); {advice}") from error
    if theirs != key:
        try:
            old, new = dict(json.loads(theirs)), json.loads(key)
        except (ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{path} has a key that is not a JSON object; {advice}") from error
        names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
        raise ValueError(
            f"{path} is of a run with another {', '.join(names)}; give another --output, or"
            " --restart to begin anew"
        )
    if counts.dtype != torch.int64 or tuple(counts.shape) != shape:
        raise ValueError(
            f"{path} has counts {counts.dtype} {list(counts.shape)}; expected torch.int64"
            f" {list(shape)}; {advice}"
        )
    return Partial(counts, done)


def _replace(path: Path, content: bytes) -> None:
    """Write a file, complete or not at all.

    On Linux the new file has no name before it is complete, so that not even a kill leaves a piece.
    """
    spare = path.with_suffix(".new")
    try:
        handle = os.open(path.parent, os.O_TMPFILE | os.O_WRONLY, 0o666)
    except (AttributeError, OSError):  # another system, or a file system that has no such files
        with atomic_file(path) as temporary:
            temporary.write_bytes(content)
        return
    with open(handle, "wb") as file:
        file.write(content)
        file.flush()
        spare.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:  # with a folder given, Python makes the link to the file, not to /proc's own link
            os.link(f"/proc/self/fd/{handle}", spare.name, dst_dir_fd=folder, follow_symlinks=True)
        finally:
            os.close(folder)
    os.replace(spare, path)


def _files(folder: Path) -> dict[int, Path]:
    paths = {path.stem.removeprefix("partial-"): path for path in folder.glob("partial-*.npz")}
    return {int(number): path for number, path in sorted(paths.items()) if number.isdecimal()}


def _loaded(task: Task, indices: Sequence[int]) -> Iterator[tuple[int, Any]]:
    """Each picture in order, loaded while the ones before it are scored."""
    with ThreadPoolExecutor(LOADERS) as pool:
        waiting: deque[tuple[int, Future[Any]]] = deque()
        try:
            for index in indices:
                waiting.append((index, pool.submit(task.load, index)))
                if len(waiting) > AHEAD:
                    first, future = waiting.popleft()
                    yield first, future.result()
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:
            for _, future in waiting:
                future.cancel()
