"""Download one file: streamed, hashed, resumed after a break, put in place by one rename."""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
import time
import urllib.parse
from contextlib import suppress
from pathlib import Path

from .files import exclusive, file_sha256
from .transfer import Part, TransferError, transfer

_logger = logging.getLogger(__name__)
_LOG_EVERY = 10.0  # seconds

_BACKOFF = 0.5  # seconds before the second attempt, doubled for each further one


class FetchError(OSError):
    """A download failed for good; the message names the url, the reason and the way round it.

    `code` is the HTTP status where the server answered with an error.
    """

    code: int | None = None


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
    except TransferError as failure:
        error = FetchError(
            f"could not fetch {url}: {failure}. If you can get the file in another way, "
            f"put it at {target}"
        )
        error.code = failure.code
        raise error from failure
    except OSError as error:  # network errors became TransferError: this is the disk
        raise FetchError(
            f"could not fetch {url}: writing {target} failed: {error}. "
            "Free some space or choose another folder"
        ) from error
    return digest


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
    part = Part(target.with_name(stem))
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
                digest = transfer(url, part, timeout, line.show, first=attempt == 1)
            except TransferError as failure:
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
            # A part file that a crash left damaged is not the server's fault: begin again.
            if attempt == attempts or not resumed:
                raise TransferError(
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
