"""The running page under sequences of requests that hypothesis makes up, good and bad.

python tests/tools/test_app_stateful.py 2000     # a longer run, by the number of sequences
"""

import json
import socket
import sys
import time
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

pytest.importorskip("uvicorn", reason="needs the extra app")

from test_app import ask, encoded, noise, running

from gem_lite.method.methods import methods
from gem_lite.tools.app.engine import Engine
from gem_lite.tools.app.limits import Limits
from gem_lite.tools.app.server import FILES

STEPS = 12  # of a sequence
LIMITS = Limits(
    upload_bytes=60_000,
    pixels=40_000,
    prompts=4,
    letters=30,
    connections=20,
    waiting=3,
    head_seconds=1,
    silence_seconds=1,
    body_seconds=3,
    held_bytes=300_000,
)
ANSWERS = {200, 400, 403, 404, 405, 408, 413, 415, 422, 503}
PICTURES = [encoded(noise(0)), encoded(noise(1, 5, 90), "JPEG"), encoded(noise(2), "GIF"), "AAAA"]

words = st.lists(st.text(max_size=40), max_size=6)
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
fields = st.sampled_from(
    ["model", "picture", "example", "prompts", "background", "methods", "settings", "more"]
)
right = st.fixed_dictionaries(
    {
        "model": st.just("small random"),
        "picture": st.sampled_from(PICTURES[:3]),
        "prompts": st.lists(st.text("abc de", min_size=1, max_size=9), min_size=1, max_size=4),
        "background": st.lists(st.sampled_from(["floor", "sky"]), max_size=2),
        "methods": st.lists(
            st.sampled_from([each.name for each in methods()]), min_size=1, max_size=2
        ),
        "settings": st.fixed_dictionaries(
            {},
            optional={
                "depth": st.integers(1, 4),
                "iterations": st.integers(0, 8),
                "temperature": st.just("adaptive") | st.floats(0.1, 1000),
            },
        ),
    }
)


class Page(RuleBasedStateMachine):
    """Whatever came before: every answer is one of ours, and the next visitor is served."""

    address: ClassVar[str] = ""
    requests: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.open: list[socket.socket] = []

    def checked(self, *args: Any, **headers: str) -> tuple[int, Any]:
        for _ in range(100):  # the line may still hold those who hung up
            type(self).requests += 1
            status, content, sent = ask(self.address, *args, **headers)
            if status != 503:
                break
            time.sleep(0.1)
        assert status in ANSWERS - {503}
        assert "default-src 'none'" in sent["content-security-policy"]
        assert (status == 200) == (set(content) != {"error"}), content
        return status, content

    @rule(body=right)
    def asks(self, body: dict[str, Any]) -> None:
        status, content = self.checked(body)
        if status == 200:
            assert [each["name"] for each in content["methods"]] == list(
                dict.fromkeys(body["methods"])
            )
            assert content["prompts"]
        else:
            assert status == 422, content  # blank words, or a method that needs more blocks

    @rule(body=right, changes=st.dictionaries(fields, anything | words, min_size=1, max_size=3))
    def asks_wrongly(self, body: dict[str, Any], changes: dict[str, Any]) -> None:
        status, _ = self.checked(body | changes)
        assert status in (200, 400, 422)

    @rule(body=right, place=st.integers(0, 400), byte=st.binary(max_size=3), end=st.booleans())
    def asks_with_damage(self, body: dict[str, Any], place: int, byte: bytes, end: bool) -> None:
        data = json.dumps({**body, "picture": PICTURES[3]}).encode()
        data = data[:place] + byte + (b"" if end else data[place + len(byte) :])
        status, _ = self.checked(data)
        assert status in (200, 400, 422)

    @rule(
        method=st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS", "X"]),
        path=st.sampled_from([*FILES, "/api/about", "/api/maps", "/x", "/%2e%2e/page.js", "//"]),
        header=st.sampled_from(["Origin", "Host", "Sec-Fetch-Site", "Content-Type", "Connection"]),
        value=st.sampled_from(["null", "", "evil.example", "localhost", "same-origin", "upgrade"]),
        body=st.binary(max_size=80),
    )
    def sends_a_head(self, method: str, path: str, header: str, value: str, body: bytes) -> None:
        host = "" if header == "Host" else "Host: localhost\r\n"
        head = f"{method} {path} HTTP/1.1\r\n{host}{header}: {value}\r\nConnection: close\r\n"
        if body:
            head += f"Content-Length: {len(body)}\r\n"
        answer = self.sent(head.encode() + b"\r\n" + body)
        assert int(answer.split(b" ", 2)[1]) in ANSWERS

    @rule(data=st.binary(min_size=1, max_size=200))
    def sends_noise(self, data: bytes) -> None:
        answer = self.sent(data + b"\r\n\r\n")
        assert not answer or answer.startswith(b"HTTP/1.1 4")

    def sent(self, data: bytes) -> bytes:
        type(self).requests += 1
        client = self.connected()
        client.sendall(data)
        answer = b""
        try:
            while part := client.recv(1 << 16):
                answer += part
        except ConnectionResetError:
            pass
        client.close()
        return answer

    def connected(self) -> socket.socket:
        host, _, port = self.address.partition(":")
        return socket.create_connection((host, int(port)), timeout=30)

    @rule(
        count=st.integers(1, 15),
        data=st.sampled_from(
            [
                "",
                "GET / HT",
                "POST /api/maps HTTP/1.1\r\nHost: localhost\r\n"
                "Content-Type: application/json\r\nContent-Length: 70000\r\n\r\n{",
                "GET /api/about HTTP/1.1\r\nHost: localhost\r\n\r\n",
            ]
        ),
    )
    def stays_and_waits(self, count: int, data: str) -> None:
        for _ in range(count):
            client = self.connected()
            client.sendall(data.encode())
            self.open.append(client)

    @rule(body=right, count=st.integers(1, 6))
    def asks_and_hangs_up(self, body: dict[str, Any], count: int) -> None:
        data = json.dumps(body).encode()
        head = "POST /api/maps HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        for _ in range(count):
            client = self.connected()
            client.sendall(f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)
            client.close()

    @rule()
    def leaves(self) -> None:
        while self.open:
            self.open.pop().close()

    @invariant()
    def the_next_one_is_served(self) -> None:
        start = time.perf_counter()
        assert ask(self.address, None, "GET", "/api/about")[0] == 200
        assert time.perf_counter() - start < 10

    def teardown(self) -> None:
        self.leaves()
        status, _ = self.checked(
            {"model": "small random", "example": "demo.png", "prompts": ["cat"]}
        )
        assert status == 200


def test_sequences_of_requests(weights: Any, examples: int = 12) -> None:
    with running(Engine("small", str(weights), limits=LIMITS)) as address:
        Page.address = address
        run_state_machine_as_test(
            Page,
            settings=settings(
                max_examples=examples,
                stateful_step_count=STEPS,
                deadline=None,
                derandomize=examples < 100,
                suppress_health_check=list(HealthCheck),
            ),
        )


if __name__ == "__main__":
    import tempfile
    from pathlib import Path

    from small import small_model

    import gem_lite as gem

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.safetensors"
        gem.save(small_model(), path)
        test_sequences_of_requests(path, int(sys.argv[1]))
        print(f"{sys.argv[1]} sequences of up to {STEPS} steps, {Page.requests} requests")
