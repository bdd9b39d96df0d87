"""A line that says how far an evaluation is and how long it will take."""

import sys
import time
from typing import TextIO

QUIET = 30.0  # seconds between lines where the output is no terminal


class Progress:
    """Call it with the numbers of pictures done and left; rewrites one line on a terminal."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.began: tuple[float, int] | None = None
        self.shown = -QUIET

    def __call__(self, done: int, left: int) -> None:
        """Show it, at most ten times a second."""
        now = time.monotonic()
        if self.began is None:
            self.began = (now, done)
        terminal = self.stream.isatty()
        if left and now - self.shown < (0.1 if terminal else QUIET):
            return
        self.shown = now
        seconds, fresh = now - self.began[0], done - self.began[1]
        rate = fresh / seconds if fresh and seconds > 0 else 0.0
        text = f"{done} of {done + left} pictures"
        if rate:
            text += f", {rate:.2f} a second, {duration(left / rate)} left"
        self.stream.write(f"\r\x1b[K{text}" if terminal else f"{text}\n")
        self.stream.flush()

    def close(self) -> None:
        """End the line."""
        if self.stream.isatty():
            self.stream.write("\n")


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: "1:02:03", "2:03"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
