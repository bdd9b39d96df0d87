"""One HTTP transfer: a file or the rest of it, hashed as it comes in."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from email.message import Message
from pathlib import Path
from typing import IO

from .files import CHUNK, hash_file

HUB = "https://huggingface.co"
TOKEN_VARIABLE = "HF_TOKEN"  # sent to the hub alone
_BUSY_CODES = (408, 425, 429)  # beside every 5xx: answers that another attempt may change


class TransferError(Exception):
    """One attempt failed; `retry` says whether another one may do better."""

    def __init__(self, reason: str, *, retry: bool, code: int | None = None) -> None:
        super().__init__(reason)
        self.retry = retry
        self.code = code


def transfer(
    url: str, part: Part, timeout: float, show: Callable[[int, int | None], None], *, first: bool
) -> str:
    """One connection: bring the part file to its full length and return its hash."""
    hasher, start, validator = part.resume(url)
    headers = {"User-Agent": "gem_lite", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    opener = urllib.request.build_opener(_Redirects)
    request = urllib.request.Request(url, headers=headers)
    _authorise(request)
    try:
        response = opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and start:  # nothing after `start`: complete, or another file
                if _content_range(error.headers)[1] == start:
                    return hasher.hexdigest()
                part.discard()
                return transfer(url, part, timeout, show, first=first)
            raise _refused(error, url) from error
    except (OSError, http.client.HTTPException) as error:
        raise _broken(error, timeout, first=first) from error

    with response:
        if response.headers.get_content_type() == "text/html":
            raise TransferError("the server sent a web page instead of the file", retry=False)
        if response.status == 206:
            offset, total = _content_range(response.headers)
            same = _validator(response.headers) in (validator, None)
            if not start or offset != start or not same:
                part.discard()
                raise TransferError("the server continued another file than ours", retry=True)
        elif response.status == 200:
            hasher, start, total = hashlib.sha256(), 0, _content_length(response.headers)
            part.begin(url, _validator(response.headers))
        else:
            raise TransferError(f"HTTP {response.status} {response.reason}", retry=False)

        done = start
        with open(part.path, "ab") as file:
            while chunk := _read(response, timeout):
                file.write(chunk)
                hasher.update(chunk)
                done += len(chunk)
                show(done, total)
            file.flush()
            os.fsync(file.fileno())
    if done == 0:
        raise TransferError("the server sent an empty file", retry=True)
    if total is not None and done != total:
        if done > total:
            part.discard()
        raise TransferError(f"the transfer ended after {done} of {total} bytes", retry=True)
    return hasher.hexdigest()


def _read(response: http.client.HTTPResponse, timeout: float) -> bytes:
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _broken(error, timeout, first=False) from error


def _refused(error: urllib.error.HTTPError, url: str) -> TransferError:
    reason = f"HTTP {error.code} {error.reason}"
    if error.code in (401, 403) and url.startswith(f"{HUB}/"):
        reason += f" (for a private or gated repository, set {TOKEN_VARIABLE})"
    retry = error.code in _BUSY_CODES or error.code >= 500
    return TransferError(reason, retry=retry, code=error.code)


def _broken(error: Exception, timeout: float, *, first: bool) -> TransferError:
    """A network error as a sentence; what fails while nothing has worked yet is final."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return TransferError(f"the server was silent for {timeout:g} s", retry=True)
    if isinstance(reason, socket.gaierror):
        message = f"no address for the server's name (offline?): {reason}"
        return TransferError(message, retry=not first)
    if isinstance(reason, ConnectionRefusedError):
        return TransferError(f"nothing answers there: {reason}", retry=not first)
    if isinstance(reason, ssl.SSLCertVerificationError | http.client.InvalidURL):
        return TransferError(str(reason), retry=False)
    return TransferError(f"the connection broke: {reason or type(reason).__name__}", retry=True)


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but never from https to anything less."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        scheme = urllib.parse.urlsplit(newurl).scheme
        if scheme != "https" and (scheme, req.type) != ("http", "http"):
            raise TransferError(f"refused the redirect to {newurl}: it leaves https", retry=False)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if request is not None:
            _authorise(request)
        return request


def _authorise(request: urllib.request.Request) -> None:
    """Add the user's token to a request to the hub. urllib does not pass it on in a redirect."""
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if token and request.full_url.startswith(f"{HUB}/"):
        if not re.fullmatch("[!-~]+", token):
            raise TransferError(f"{TOKEN_VARIABLE} is not a token", retry=False)
        request.add_unredirected_header("Authorization", f"Bearer {token}")


class Part:
    """The bytes that came so far, and beside them what tells whether the server's file changed."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + ".part")
        self._notes = target.with_name(target.name + ".part.json")

    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def resume(self, url: str) -> tuple[hashlib._Hash, int, str]:
        """Hash so far, size so far and validator; nothing where it can't be continued safely."""
        try:
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            if notes["url"] == url and notes["validator"]:
                with open(self.path, "rb") as file:
                    hasher = hash_file(file)
                    return hasher, file.tell(), str(notes["validator"])
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # no part file, or notes cut short by a crash
        return hashlib.sha256(), 0, ""

    def begin(self, url: str, validator: str | None) -> None:
        """An empty part file, and notes about the answer that will fill it."""
        self.path.write_bytes(b"")
        notes = json.dumps({"url": url, "validator": validator})
        self._notes.write_text(notes, encoding="utf-8")

    def discard(self) -> None:
        """Remove the bytes and the notes."""
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)


def _validator(headers: Message) -> str | None:
    """What If-Range may carry: a strong ETag, else the date of the last change."""
    etag = headers.get("ETag")
    if etag and not etag.startswith("W/"):
        return str(etag)
    return headers.get("Last-Modified")


def _content_length(headers: Message) -> int | None:
    text = headers.get("Content-Length", "")
    return int(text) if text.isdecimal() else None


def _content_range(headers: Message) -> tuple[int | None, int | None]:
    """First byte and total size out of `bytes 5-9/10` or `bytes */10`, None where absent."""
    match = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", ""))
    if not match:
        return None, None
    first, total = match.groups()
    return (int(first) if first else None), (int(total) if total != "*" else None)
