"""How far a long run is: one line for every command, so that all of them say it alike."""

import sys
import time

from .commands.console import one_line, rewrite, tell, wipe

FIRST_LINE = 10.0  # seconds before the first plain line of progress, and between two
FIRST_STEP = 2.0  # the same, of steps of unlike length


class Progress:
    """A line rewritten on a terminal, else a plain line every ten seconds.

    even: all take about as long, so the rate and the time left can be told; False = a few unlike
    steps, each of which gets its line when two seconds have passed.
    """

    def __init__(self, total: int, what: str, *, even: bool = True) -> None:
        self._total, self._what, self._even = total, what, even
        self._start = self._last = time.monotonic()
        self._before: float | None = None  # done when this run began, where it goes on from another

    def show(self, done: float, note: str = "") -> None:
        """`done` of the total are finished, perhaps a fraction; `note` says what is at work."""
        now = time.monotonic()
        self._before = done if self._before is None else self._before
        terminal = sys.stderr.isatty()
        pause = FIRST_LINE if self._even else FIRST_STEP
        if terminal:
            pause = 0.1 if done and self._even else 0.0
        if self._total < 2 or now - self._last < pause:
            return
        self._last = now
        text = f"{int(done)}/{self._total} {self._what}"
        fresh, seconds = done - self._before, now - self._start
        if fresh > 0 and seconds > 0 and self._even:
            rate = fresh / seconds
            text += f", {rate:.3g} a second" if rate >= 1 else ""
            text += f", {_duration((self._total - done) / rate)} left"
        text = one_line(f"{text}: {note}" if note else text)
        (rewrite if terminal else tell)(text)

    def clear(self) -> None:
        """Wipe the rewritten line, so that something else can be written."""
        wipe()


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
