"""Strangers' pictures become tensors in a process of their own, under limits of time and memory.

What a file can do to a decoder (endless work, memory, a fault in C code) ends that process, and the
next picture gets a new one. It is not a sandbox: the process has the user's rights.
"""

import io
import json
import os
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...pictures.opening import open_picture
from ...pictures.transform import ImageTransform

SHOWN_SIDE = 1024  # pixels of the longer side of the picture that goes back to the page
START_SECONDS = 120  # for the process to import what it needs, on a busy machine
MEMORY = 1_500_000_000  # bytes above what the process has at its start; Linux only


class Prepared(NamedTuple):
    """A picture, ready for the network and for the page."""

    image: Tensor  # [3, h, w] float32, normalised
    shown: bytes  # a JPEG
    size: tuple[int, int]  # (h, w) of the picture in pixels


def prepare(picture: Image.Image, transform: ImageTransform) -> Prepared:
    """What the network and the page need of a picture."""
    scale = min(1.0, SHOWN_SIDE / max(picture.size))
    # PIL counts (width, height).
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    file = io.BytesIO()
    shown = picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    shown.save(file, "JPEG", quality=90)
    return Prepared(transform(picture), file.getvalue(), (picture.height, picture.width))


class Decoder:
    """The process. One picture at a time; `prepare` may be called from any thread."""

    def __init__(self, max_pixels: int, seconds: float) -> None:
        self._max_pixels, self._seconds = max_pixels, seconds
        self._lock = threading.Lock()
        self._start()

    def prepare(self, file: bytes, transform: ImageTransform) -> Prepared:
        """A picture's file decoded and transformed.

        Raises ValueError for what cannot be read, or not within the limits of time and memory.
        """
        with self._lock:
            if self._process.poll() is not None:
                self._restart()
            process = self._process
            assert process.stdin is not None and process.stdout is not None
            try:
                with _deadline(process, START_SECONDS):
                    _read(process.stdout)
                with _deadline(process, self._seconds):
                    _write(process.stdin, json.dumps(self._asked(transform)).encode(), file)
                    head, shown, values = (_read(process.stdout) for _ in range(3))
            except (EOFError, BrokenPipeError) as error:
                self._restart()
                raise ValueError(
                    f"the picture cannot be decoded within {self._seconds:g} seconds and the memory"
                    " set aside for it"
                ) from error
        about = json.loads(head)
        if "error" in about:
            raise ValueError(about["error"])
        image = np.frombuffer(values, dtype=np.float32).reshape(about["shape"]).copy()
        return Prepared(torch.from_numpy(image), shown, tuple(about["size"]))

    def _asked(self, transform: ImageTransform) -> dict[str, object]:
        settings = {"size": transform.size, "mean": transform.mean, "std": transform.std}
        return {"transform": settings, "max_pixels": self._max_pixels}

    def _restart(self) -> None:
        self._end()
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-W", "ignore", "-c", f"from {__name__} import work; work()"]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "OMP_NUM_THREADS": "1",
        }
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the server, whose end closes our input
        )
        self._end = weakref.finalize(self, _end, self._process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(BrokenPipeError):  # something was left to be written
                pipe.close()


def work() -> None:
    """The process: pictures from standard input, tensors to standard output, until it is closed."""
    source, target = sys.stdin.buffer, sys.stdout.buffer
    Image.init()
    # What is imported at the first picture may want memory, or files, beyond what is allowed then.
    prepare(Image.new("RGB", (8, 8)), ImageTransform(8))
    _bound_memory()
    while True:
        _write(target, b"ready")
        try:
            asked, file = json.loads(_read(source)), _read(source)
        except EOFError:
            return
        try:
            settings = asked["transform"]
            size = settings.pop("size")
            transform = ImageTransform(size if isinstance(size, int) else tuple(size), **settings)
            limit = asked["max_pixels"]
            picture = open_picture(io.BytesIO(file), name="the file", max_pixels=limit)
            ready = prepare(picture, transform)
        except (ValueError, TypeError) as error:
            _write(target, json.dumps({"error": str(error)}).encode(), b"", b"")
        except MemoryError:
            return
        else:
            about = {"shape": list(ready.image.shape), "size": ready.size}
            _write(target, json.dumps(about).encode(), ready.shown, ready.image.numpy().tobytes())


def _bound_memory() -> None:
    """At most MEMORY more than now, where the system counts it; no files, no core dumps."""
    if sys.platform != "linux":
        return
    import resource

    with open("/proc/self/status") as status:
        used = next(int(line.split()[1]) for line in status if line.startswith("VmData:"))
    for kind, most in (
        (resource.RLIMIT_DATA, 1024 * used + MEMORY),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, bound))


@contextmanager
def _deadline(process: subprocess.Popen[bytes], seconds: float) -> Iterator[None]:
    """Kills the process when the block takes longer."""
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _write(file: IO[bytes], *parts: bytes) -> None:
    for part in parts:
        file.write(struct.pack("<Q", len(part)))
        file.write(part)
    file.flush()


def _read(file: IO[bytes]) -> bytes:
    """One part. Raises EOFError where the other side is gone."""
    head = file.read(8)
    size = struct.unpack("<Q", head)[0] if len(head) == 8 else 0
    part = file.read(size)
    if len(head) < 8 or len(part) < size:
        raise EOFError
    return part
