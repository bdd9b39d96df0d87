"""What a visitor of the page may use: sizes, times, and places in the queue, each with a bound."""

import asyncio
import ipaddress
import math
import sys
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

Receive = Callable[[], Awaitable[Any]]

DRAIN_SECONDS = 2
SHARED = ""  # the address of this machine's own programs, which are one visitor or many


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a request, an address and all of them together may ask for."""

    upload_bytes: int = 20_000_000
    pixels: int = 40_000_000
    prompts: int = 16
    letters: int = 200  # of one prompt
    decode_seconds: float = 10  # for a picture to become a tensor, in a process of its own
    # Requests that wait for the one at work; more are refused.
    waiting: int = 64
    waiting_each: int = 4  # of one address
    # Open connections, where the system lets a process have as many. Beyond them the one that has
    # been silent longest is closed for a new one.
    connections: int = 1500
    connections_each: int = 24  # of one address
    # Times of the transport.
    head_seconds: float = 10  # from a connection, or a request's first byte, to the end of its head
    idle_seconds: float = 5  # between two requests of a connection
    silence_seconds: float = 10  # between two pieces of a body
    body_seconds: float = 120  # for a whole body
    slowest: float = 8_000  # bytes a second of a body, after its first `silence_seconds`
    answer_seconds: float = 30  # for a visitor to take what is sent
    # Bytes of bodies in memory, from their arrival to their answer.
    held_bytes: int = 200_000_000
    held_bytes_each: int = 60_000_000  # of one address


class Refusal(Exception):
    """A request that gets no answer; `str()` tells the visitor why, `status` is HTTP's."""

    status = 400


class Full(Refusal):
    """No place is left."""

    status = 503


class Unfinished(Refusal):
    """A body is refused on its way: too many are under way."""

    status = 503


class TooLong(Unfinished):
    """A body has more bytes than it may have."""

    status = 413


class TooSlow(Refusal):
    """A body takes too long to arrive."""

    status = 408


class Gone(Exception):
    """The visitor hung up."""


def file_handles() -> float:
    """How many files and connections the system lets this process have open."""
    if sys.platform == "win32":
        return math.inf
    import resource

    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return math.inf if soft == resource.RLIM_INFINITY else soft


def visitor(host: str | None) -> str:
    """The address that a limit counts: SHARED on this machine, the /64 network of IPv6."""
    try:
        address = ipaddress.ip_address(host or "")
    except ValueError:  # a socket of this machine's file system
        return SHARED
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            network = ipaddress.IPv6Interface((address, 64)).network
            return SHARED if address.is_loopback else str(network)
        address = address.ipv4_mapped
    return SHARED if address.is_loopback else str(address)


class Turns:
    """One visitor at a time. Addresses take turns; within an address the first comes first.

    For one event loop. An address with many requests delays another by one request at most.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._busy = False
        self._lines: dict[str, deque[asyncio.Future[None]]] = {}  # the next address first

    @asynccontextmanager
    async def turn(
        self, address: str, hang_up: Callable[[], Awaitable[None]]
    ) -> AsyncIterator[None]:
        """Wait for a turn, and hold it inside the block.

        hang_up: returns when the visitor is gone, who then leaves the line at once. Raises Full,
        Gone.
        """
        if self._busy:
            await self._wait(address, hang_up)
        self._busy = True
        try:
            yield
        finally:
            self._next()

    async def _wait(self, address: str, hang_up: Callable[[], Awaitable[None]]) -> None:
        line = self._lines.get(address, deque())
        if sum(map(len, self._lines.values())) >= self._limits.waiting:
            raise Full("too many people are waiting; try again in a moment")
        if address != SHARED and len(line) >= self._limits.waiting_each:
            raise Full("too many of your requests are waiting; try again in a moment")
        place = asyncio.get_running_loop().create_future()
        self._lines.setdefault(address, line).append(place)
        leave = asyncio.ensure_future(hang_up())
        try:
            await asyncio.wait({place, leave}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            if place.done():
                self._next()
            raise
        finally:
            leave.cancel()
            if not place.done():
                line.remove(place)
                if not line:
                    del self._lines[address]
        if not place.done():
            raise Gone

    def _next(self) -> None:
        self._busy = bool(self._lines)
        if self._lines:
            address = next(iter(self._lines))
            line = self._lines.pop(address)
            line.popleft().set_result(None)
            if line:
                self._lines[address] = line


class Bodies:
    """Bodies of requests in memory: how large, how long under way, how many bytes altogether."""

    SMALL = 64_000  # bytes that every request has beside what is counted

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held: dict[str, int] = {}

    @asynccontextmanager
    async def read(self, receive: Receive, address: str, longest: int) -> AsyncIterator[bytearray]:
        """A body, counted until the block ends.

        Raises TooLong for more than `longest` bytes, Unfinished, TooSlow, Gone.
        """
        body = bytearray()
        counted = 0
        try:
            async for part in self._parts(receive):
                body += part
                if len(body) > longest:
                    raise TooLong(f"the request has more than {longest / 1e6:g} MB")
                if len(body) > self.SMALL:
                    self._count(address, len(body) - counted)
                    counted = len(body)
            yield body
        finally:
            self._held[address] = self._held.get(address, 0) - counted
            if not self._held[address]:
                del self._held[address]

    async def _parts(self, receive: Receive) -> AsyncIterator[bytes]:
        limits, size = self._limits, 0
        start = asyncio.get_running_loop().time()
        more = True
        while more:
            spent = asyncio.get_running_loop().time() - start
            left = min(limits.silence_seconds + size / limits.slowest, limits.body_seconds) - spent
            try:
                message = await asyncio.wait_for(receive(), min(left, limits.silence_seconds))
            except asyncio.TimeoutError as error:  # Python 3.10 has one of its own
                raise TooSlow("the picture took too long to arrive") from error
            if message["type"] == "http.disconnect":
                raise Gone
            part = message.get("body", b"")
            size += len(part)
            yield part
            more = bool(message.get("more_body", False))

    def _count(self, address: str, more: int) -> None:
        limits, own = self._limits, self._held.get(address, 0) + more
        everybody = sum(self._held.values()) + more
        if everybody > limits.held_bytes or (address != SHARED and own > limits.held_bytes_each):
            raise Unfinished("too many pictures are under way; try again in a moment")
        self._held[address] = own


async def until_gone(receive: Receive) -> None:
    """Return when the visitor of a request whose body has been read hangs up."""
    while (await receive())["type"] != "http.disconnect":
        pass


async def drain(receive: Receive) -> None:
    """Read the rest of a refused body, for a moment and keeping nothing of it.

    A browser that is still sending when the connection closes reports a broken network instead of
    the refusal's text.
    """

    async def rest() -> None:
        while (await receive()).get("more_body", False):
            pass

    with suppress(asyncio.TimeoutError):
        await asyncio.wait_for(rest(), DRAIN_SECONDS)
