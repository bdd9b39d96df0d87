"""Downloads against a local server that truncates, stalls, resets and lies."""

import errno
import hashlib
import http.client
import http.server
import io
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gem_lite.checkpoints import fetch
from gem_lite.checkpoints.fetch import FetchError, download
from gem_lite.checkpoints.files import exclusive

BODY = random.Random(1).randbytes(300_000)
OTHER = random.Random(2).randbytes(310_000)
HALF = 150_000


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Each request is answered by the next behaviour of the server's list, then by `honest`."""

    server: "Server"

    def do_GET(self) -> None:
        self.server.requests.append((self.path, dict(self.headers)))
        plan = self.server.plan
        (plan.pop(0) if plan else honest)(self)

    def log_message(self, *_: Any) -> None:
        pass

    def answer(
        self, status: int, body: bytes, *, length: int | None = None, **headers: str
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def reset(self) -> None:
        """Close with a TCP reset instead of an end of stream."""
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        # The handler's file objects keep the socket alive: close them too.
        self.wfile.close()
        self.rfile.close()
        self.connection.close()


Behaviour = Callable[[Handler], None]


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan: list[Behaviour] = []
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.release = threading.Event()  # ends every stall
        self.url = f"http://127.0.0.1:{self.server_port}/model.pt"

    def handle_error(self, *_: Any) -> None:
        pass

    @property
    def ranges(self) -> list[str | None]:
        return [headers.get("Range") for _, headers in self.requests]


def serve(body: bytes, etag: str | None = '"one"', date: str | None = None) -> Behaviour:
    """A correct server of this body, with Range and If-Range."""

    def behaviour(handler: Handler) -> None:
        headers: dict[str, Any] = {"ETag": etag} if etag else {}
        headers |= {"Last_Modified": date} if date else {}
        wanted = handler.headers.get("Range")
        if wanted and handler.headers.get("If-Range") in (etag, date):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                handler.answer(416, b"", Content_Range=f"bytes */{len(body)}")
            else:
                span = f"bytes {start}-{len(body) - 1}/{len(body)}"
                handler.answer(206, body[start:], Content_Range=span, **headers)
        else:
            handler.answer(200, body, **headers)

    return behaviour


honest = serve(BODY)


def cut(after: int, body: bytes = BODY, **headers: str) -> Behaviour:
    """Promises the whole body, sends the first bytes, closes."""
    chosen: dict[str, Any] = {**headers} or {"ETag": '"one"'}
    return lambda handler: handler.answer(200, body[:after], length=len(body), **chosen)


def stall(handler: Handler) -> None:
    handler.answer(200, BODY[:HALF], length=len(BODY), ETag='"one"')
    handler.server.release.wait(20)


def reset(handler: Handler) -> None:
    handler.answer(200, BODY[:HALF], length=len(BODY), ETag='"one"')
    time.sleep(0.1)  # a reset throws away what the client has not read yet
    handler.reset()


def status(code: int) -> Behaviour:
    return lambda handler: handler.answer(code, b"no")


def redirect(url: str) -> Behaviour:
    return lambda handler: handler.answer(302, b"", Location=url)


@pytest.fixture(autouse=True)
def plain_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(fetch, "_BACKOFF", 0.01)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.02,))
        thread.start()
        yield running
        running.release.set()
        running.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "model.pt"


def get(server: Server, target: Path, **options: Any) -> str:
    defaults: dict[str, Any] = {"sha256": sha256(BODY), "timeout": 5, "progress": False}
    return download(server.url, target, allow_http=True, **(defaults | options))


def assert_clean(target: Path, content: bytes | None) -> None:
    """The folder holds the finished file, or nothing at all."""
    names = [path.name for path in target.parent.iterdir() if path.suffix != ".lock"]
    assert names == ([target.name] if content else [])
    if content is not None:
        assert target.read_bytes() == content


# What a good connection gives


@pytest.mark.parametrize("expected", [None, sha256(BODY), sha256(BODY)[:8], sha256(BODY).upper()])
def test_whole_file(server: Server, target: Path, expected: str | None) -> None:
    assert get(server, target, sha256=expected) == sha256(BODY)
    assert_clean(target, BODY)
    assert server.ranges == [None]


def test_a_file_that_fits_is_not_fetched_again(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(BODY)
    assert get(server, target) == sha256(BODY)
    assert get(server, target, sha256=None) == sha256(BODY)
    assert server.requests == []


def test_a_file_that_does_not_fit_is_replaced(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(OTHER)
    get(server, target)
    assert_clean(target, BODY)


def test_no_content_length(server: Server, target: Path) -> None:
    def without_length(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        handler.wfile.write(BODY)

    server.plan = [without_length]
    assert get(server, target) == sha256(BODY)


def test_empty_file(server: Server, target: Path) -> None:
    server.plan = [serve(b"")] * 2
    with pytest.raises(FetchError, match="empty"):
        get(server, target, sha256=None, attempts=2)
    assert not target.exists()


# Breaks


@pytest.mark.parametrize("breaking", [cut(HALF), reset, stall], ids=["cut", "reset", "stall"])
def test_continues_after_a_break(server: Server, target: Path, breaking: Behaviour) -> None:
    server.plan = [breaking]
    assert get(server, target, timeout=1) == sha256(BODY)
    assert_clean(target, BODY)
    if breaking is not reset:  # what a reset throws away depends on the machine
        assert server.ranges == [None, f"bytes={HALF}-"]
        assert server.requests[1][1]["If-Range"] == '"one"'


def test_date_as_validator(server: Server, target: Path) -> None:
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    server.plan = [
        cut(HALF, Last_Modified=date, ETag='W/"weak"'),
        serve(BODY, etag='W/"weak"', date=date),
    ]
    assert get(server, target) == sha256(BODY)
    assert server.requests[1][1]["If-Range"] == date


def test_without_validator_it_begins_again(server: Server, target: Path) -> None:
    server.plan = [cut(HALF, X_Nothing="1")]
    assert get(server, target) == sha256(BODY)
    assert server.ranges == [None, None]


def test_range_ignored(server: Server, target: Path) -> None:
    server.plan = [cut(HALF), lambda handler: handler.answer(200, BODY)]
    assert get(server, target) == sha256(BODY)
    assert_clean(target, BODY)


def test_changed_file_is_not_spliced(server: Server, target: Path) -> None:
    server.plan = [cut(HALF), serve(OTHER, etag='"two"')]
    assert get(server, target, sha256=None) == sha256(OTHER)
    assert_clean(target, OTHER)


def test_changed_file_from_a_server_that_ignores_if_range(server: Server, target: Path) -> None:
    def careless(handler: Handler) -> None:
        span = f"bytes {HALF}-{len(OTHER) - 1}/{len(OTHER)}"
        handler.answer(206, OTHER[HALF:], Content_Range=span, ETag='"two"')

    server.plan = [cut(HALF), careless, serve(OTHER, etag='"two"')]
    assert get(server, target, sha256=None) == sha256(OTHER)
    assert server.ranges == [None, f"bytes={HALF}-", None]


def test_wrong_range_is_not_spliced(server: Server, target: Path) -> None:
    def shifted(handler: Handler) -> None:
        span = f"bytes {HALF - 1}-{len(BODY) - 1}/{len(BODY)}"
        handler.answer(206, BODY[HALF - 1 : -1], Content_Range=span, ETag='"one"')

    server.plan = [cut(HALF), shifted]
    assert get(server, target, sha256=None) == sha256(BODY)
    assert_clean(target, BODY)


def test_length_promised_too_large(server: Server, target: Path) -> None:
    """All bytes came, one more was promised: the server says 416 to the rest."""
    server.plan = [
        lambda handler: handler.answer(200, BODY, length=len(BODY) + 1, ETag='"one"'),
        honest,
    ]
    assert get(server, target) == sha256(BODY)
    assert_clean(target, BODY)
    assert server.ranges == [None, f"bytes={len(BODY)}-"]


def test_416_for_a_file_that_became_shorter(server: Server, target: Path) -> None:
    shorter = lambda handler: handler.answer(416, b"", Content_Range=f"bytes */{HALF - 1}")  # noqa: E731
    server.plan = [cut(HALF), shorter]
    assert get(server, target, attempts=2) == sha256(BODY)
    assert server.ranges == [None, f"bytes={HALF}-", None]


def test_length_promised_too_small(server: Server, target: Path) -> None:
    server.plan = [lambda handler: handler.answer(200, BODY, length=HALF)]
    with pytest.raises(FetchError, match=sha256(BODY[:HALF])):
        get(server, target)
    assert_clean(target, None)


def test_breaks_are_counted(server: Server, target: Path) -> None:
    server.plan = [cut(HALF, X_Nothing="1")] * 9
    with pytest.raises(FetchError, match=f"{HALF} of {len(BODY)} bytes") as caught:
        get(server, target, attempts=3)
    assert len(server.requests) == 3
    assert server.url in str(caught.value) and str(target) in str(caught.value)
    assert not target.exists()


def test_silence_is_named(server: Server, target: Path) -> None:
    server.plan = [stall]
    with pytest.raises(FetchError, match=r"silent for 0\.2 s"):
        get(server, target, timeout=0.2, attempts=1)


def test_the_next_call_continues(server: Server, target: Path) -> None:
    server.plan = [cut(HALF)]
    with pytest.raises(FetchError):
        get(server, target, attempts=1)
    assert get(server, target) == sha256(BODY)
    assert server.ranges == [None, f"bytes={HALF}-"]
    assert_clean(target, BODY)


def test_another_url_does_not_continue(server: Server, target: Path) -> None:
    server.plan = [cut(HALF)]
    with pytest.raises(FetchError):
        get(server, target, attempts=1)
    server.url += "?other"
    assert get(server, target) == sha256(BODY)
    assert server.ranges == [None, None]


def test_damaged_part_file_is_fetched_once_more(server: Server, target: Path) -> None:
    server.plan = [cut(HALF)]
    with pytest.raises(FetchError):
        get(server, target, attempts=1)
    part = target.with_name("model.pt.part")
    part.write_bytes(bytes(HALF))
    assert get(server, target) == sha256(BODY)
    assert_clean(target, BODY)


def test_damaged_notes_begin_again(server: Server, target: Path) -> None:
    server.plan = [cut(HALF)]
    with pytest.raises(FetchError):
        get(server, target, attempts=1)
    notes = target.with_name("model.pt.part.json")
    notes.write_text(notes.read_text()[:10])
    assert get(server, target) == sha256(BODY)
    assert server.ranges == [None, None]


# Wrong content


def test_wrong_hash(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"precious")
    server.plan = [serve(OTHER)]
    with pytest.raises(FetchError) as caught:
        get(server, target)
    assert sha256(OTHER) in str(caught.value) and sha256(BODY) in str(caught.value)
    assert_clean(target, b"precious")
    assert len(server.requests) == 1


def test_wrong_prefix(server: Server, target: Path) -> None:
    with pytest.raises(FetchError, match="expected 01234567"):
        get(server, target, sha256="01234567")
    assert_clean(target, None)


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_web_page(server: Server, target: Path, kind: str) -> None:
    page = b"<!doctype html><title>Sign in</title>"
    server.plan = [lambda handler: handler.answer(200, page, Content_Type=kind)]
    with pytest.raises(FetchError, match="web page" if "html" in kind else sha256(page)):
        get(server, target)
    assert_clean(target, None)


@pytest.mark.parametrize("code", [403, 404, 410])
def test_final_answers(server: Server, target: Path, code: int) -> None:
    server.plan = [status(code)] * 5
    with pytest.raises(FetchError, match=f"HTTP {code}"):
        get(server, target)
    assert len(server.requests) == 1
    assert_clean(target, None)


@pytest.mark.parametrize("code", [429, 500, 503])
def test_passing_answers(server: Server, target: Path, code: int) -> None:
    server.plan = [status(code)] * 2
    assert get(server, target) == sha256(BODY)
    assert len(server.requests) == 3


# Redirects and schemes


def test_redirect_keeps_the_range(server: Server, target: Path) -> None:
    elsewhere = server.url.replace("model.pt", "elsewhere")
    server.plan = [redirect(elsewhere), cut(HALF), redirect(elsewhere)]
    assert get(server, target) == sha256(BODY)
    assert server.requests[3][0] == "/elsewhere"
    assert server.ranges[2:] == [f"bytes={HALF}-"] * 2


def test_redirect_loop(server: Server, target: Path) -> None:
    server.plan = [redirect(server.url)] * 40
    with pytest.raises(FetchError, match="302"):
        get(server, target)


@pytest.mark.parametrize(
    "place", ["http://127.0.0.1:1/x", "ftp://127.0.0.1/x", "file:///etc/hosts"]
)
def test_redirect_away_from_https(
    server: Server, target: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Unencrypted(http.client.HTTPConnection):
        """Stands in for TLS, so that the local server can play a https one."""

        def __init__(self, host: str, **options: Any) -> None:
            super().__init__(host, timeout=options["timeout"])

    monkeypatch.setattr(http.client, "HTTPSConnection", Unencrypted)
    url = server.url.replace("http://", "https://")
    assert download(url, target, timeout=5) == sha256(BODY)  # the stand-in works
    target.unlink()
    server.plan = [redirect(place)]
    with pytest.raises(FetchError, match="refused the redirect|not allowed"):
        download(url, target, timeout=5, allow_http=True)
    assert_clean(target, None)


def test_redirect_from_http_to_a_file(server: Server, target: Path) -> None:
    server.plan = [redirect("file:///etc/hosts")]
    with pytest.raises(FetchError, match="refused the redirect|not allowed"):
        get(server, target)


@pytest.mark.parametrize(
    "url", ["http://example.com/x", "file:///etc/hosts", "model.pt", "https:///x"]
)
def test_refused_urls(tmp_path: Path, url: str) -> None:
    with pytest.raises(ValueError, match="http"):
        download(url, tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"sha256": "xyz"}, {"sha256": ""}, {"attempts": 0}])
def test_refused_options(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        download("https://example.com/x", tmp_path / "x", **options)


# No network, no disk


def test_offline(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_resolver(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", no_resolver)
    monkeypatch.setattr(fetch, "_BACKOFF", 60)  # a second attempt would take a minute
    with pytest.raises(FetchError) as caught:
        download("https://example.com/model.pt", target)
    for part in ("https://example.com/model.pt", "offline?", str(target)):
        assert part in str(caught.value)
    assert_clean(target, None)


def test_nothing_listens(target: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/x"
        with pytest.raises(FetchError, match="nothing answers"):
            download(url, target, allow_http=True)


def test_folder_that_cannot_be_made(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FetchError, match="choose another folder"):
        get(server, tmp_path / "file" / "model.pt")
    assert server.requests == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's always-full device")
def test_full_disk(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("model.pt.part").symlink_to("/dev/full")
    with pytest.raises(FetchError, match="No space left"):
        get(server, target)
    assert_clean(target, None)
    assert len(server.requests) == 1


def no_locks(*_: int) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_no_locks_on_this_file_system(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", no_locks)
    server.plan = [cut(HALF)]
    assert get(server, target) == sha256(BODY)
    assert_clean(target, BODY)
    server.plan = [cut(HALF)]
    with pytest.raises(FetchError):
        get(server, target.with_name("second"), attempts=1)
    assert_clean(target, BODY)


def test_without_locks_nobody_shares_a_part_file(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcntl.flock", no_locks)
    server.plan = [slow]
    digests: list[str] = []
    other = threading.Thread(target=lambda: digests.append(get(server, target)))
    other.start()
    wait_until(lambda: list(target.parent.glob("*.part")))
    assert get(server, target) == sha256(BODY)
    assert server.ranges == [None, None]
    server.release.set()
    other.join()
    assert digests == [sha256(BODY)]
    assert_clean(target, BODY)


# Two processes

# The package's own __init__ would load torch first; a bare package shows that fetch needs none.
CHILD = """
import sys, types
package = types.ModuleType("gem_lite")
package.__path__ = [sys.argv[1]]
sys.modules["gem_lite"] = package
from gem_lite.checkpoints.fetch import download
print(download(sys.argv[2], sys.argv[3], sha256=sys.argv[4], allow_http=True, timeout=15))
assert "torch" not in sys.modules
"""


def child(server: Server, target: Path) -> "subprocess.Popen[str]":
    package = Path(fetch.__file__).parents[1]
    arguments = [str(package), server.url, str(target), sha256(BODY)]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments], stdout=subprocess.PIPE, text=True
    )


def wait_until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited 10 s in vain"
        time.sleep(0.01)


def slow(handler: Handler) -> None:
    """Half the body, the other half when the test says so."""
    handler.answer(200, BODY[:HALF], length=len(BODY), ETag='"one"')
    handler.server.release.wait(20)
    handler.wfile.write(BODY[HALF:])


def test_two_processes_download_once(server: Server, target: Path) -> None:
    server.plan = [slow]
    with child(server, target) as first:
        wait_until(lambda: server.requests)
        with child(server, target) as second:
            time.sleep(0.5)  # long enough for the second one to be at the lock
            assert second.poll() is None and not target.exists()
            server.release.set()
            outputs = [process.communicate(timeout=15)[0] for process in (first, second)]
    assert outputs == [sha256(BODY) + "\n"] * 2
    assert len(server.requests) == 1
    assert_clean(target, BODY)


def test_many_threads_download_once(server: Server, target: Path) -> None:
    digests: list[str] = []
    threads = [
        threading.Thread(target=lambda: digests.append(get(server, target))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [sha256(BODY)] * 8
    assert len(server.requests) == 1
    assert_clean(target, BODY)


def test_who_waits_gets_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    seen: list[bool] = []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with exclusive(path) as locked:
            seen.append(locked)

    thread = threading.Thread(target=second)
    with exclusive(path):
        thread.start()
        waiting.wait()
        time.sleep(0.3)
        assert not seen
    thread.join()
    assert seen == [True]


def test_killed_process_is_continued(server: Server, target: Path) -> None:
    """Over an older file, which stays whole until the new one is."""
    server.plan = [slow]
    part = target.with_name("model.pt.part")
    target.parent.mkdir()
    target.write_bytes(OTHER)
    with child(server, target) as process:
        wait_until(lambda: part.exists() and part.stat().st_size)
        process.kill()
        process.communicate()
    server.release.set()
    kept = part.stat().st_size
    assert target.read_bytes() == OTHER
    assert get(server, target) == sha256(BODY)
    assert server.ranges == [None, f"bytes={kept}-"]
    assert_clean(target, BODY)


# Progress


def test_progress(server: Server, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    get(server, target, progress=True)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("\rmodel.pt: ") and captured.err.count("\n") == 1
    assert captured.err.endswith("0.3 MB of 0.3 MB (100 %)\n")


def test_progress_by_default_on_a_terminal(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    get(server, target, progress=None)
    assert terminal.getvalue().endswith("(100 %)\n")


@pytest.mark.parametrize("progress", [False, None])
def test_no_progress(
    server: Server, target: Path, capfd: pytest.CaptureFixture[str], progress: bool | None
) -> None:
    get(server, target, progress=progress)  # None: pytest's standard error is no terminal
    assert capfd.readouterr() == ("", "")


def test_progress_in_the_log(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Every ten seconds by the clock, beside each further attempt."""
    assert fetch._LOG_EVERY == 10.0
    monkeypatch.setattr(fetch, "_LOG_EVERY", 0.0)
    caplog.set_level("INFO", fetch.__name__)
    server.plan = [cut(HALF)]
    get(server, target, progress=None)
    text = "\n".join(record.getMessage() for record in caplog.records)
    assert "model.pt: 0.1 MB of 0.3 MB (50 %)\n" in text or "0.2 MB of 0.3 MB (50 %)\n" in text
    assert "attempt 1 of 5" in text and text.endswith("0.3 MB of 0.3 MB (100 %)")


def test_closed_standard_error(
    server: Server, target: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stream = open(tmp_path / "log", "w")  # noqa: SIM115
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    assert get(server, target, progress=True) == sha256(BODY)
    monkeypatch.setattr(sys, "stderr", None)
    target.unlink()
    assert get(server, target, progress=True) == sha256(BODY)


def test_urllib_is_left_alone(server: Server, target: Path) -> None:
    before = urllib.request._opener  # type: ignore[attr-defined]
    get(server, target)
    assert urllib.request._opener is before  # type: ignore[attr-defined]
