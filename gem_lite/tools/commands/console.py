"""What commands say: results on standard output, everything else in lines on standard error."""

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

FIRST_LINE = 10.0  # seconds before the first plain line of progress, and between two
FIRST_STEP = 2.0  # the same, of steps of unlike length


def say(text: str) -> None:
    """A line on standard output, at once; what its encoding lacks becomes a question mark."""
    print(_encodable(text, sys.stdout), flush=True)


def say_json(value: Mapping[str, Any] | list[Any]) -> None:
    """A value on standard output as one line of JSON, in ASCII."""
    print(json.dumps(value), flush=True)


def tell(text: str) -> None:
    """A line for people on standard error, after the program's name."""
    print(_encodable(f"gem-lite: {one_line(text)}", sys.stderr), file=sys.stderr, flush=True)


@contextmanager
def telling(name: str) -> Iterator[None]:
    """What a module writes to its log, from level INFO on, is told meanwhile."""
    handler = logging.Handler()
    handler.emit = lambda record: tell(record.getMessage())  # type: ignore[method-assign]
    logger, level = logging.getLogger(name), logging.getLogger(name).level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)


def one_line(text: object) -> str:
    """A message as one line without control characters, whatever file name it may quote."""
    joined = " ".join(str(text).split())
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in joined
    )


class Progress:
    """How far a loop is: a line rewritten on a terminal, else a plain line every ten seconds.

    even: all take about as long, so the time left can be told; False = a few unlike steps, each
    of which gets its line when two seconds have passed.
    """

    def __init__(self, total: int, what: str, *, even: bool = True) -> None:
        self._total, self._what, self._even = total, what, even
        self._start = self._last = time.monotonic()
        self._terminal = sys.stderr.isatty()
        self._width = 0

    def show(self, done: int, name: str) -> None:
        """`done` of the total are finished and `name` is at work."""
        now = time.monotonic()
        pause = FIRST_LINE if self._even else FIRST_STEP
        if self._terminal:
            pause = 0.1 if done and self._even else 0.0
        if self._total < 2 or now - self._last < pause:
            return
        self._last = now
        text = f"{done}/{self._total} {self._what}"
        if done and self._even:
            text += f", {_duration((now - self._start) / done * (self._total - done))} left"
        text = one_line(f"{text}: {name}")
        if not self._terminal:
            tell(text)
            return
        self.clear()
        self._width = len(text[:78])
        sys.stderr.write(_encodable(text[:78], sys.stderr))
        sys.stderr.flush()

    def clear(self) -> None:
        """Wipe the rewritten line, so that something else can be written."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            self._width = 0


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _encodable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, errors="replace").decode(encoding)
