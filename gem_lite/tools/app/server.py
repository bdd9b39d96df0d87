"""The page over HTTP: its files, two calls, and the checks that keep strangers and giants out."""

import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .connections import ACCEPTED, protocol
from .engine import Engine
from .limits import (
    Bodies,
    Gone,
    Limits,
    Receive,
    Refusal,
    TooLong,
    Turns,
    Unfinished,
    drain,
    until_gone,
    visitor,
)
from .question import WORDS_BYTES, Question, read_body

HERE = Path(__file__).resolve().parent
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    **{
        f"/{name}.js": (f"{name}.js", "text/javascript; charset=utf-8")
        for name in ("page", "view", "words", "maps", "draw", "files")
    },
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
# Nothing is loaded from elsewhere, nothing inline runs, no other site may frame the page.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
WITH_BODY = "/api/maps"  # the one route that takes a body

logger = logging.getLogger(__name__)

Send = Callable[[Any], Awaitable[None]]


class WrongKind(Refusal):
    """A body is of another kind than JSON, as a form of another site could send."""

    status = 415


def allowed_host(header: str, names: Iterable[str]) -> bool:
    """Whether a Host header is this machine's.

    A page of another site that has its own name point here (DNS rebinding) is known by that name;
    addresses, `localhost` and the `names` given are let through.
    """
    host = header.rsplit(":", 1)[0] if not header.endswith("]") else header
    host = host.strip("[]").lower()
    if host == "localhost" or host in {name.lower() for name in names}:
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def create_app(engine: Engine, *, names: Iterable[str] = ()) -> "Guard":
    """The page as an ASGI application. names: further host names that it is reached by.

    Raises ImportError naming the extra where Starlette is missing.
    """
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import Request
        from starlette.responses import Response
        from starlette.routing import Route
    except ImportError as error:
        raise ImportError(_MISSING) from error

    limits = engine.limits
    turns, bodies = Turns(limits), Bodies(limits)
    start = b""  # what the page starts with, once somebody asked
    contents = {path: (HERE / name).read_bytes() for path, (name, _) in FILES.items()}
    # Base64 takes four letters for three bytes; the words and settings come on top.
    longest = limits.upload_bytes * 4 // 3 + WORDS_BYTES

    def refusal(status: int, text: str) -> Response:
        content = json.dumps({"error": text})
        return Response(content, status, media_type="application/json")

    def calculated(question: Question) -> bytes:
        return json.dumps(engine.answer(question)).encode()

    async def file(request: Request) -> Response:
        path = request.url.path
        return Response(contents[path], media_type=FILES[path][1])

    async def about(request: Request) -> Response:
        nonlocal start
        start = start or await run_in_threadpool(lambda: json.dumps(engine.about()).encode())
        return Response(start, media_type="application/json")

    async def maps(request: Request) -> Response:
        address = visitor(request.client.host if request.client else None)
        receive = request.receive
        try:
            _check_head(request.headers, longest, limits)
            async with bodies.read(receive, address, longest) as body:
                question = await run_in_threadpool(read_body, body, limits)
                async with turns.turn(address, lambda: until_gone(receive)):
                    content = await run_in_threadpool(calculated, question)
            return Response(content, media_type="application/json")
        except Gone:
            return Response(status_code=400)  # which nobody reads
        except Refusal as error:
            if isinstance(error, Unfinished):
                await drain(receive)
            return refusal(error.status, str(error))
        except ValueError as error:
            return refusal(422, str(error))
        except Exception:  # out of memory, a fault of ours: the page goes on, the log has it
            logger.exception("a request failed")
            return refusal(500, "something went wrong here; the server's log has the details")

    routes = [Route(path, file) for path in FILES]
    routes += [Route("/api/about", about), Route(WITH_BODY, maps, methods=["POST"])]
    return Guard(Starlette(routes=routes), tuple(names), limits)


def _check_head(headers: Any, longest: int, limits: Limits) -> None:
    if headers.get("content-type", "").split(";")[0] != "application/json":
        raise WrongKind("the request is not JSON")
    length = headers.get("content-length", "0")
    if not length.isdecimal() or len(length) > 20 or int(length) > longest:
        raise TooLong(f"the picture has more than {limits.upload_bytes / 1e6:g} MB")


class Guard:
    """Refuses requests made by pages of other sites, and adds the headers to every answer."""

    def __init__(self, app: Any, names: tuple[str, ...], limits: Limits) -> None:
        self.limits = limits
        self._app = app
        self._names = names

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """An ASGI call."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), text.encode()) for name, text in HEADERS.items()]
                if message["status"] >= 400:  # the rest of its body is not waited for
                    more.append((b"connection", b"close"))
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        headers = dict(scope["headers"])
        body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        if (reason := self._foreign(scope)) is not None:
            await _plain(with_headers, 403, reason)
        elif body and scope["path"] != WITH_BODY:
            await _plain(with_headers, 413, "this address takes no body")
        else:
            await self._app(scope, receive, with_headers)

    def _foreign(self, scope: dict[str, Any]) -> str | None:
        headers = {
            name.decode("latin-1"): text.decode("latin-1") for name, text in scope["headers"]
        }
        host = headers.get("host", "")
        if not allowed_host(host, self._names):
            return "this page is not served under that name; start it with --allow-name"
        origin = headers.get("origin")
        if origin is not None and origin != f"{scope['scheme']}://{host}":
            return "a request of another site"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and (
            scope["method"] != "GET" or scope["path"].startswith("/api/")
        ):
            return "a request of another site"
        return None


async def _plain(send: Send, status: int, text: str) -> None:
    body = json.dumps({"error": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


_MISSING = "the web page needs Starlette and Uvicorn: pip install 'gem_lite[app]'"


def serve(app: Guard, host: str, port: int, *, started: Callable[[str], None]) -> None:
    """Serve until Ctrl-C. port 0 takes a free one; `started` gets the page's address.

    Raises OSError where the port cannot be had, ImportError naming the extra.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError(_MISSING) from error
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By its protocol asyncio knows it for TCP, and sends what is written without delay; otherwise
    # each answer's content waits some 40 ms until the visitor has acknowledged its head.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            raise OSError(
                f"cannot listen on {host}, port {port} ({error.strerror or error}); choose another"
                " with --port (0 = any that is free)"
            ) from error
        listener.listen()
        shown = f"[{host}]" if ":" in host else host
        address = f"http://{shown}:{listener.getsockname()[1]}/"
        server = uvicorn.Server(configuration(app))
        started(address)
        with suppress(KeyboardInterrupt):  # the way to end it
            server.run(sockets=[listener])


def configuration(app: Guard, **more: Any) -> Any:
    """Uvicorn's configuration for the page, with connections under the app's limits."""
    import uvicorn

    return uvicorn.Config(
        app,
        http=protocol(app.limits),
        ws="none",
        backlog=ACCEPTED,
        access_log=False,
        log_level="error",
        timeout_keep_alive=round(app.limits.idle_seconds),
        timeout_graceful_shutdown=5,
        server_header=False,
        lifespan="off",
        **more,
    )
