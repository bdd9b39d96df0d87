"""Download one file: streamed, hashed, resumed after a break, put in place by one rename."""

from __future__ import annotations

import hashlib
import http.client
import json
import logging
import os
import re
import secrets
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from email.message import Message
from pathlib import Path
from typing import IO

from .lock import exclusive

_logger = logging.getLogger(__name__)
_LOG_EVERY = 10.0  # seconds

_CHUNK = 1 << 20  # bytes asked for at once
_BACKOFF = 0.5  # seconds before the second attempt, doubled for each further one
_BUSY_CODES = (408, 425, 429)  # beside every 5xx: answers that another attempt may change


class FetchError(OSError):
    """A download failed for good; the message names the url, the reason and the way round it."""


class _Failure(Exception):
    """One attempt failed; `retry` says whether another one may do better."""

    def __init__(self, reason: str, *, retry: bool) -> None:
        super().__init__(reason)
        self.retry = retry


def download(
    url: str,
    destination: str | os.PathLike[str],
    *,
    sha256: str | None = None,
    progress: bool | None = None,
    timeout: float = 30.0,
    attempts: int = 5,
    allow_http: bool = False,
) -> str:
    """Fetch `url` into `destination` and return the file's SHA-256 as 64 hex digits.

    `sha256` is the expected hash or the first digits of it; None takes what comes. A destination
    that is there already is kept if it fits (any file fits None), and is replaced only by a
    download that fits. What came before a break stays in `<destination>.part` and is continued
    by the next attempt or the next call, if the server still has the same file. Two processes
    may ask for the same destination: one downloads, the other waits and takes the result.

    `progress` writes one line to standard error (None: only if that is a terminal); without it, how
    far the download is goes to the log (level INFO) every ten seconds. `timeout` is
    the longest silence of the server in seconds. `allow_http` permits a plain http:// url; a
    redirect from https to http is refused in any case. Proxies come from the environment.

    Raises FetchError after `attempts` breaks, or at once for what another attempt cannot change;
    ValueError for a url, hash or count that makes no sense.
    """
    target = Path(destination)
    _check_url(url, allow_http)
    if attempts < 1:
        raise ValueError(f"attempts must be at least 1, got {attempts}")
    if sha256 is not None and not re.fullmatch("[0-9a-fA-F]{1,64}", sha256):
        raise ValueError(f"sha256 must be 1 to 64 hexadecimal digits, got {sha256!r}")
    try:
        digest = _finished(target, sha256)
        if digest is None:
            target.parent.mkdir(parents=True, exist_ok=True)
            with exclusive(target.with_name(target.name + ".lock")) as locked:
                digest = _finished(target, sha256)
                if digest is None:
                    digest = _fetch(url, target, sha256, progress, timeout, attempts, locked)
    except _Failure as failure:
        raise FetchError(
            f"could not fetch {url}: {failure}. If you can get the file in another way, "
            f"put it at {target}"
        ) from failure
    except OSError as error:  # network errors became _Failure: this is the disk
        raise FetchError(
            f"could not fetch {url}: writing {target} failed: {error}. "
            "Free some space or choose another folder"
        ) from error
    return digest


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file as 64 hex digits."""
    with open(path, "rb") as file:
        return _hash_rest(file).hexdigest()


def hash_fits(digest: str, expected: str | None) -> bool:
    """Whether `digest` is the expected hash or begins with it; any hash fits None."""
    return expected is None or digest.startswith(expected.lower())


def _check_url(url: str, allow_http: bool) -> None:
    parts = urllib.parse.urlsplit(url)
    if not parts.hostname or parts.scheme not in ("https", "http"):
        raise ValueError(f"expected a url that begins with https://, got {url!r}")
    if parts.scheme == "http" and not allow_http:
        raise ValueError(f"refused {url!r}: plain http:// is taken only from a mirror you set")


def _finished(target: Path, sha256: str | None) -> str | None:
    """The hash of a destination that needs no download, or None."""
    if not target.is_file() or target.stat().st_size == 0:
        return None
    digest = file_sha256(target)
    return digest if hash_fits(digest, sha256) else None


def _fetch(
    url: str,
    target: Path,
    sha256: str | None,
    progress: bool | None,
    timeout: float,
    attempts: int,
    locked: bool,
) -> str:
    """Attempt after attempt, then the check of the hash and the rename."""
    # Without a lock nobody else may touch our part file, so it gets a name of its own.
    stem = target.name if locked else f"{target.name}.{os.getpid()}-{secrets.token_hex(4)}"
    part = _Part(target.with_name(stem))
    line = _ProgressLine(target.name, progress)
    keep = locked
    try:
        attempt = 0
        while True:
            attempt += 1
            if attempt > 1:
                time.sleep(_BACKOFF * 2 ** (attempt - 2))
            resumed = part.size() > 0
            try:
                digest = _transfer(url, part, timeout, line, first=attempt == 1)
            except _Failure as failure:
                if attempt == attempts or not failure.retry:
                    raise
                line.close()
                _logger.info("attempt %d of %d to fetch %s: %s", attempt, attempts, url, failure)
                continue
            if hash_fits(digest, sha256):
                os.replace(part.path, target)
                keep = False
                return digest
            part.discard()
            # A part file that a crash left damaged is no fault of the server: begin once more.
            if attempt == attempts or not resumed:
                raise _Failure(
                    f"the file has SHA-256 {digest}, expected {sha256}; it was deleted", retry=False
                )
    except OSError:  # a full or failing disk: leave no half file behind
        keep = False
        raise
    finally:
        line.close()
        if not keep:
            with suppress(OSError):
                part.discard()


def _transfer(url: str, part: _Part, timeout: float, line: _ProgressLine, *, first: bool) -> str:
    """One connection: bring the part file to its full length and return its hash."""
    hasher, start, validator = part.resume(url)
    headers = {"User-Agent": "gem_lite", "Accept-Encoding": "identity"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    opener = urllib.request.build_opener(_Redirects)
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == 416 and start:  # nothing after `start`: complete, or another file
                if _content_range(error.headers)[1] == start:
                    return hasher.hexdigest()
                part.discard()
                return _transfer(url, part, timeout, line, first=first)
            retry = error.code in _BUSY_CODES or error.code >= 500
            raise _Failure(f"HTTP {error.code} {error.reason}", retry=retry) from error
    except (OSError, http.client.HTTPException) as error:
        raise _broken(error, timeout, first=first) from error

    with response:
        if response.headers.get_content_type() == "text/html":
            raise _Failure("the server sent a web page instead of the file", retry=False)
        if response.status == 206:
            offset, total = _content_range(response.headers)
            same = _validator(response.headers) in (validator, None)
            if not start or offset != start or not same:
                part.discard()
                raise _Failure("the server continued another file than ours", retry=True)
        elif response.status == 200:
            hasher, start, total = hashlib.sha256(), 0, _content_length(response.headers)
            part.begin(url, _validator(response.headers))
        else:
            raise _Failure(f"HTTP {response.status} {response.reason}", retry=False)

        done = start
        with open(part.path, "ab") as file:
            while chunk := _read(response, timeout):
                file.write(chunk)
                hasher.update(chunk)
                done += len(chunk)
                line.show(done, total)
            file.flush()
            os.fsync(file.fileno())
    if done == 0:
        raise _Failure("the server sent an empty file", retry=True)
    if total is not None and done != total:
        if done > total:
            part.discard()
        raise _Failure(f"the transfer ended after {done} of {total} bytes", retry=True)
    return hasher.hexdigest()


def _read(response: http.client.HTTPResponse, timeout: float) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _broken(error, timeout, first=False) from error


def _broken(error: Exception, timeout: float, *, first: bool) -> _Failure:
    """A network error as a sentence; what fails while nothing has worked yet is final."""
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    if isinstance(reason, TimeoutError):
        return _Failure(f"the server was silent for {timeout:g} s", retry=True)
    if isinstance(reason, socket.gaierror):
        return _Failure(f"no address for the server's name (offline?): {reason}", retry=not first)
    if isinstance(reason, ConnectionRefusedError):
        return _Failure(f"nothing answers there: {reason}", retry=not first)
    if isinstance(reason, ssl.SSLCertVerificationError | http.client.InvalidURL):
        return _Failure(str(reason), retry=False)
    return _Failure(f"the connection broke: {reason or type(reason).__name__}", retry=True)


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
            raise _Failure(f"refused the redirect to {newurl}: it leaves https", retry=False)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Part:
    """The bytes that came so far, and beside them what tells whether the server's file changed."""

    def __init__(self, target: Path) -> None:
        self.path = target.with_name(target.name + ".part")
        self._notes = target.with_name(target.name + ".part.json")

    def size(self) -> int:
        return self.path.stat().st_size if self.path.is_file() else 0

    def resume(self, url: str) -> tuple[hashlib._Hash, int, str]:
        """Hash so far, size so far and validator; nothing where it can't be continued safely."""
        try:
            notes = json.loads(self._notes.read_text(encoding="utf-8"))
            if notes["url"] == url and notes["validator"]:
                with open(self.path, "rb") as file:
                    hasher = _hash_rest(file)
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
        self.path.unlink(missing_ok=True)
        self._notes.unlink(missing_ok=True)


class _ProgressLine:
    """One line on standard error, rewritten at most five times a second; else lines in the log."""

    def __init__(self, name: str, wanted: bool | None) -> None:
        self._stream = sys.stderr
        if wanted is None:
            wanted = self._stream is not None and self._stream.isatty()
        self._on = wanted and self._stream is not None
        self._name = name
        self._due = 0.0 if self._on else time.monotonic() + _LOG_EVERY
        self._width = 0

    def show(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if now < self._due and not (self._on and done == total):
            return
        self._due = now + (0.2 if self._on else _LOG_EVERY)
        text = f"{self._name}: {done / 1e6:.1f} MB"
        if total:
            text += f" of {total / 1e6:.1f} MB ({100 * done // total} %)"
        if not self._on:
            _logger.info(text)
            return
        self._write("\r" + text.ljust(self._width))
        self._width = len(text)

    def close(self) -> None:
        if self._width:
            self._write("\n")
            self._width = 0

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # a closed standard error must not stop a download
            self._on = False


def _hash_rest(file: IO[bytes]) -> hashlib._Hash:
    hasher = hashlib.sha256()
    while chunk := file.read(_CHUNK):
        hasher.update(chunk)
    return hasher


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
    """First byte and total size out of `bytes 5-9/10` or `bytes */10`, None where not told."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)", headers.get("Content-Range", ""))
    if not found:
        return None, None
    first, total = found.groups()
    return (int(first) if first else None), (int(total) if total != "*" else None)
