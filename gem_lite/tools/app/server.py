"""The page over HTTP: four files, two calls, and the checks that keep strangers and giants out."""

import ipaddress
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .engine import Engine, Limits, read_question

HERE = Path(__file__).resolve().parent
FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/draw.js": ("draw.js", "text/javascript; charset=utf-8"),
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
BODY_SECONDS = 120  # longest time that a request's body may take to arrive

logger = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class Refusal(Exception):
    """A request that gets no answer; `status` is its HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


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


def create_app(engine: Engine, *, names: Iterable[str] = ()) -> Any:
    """The page as a Starlette application. names: further host names that it is reached by.

    Raises ImportError naming the extra where Starlette is missing.
    """
    try:
        from starlette.applications import Starlette
        from starlette.concurrency import run_in_threadpool
        from starlette.requests import ClientDisconnect, Request
        from starlette.responses import Response
        from starlette.routing import Route
    except ImportError as error:
        raise ImportError(_MISSING) from error

    limits = engine.limits
    waiting = 0

    def answer(content: Any, status: int = 200) -> Response:
        return Response(json.dumps(content), status, media_type="application/json")

    async def file(request: Request) -> Response:
        name, kind = FILES[request.url.path]
        return Response((HERE / name).read_bytes(), media_type=kind)

    async def about(request: Request) -> Response:
        return answer(await run_in_threadpool(engine.about))

    async def maps(request: Request) -> Response:
        nonlocal waiting
        if waiting > limits.waiting:
            return answer({"error": "too many people are waiting; try again in a moment"}, 503)
        waiting += 1
        try:
            if request.headers.get("content-type", "").split(";")[0] != "application/json":
                raise Refusal(415, "the request is no JSON")
            try:
                content = json.loads(await _body(request, limits))
            except (ValueError, RecursionError) as error:
                raise Refusal(400, "the request is no JSON") from error
            question = read_question(content, limits)
            return answer(await run_in_threadpool(engine.answer, question))
        except Refusal as refusal:
            return answer({"error": str(refusal)}, refusal.status)
        except ValueError as error:
            return answer({"error": str(error)}, 422)
        except ClientDisconnect:
            return Response(status_code=400)
        except Exception:  # out of memory, a fault of ours: the page goes on, the log has it
            logger.exception("a request failed")
            return answer({"error": "something went wrong here; the server's log tells what"}, 500)
        finally:
            waiting -= 1

    routes = [Route(path, file) for path in FILES]
    routes += [Route("/api/about", about), Route("/api/maps", maps, methods=["POST"])]
    return _Guard(Starlette(routes=routes), tuple(names))


async def _body(request: Any, limits: Limits) -> bytes:
    """A request's body; Refusal for one that is too long, or takes too long."""
    import anyio

    # Base64 takes four letters for three bytes; the words and settings are small beside it.
    longest = limits.upload_bytes * 4 // 3 + 100_000
    too_long = Refusal(413, f"the picture has more than {limits.upload_bytes / 1e6:g} MB")
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > longest:
        raise too_long
    parts, size = [], 0
    try:
        with anyio.fail_after(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > longest:
                    raise too_long
                parts.append(part)
    except TimeoutError as error:
        raise Refusal(408, "the picture took too long to arrive") from error
    return b"".join(parts)


class _Guard:
    """Refuses requests made by pages of other sites, and adds the headers to every answer."""

    def __init__(self, app: Any, names: tuple[str, ...]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def with_headers(message: Any) -> None:
            if message["type"] == "http.response.start":
                more = [(name.lower().encode(), text.encode()) for name, text in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *more]}
            await send(message)

        if (reason := self._foreign(scope)) is not None:
            await _plain(with_headers, 403, reason)
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


def serve(
    app: Any, host: str, port: int, *, started: Callable[[str], None], connections: int = 100
) -> None:
    """Serve until Ctrl-C. port 0 takes a free one; `started` gets the page's address.

    Raises OSError where the port cannot be had, ImportError naming the extra.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise ImportError(_MISSING) from error
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
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
        config = uvicorn.Config(
            app,
            access_log=False,
            log_level="warning",
            limit_concurrency=connections,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=5,
            server_header=False,
            lifespan="off",
        )
        started(address)
        with suppress(KeyboardInterrupt):  # the way to end it
            uvicorn.Server(config).run(sockets=[listener])
