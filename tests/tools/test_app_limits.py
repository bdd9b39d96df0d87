"""The page under clients that keep it waiting, send too much, or send pictures made to hurt."""

import asyncio
import io
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

pytest.importorskip("uvicorn", reason="needs the extra app")

from test_app import ask, encoded, noise, request, running

from gem_lite.pictures.transform import ImageTransform
from gem_lite.tools.app import connections
from gem_lite.tools.app.decoding import MEMORY, Decoder
from gem_lite.tools.app.engine import Engine
from gem_lite.tools.app.limits import Full, Gone, Limits, Turns, visitor

LIMITS = Limits(
    upload_bytes=20_000_000,
    head_seconds=1,
    idle_seconds=1,
    silence_seconds=2,
    body_seconds=4,
    answer_seconds=1,
    connections=30,
    connections_each=5,
    held_bytes=30_000_000,
)
HEAD = "POST /api/maps HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def address(weights: Path) -> Iterator[str]:
    with running(Engine("small", str(weights), limits=LIMITS)) as address:
        assert ask(address, request())[0] == 200  # the decoder has started
        yield address


def connected(address: str, data: str = "", source: str = "127.0.0.1") -> socket.socket:
    host, _, port = address.partition(":")
    client = socket.create_connection((host, int(port)), timeout=20, source_address=(source, 0))
    client.sendall(data.encode())
    return client


def rest(client: socket.socket) -> bytes:
    """Everything until the server closes the connection."""
    parts = []
    try:
        while part := client.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    client.close()
    return b"".join(parts)


def seconds(address: str) -> float:
    """How long somebody else waits for maps."""
    start = time.perf_counter()
    assert ask(address, request())[0] == 200
    return time.perf_counter() - start


# ---- who keeps it waiting; each of these returns when the server has ended the connection


def head_without_end(address: str, data: str) -> None:
    client, start = connected(address, data), time.perf_counter()
    assert rest(client) == b""
    assert 0.5 < time.perf_counter() - start < 8


def second_head_without_end(address: str) -> None:
    client = connected(address, "GET /icon.svg HTTP/1.1\r\nHost: localhost\r\n\r\nGET /icon")
    client.sendall(b".")
    assert rest(client).endswith(b"</svg>\n")


def byte_of_a_body(address: str) -> None:
    client = connected(address, HEAD + "Content-Length: 9000\r\n\r\n{")
    assert rest(client).startswith(b"HTTP/1.1 408")


def body_byte_by_byte(address: str) -> None:
    """It is never silent, yet has to end."""
    client, start = connected(address, HEAD + "Content-Length: 9000\r\n\r\n"), time.perf_counter()
    client.settimeout(0.2)
    received = b""
    while not received and time.perf_counter() - start < 20:
        try:
            client.sendall(b" ")
            received = client.recv(100)
        except TimeoutError:
            pass
    client.close()
    assert received.startswith(b"HTTP/1.1 408") and time.perf_counter() - start < 10


def test_who_keeps_it_waiting(address: str) -> None:
    """None of them has a place in the line, and each is told, or shown, that its time is up."""
    heads = ["", "GET / HT", "GET / HTTP/1.1\r\nHost: localhost\r\nX: "]
    with ThreadPoolExecutor(25) as pool:
        clients = [pool.submit(head_without_end, address, data) for data in heads]
        clients += [pool.submit(second_head_without_end, address)]
        clients += [pool.submit(body_byte_by_byte, address)]
        clients += [pool.submit(byte_of_a_body, address) for _ in range(20)]
        assert seconds(address) < 2
        for client in clients:
            client.result()


def test_idle_connections_give_way(address: str) -> None:
    clients = [connected(address) for _ in range(100)]
    sending = [connected(address, HEAD + "Content-Length: 9\r\n\r\n{") for _ in range(40)]
    assert seconds(address) < 2
    for client in (*clients, *sending):
        client.close()


def test_an_address_has_its_share(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections of one address close its own oldest, and nobody else's."""
    monkeypatch.setattr(connections, "visitor", str)
    other = connected(address, source="127.0.0.3")
    clients = [connected(address, source="127.0.0.2") for _ in range(12)]
    time.sleep(0.3)
    for client in (other, *clients):
        client.settimeout(0.05)
    still = []
    for client in (other, *clients):
        try:
            still.append(client.recv(1) != b"")
        except TimeoutError:
            still.append(True)
        except ConnectionResetError:
            still.append(False)
        client.close()
    assert still == [True] + 7 * [False] + 5 * [True]


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", ""), ("127.9.9.9", ""), ("::1", ""), ("::ffff:127.0.0.1", ""), (None, ""),
        ("192.0.2.7", "192.0.2.7"), ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
    ],
)  # fmt: skip
def test_addresses(host: str | None, expected: str) -> None:
    assert visitor(host) == expected


def test_who_does_not_read(address: str) -> None:
    """Many answers asked for and none taken: the connection is closed after a second.

    On a busy machine later: before the last of them the test is patient.
    """
    for patience in (1.5, 4, 15):
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        host, _, port = address.partition(":")
        client.connect((host, int(port)))
        client.sendall(400 * b"GET /api/about HTTP/1.1\r\nHost: localhost\r\n\r\n")
        time.sleep(patience)
        if rest(client).count(b"HTTP/1.1 200") < 400:
            return
    pytest.fail("the connection stayed open")


def test_a_large_json(address: str) -> None:
    """24 MB of brackets are never parsed, and somebody else's wait is short."""
    body = b'{"prompts": [' + 8_000_000 * b"[],"
    status: list[int] = []
    sender = threading.Thread(target=lambda: status.append(ask(address, body)[0]))
    start = time.perf_counter()
    sender.start()
    waits = [seconds(address) for _ in range(3)]
    sender.join()
    assert status == [400]
    assert max(waits) < 3 and time.perf_counter() - start < 10


def test_json_beside_a_picture_is_small(address: str) -> None:
    status, content, _ = ask(address, request(more=70_000 * "x"))
    assert status == 400 and "64000 bytes beside its picture" in content["error"]


def test_a_picture_elsewhere_is_none(address: str) -> None:
    """Only the picture at its place counts, whatever else is called so."""
    body = request(picture=None, example="demo.png", settings={"picture": encoded(noise(1))})
    assert ask(address, body)[0] == 200
    assert ask(address, request(picture="\0picture"))[0] == 422


def test_bodies_in_memory_are_counted(address: str) -> None:
    """Large ones that arrive at the same time are bounded altogether; small ones go on."""
    clients = []
    for _ in range(4):
        clients.append(connected(address, HEAD + "Content-Length: 10000000\r\n\r\n"))
        clients[-1].sendall(9_000_000 * b" ")
    time.sleep(0.5)
    assert seconds(address) < 2
    answers = [rest(client)[:12] for client in clients]
    assert answers.count(b"HTTP/1.1 503") == 1 and answers.count(b"HTTP/1.1 408") == 3


def test_only_one_address_takes_a_body(address: str) -> None:
    for head in ("Content-Length: 9000000", "Transfer-Encoding: chunked"):
        client = connected(address, f"GET / HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\n")
        assert rest(client).startswith(b"HTTP/1.1 413")


# ---- who is next


def test_addresses_take_turns() -> None:
    order: list[str] = []

    async def visit(turns: Turns, address: str, name: str) -> None:
        async with turns.turn(address, asyncio.Event().wait):  # type: ignore[arg-type]
            order.append(name)
            await asyncio.sleep(0.01)

    async def everybody() -> None:
        turns = Turns(Limits(waiting=5, waiting_each=3))
        visits = [("a", "a1"), ("a", "a2"), ("a", "a3"), ("a", "a4"), ("b", "b1"), ("b", "b2")]
        tasks = []
        for address, name in visits:
            tasks.append(asyncio.ensure_future(visit(turns, address, name)))
            await asyncio.sleep(0)
        for address in ("a", "c"):  # an address's line is full, and the whole
            with pytest.raises(Full):
                await visit(turns, address, "none")
        await asyncio.gather(*tasks)
        await visit(turns, "a", "a5")

    asyncio.run(everybody())
    assert order == ["a1", "a2", "b1", "a3", "b2", "a4", "a5"]


def test_who_hangs_up_leaves_the_line() -> None:
    async def visits() -> None:
        turns, gone = Turns(Limits(waiting=1)), asyncio.Event()

        async def hold(hang_up: Any) -> None:
            async with turns.turn("", hang_up):
                await asyncio.sleep(0.05)

        first = asyncio.ensure_future(hold(asyncio.Event().wait))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(hold(gone.wait))
        await asyncio.sleep(0)
        gone.set()
        with pytest.raises(Gone):
            await second
        third = asyncio.ensure_future(hold(asyncio.Event().wait))  # the place is free again
        await asyncio.sleep(0)
        third.cancel()
        fourth = asyncio.gather(third, return_exceptions=True)
        await asyncio.gather(first, fourth)
        await asyncio.wait_for(hold(asyncio.Event().wait), 1)

    asyncio.run(visits())


# ---- pictures


DECODES = """
import io, sys
from PIL import Image
from gem_lite.tools.app import decoding
known = set()
decoding._bound_memory = lambda: known.update(sys.modules)
file = io.BytesIO()
Image.new("RGB", (40, 30), "red").save(file, "JPEG")
asked = decoding.json.dumps({"transform": {"size": 16}, "max_pixels": 10**6}).encode()
sys.stdin, sys.stdout = (io.TextIOWrapper(io.BytesIO()) for _ in range(2))
decoding._write(sys.stdin.buffer, asked, file.getvalue())
sys.stdin.buffer.seek(0)
decoding.work()
late = set(sys.modules) - known
assert known and b'"size"' in sys.stdout.buffer.getvalue() and not late, late
"""


def test_nothing_is_imported_within_the_bounds() -> None:
    """Imports may want files and memory, which a picture's decoder does not get."""
    command = [sys.executable, "-c", DECODES]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def blank(side: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side)).save(file, "PNG")
    return file.getvalue()


def test_decoding_ends() -> None:
    """Too large, too slow, or dead: one sentence, and the next picture is decoded."""
    transform = ImageTransform((32, 32))
    decoder = Decoder(10**10, seconds=60)
    file = io.BytesIO()
    noise(0).save(file, "PNG")
    small, expected = file.getvalue(), transform(noise(0))
    ready = decoder.prepare(small, transform)
    assert ready.image.equal(expected) and ready.size == (40, 60)
    head = b"IHDR" + struct.pack(">II", 40_000, 40_000) + small[24:29]  # sides, then their check
    large = small[:12] + head + struct.pack(">I", zlib.crc32(head)) + small[33:]
    first = decoder._process
    with pytest.raises(ValueError, match="too large"):
        decoder.prepare(large, transform)
    assert first.poll() is None
    if sys.platform == "linux":
        import resource

        soft, hard = resource.prlimit(first.pid, resource.RLIMIT_DATA)
        assert MEMORY < soft < 5 * MEMORY
        resource.prlimit(first.pid, resource.RLIMIT_DATA, (1 << 20, hard))
        with pytest.raises(ValueError, match="more memory than there is"):
            decoder.prepare(blank(3000), transform)
        resource.prlimit(first.pid, resource.RLIMIT_DATA, (soft, hard))
        assert decoder.prepare(small, transform).image.equal(expected)
    decoder._process.kill()
    decoder._process.wait()
    assert decoder.prepare(small, transform).image.equal(expected)
    slow, decoder._seconds = decoder._process, 0.001
    with pytest.raises(ValueError, match=r"within 0.001 seconds"):
        decoder.prepare(blank(3000), transform)
    process = decoder._process
    assert slow.poll() is not None and process.poll() is None  # for the next picture
    del decoder
    assert process.wait(10) is not None  # nothing is left behind
