"""Connections with limits: Uvicorn's protocol for HTTP, which closes whoever keeps it waiting.

A connection is silent (no request), sending (a body under way), or at work. Silent and sending ones
give way to new ones when there are too many, the longest waiting first; those at work never do.
"""

from typing import ClassVar

from .limits import Limits, file_handles, visitor

OTHER_FILES = 100  # weights, pipes, the page's own
ACCEPTED = 256  # connections taken at once, which must not push each other out before they speak


def protocol(limits: Limits) -> type:
    """A class for `uvicorn.Config(http=...)`, with a count of its own."""
    import asyncio

    from uvicorn.protocols.http.h11_impl import H11Protocol

    most = int(min(limits.connections, max(10, file_handles() - OTHER_FILES)))

    class Connection(H11Protocol):
        """One connection; `since` is when it last began to wait for its visitor."""

        opened: ClassVar[dict["Connection", None]] = {}  # all of them, the oldest first
        address = ""
        since = 0.0
        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self.address = visitor(self.client[0] if self.client else None)
            self.since = self.loop.time()
            same = [other for other in self.opened if other.address == self.address]
            each = limits.connections_each if self.address else most
            full = len(same) >= each and not _close_longest(same)
            full = full or (len(self.opened) >= most and not _close_longest(list(self.opened)))
            if full:
                transport.abort()
                return
            self.opened[self] = None
            self._close_after(limits.head_seconds)

        def connection_lost(self, exc: Exception | None) -> None:
            self.opened.pop(self, None)
            self._close_after(None)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            if self._silent() and self.timer is None:  # the first byte of another request
                self._close_after(limits.head_seconds)
            super().data_received(data)
            if not self._silent():
                self._close_after(None)

        def on_response_complete(self) -> None:
            self.since = self.loop.time()
            super().on_response_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._close_after(limits.answer_seconds)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._close_after(limits.head_seconds if self._silent() else None)

        def rank(self) -> tuple[int, float]:
            """Who goes first: silent before sending before at work, then the longest waiting."""
            work = 0 if self._silent() else 1 if self.cycle.more_body else 2
            return work, self.since

        def _silent(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _close_after(self, seconds: float | None) -> None:
            if self.timer is not None:
                self.timer.cancel()
            self.timer = None
            if seconds is not None:
                self.timer = self.loop.call_later(seconds, self.transport.abort)

    def _close_longest(connections: list[Connection]) -> bool:
        """Close the one that gives way first; False where all of them are at work."""
        first = min(connections, key=Connection.rank)
        if first.rank()[0] == 2:
            return False
        Connection.opened.pop(first)
        first.transport.abort()
        return True

    return Connection
