"""What commands say: results on standard output, everything else in lines on standard error."""

import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TextIO

LONGEST = 400  # letters of a message, whatever file name or value it quotes
_rewritten = [0]  # width of the line of progress that stands on the terminal


def say(text: str) -> None:
    """A line on standard output, at once; what its encoding lacks becomes a question mark."""
    wipe()
    print(_encodable(text, sys.stdout), flush=True)


def say_json(value: Mapping[str, Any] | list[Any]) -> None:
    """A value on standard output as one line of JSON, in ASCII."""
    wipe()
    print(json.dumps(value), flush=True)


def tell(text: str) -> None:
    """A line for people on standard error, after the program's name."""
    wipe()
    print(_encodable(f"gem-lite: {one_line(text)}", sys.stderr), file=sys.stderr, flush=True)


def rewrite(text: str) -> None:
    """Show a line on a terminal until something else is said; it never becomes output."""
    wipe()
    _rewritten[0] = len(text[:78])
    sys.stderr.write(_encodable(text[:78], sys.stderr))
    sys.stderr.flush()


def wipe() -> None:
    """Take away the line that `rewrite` left."""
    if _rewritten[0]:
        sys.stderr.write("\r" + " " * _rewritten[0] + "\r")
        sys.stderr.flush()
        _rewritten[0] = 0


@contextmanager
def telling(name: str) -> Iterator[None]:
    """What a module writes to its log, from level INFO on, becomes a line for people meanwhile."""
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
    """A message as one line without control characters, its middle left out where it is long."""
    joined = " ".join(str(text).split())
    if len(joined) > LONGEST:
        joined = f"{joined[: LONGEST // 2]} ... {joined[-LONGEST // 2 :]}"
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in joined
    )


def _encodable(text: str, stream: TextIO) -> str:
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, errors="replace").decode(encoding)
