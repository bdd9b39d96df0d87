"""Files: locks between processes, writing by one rename, SHA-256. Needs no torch."""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_logger = logging.getLogger(__name__)

CHUNK = 1 << 20  # bytes read at once


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Hold `path` as a lock between processes; yields False where no lock can be had.

    That is so on file systems without locks, and in folders that cannot be written. The operating
    system frees the lock of a process that dies; the empty file stays.
    """
    from filelock import FileLock, Timeout  # torch requires it

    lock = FileLock(path)
    locked = True
    try:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            _logger.info("another process holds %s: waiting", path)
            lock.acquire()
    # The second is how filelock reports a file system that knows no locks.
    except (OSError, NotImplementedError) as error:
        _logger.info("no lock at %s (%s): continuing without one", path, error)
        locked = False
    try:
        yield locked
    finally:
        lock.release()


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` when the block ends well.

    When it does not, the temporary file is removed, and what was at `path` is still there.
    Raises FileNotFoundError when the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write {path.name} to; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)  # less the umask
    mode = os.fstat(descriptor).st_mode
    os.close(descriptor)
    try:
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file of its own there
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def hash_file(file: IO[bytes]) -> hashlib._Hash:
    """The SHA-256 of an open file from where it stands, to be updated further."""
    hasher = hashlib.sha256()
    while chunk := file.read(CHUNK):
        hasher.update(chunk)
    return hasher


def file_sha256(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file as 64 hex digits."""
    with open(path, "rb") as file:
        return hash_file(file).hexdigest()


def shown(content: object) -> str:
    """What a file holds, or an error says of it, in one line of at most 80 characters."""
    text = str(content) if isinstance(content, Exception) else repr(content)
    text = " ".join(text.split())
    return text if len(text) <= 80 else f"{text[:77]}..."


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """`cache_dir`, else `gem_lite` in $XDG_CACHE_HOME, else in ~/.cache. Makes no folder."""
    if cache_dir is not None:
        return expanded(cache_dir)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # unset, empty, or relative, which the XDG rules say to ignore
        base = os.path.expanduser("~/.cache")
    return Path(base, "gem_lite")


def expanded(path: str | os.PathLike[str]) -> Path:
    """The path with `~` and `~user` resolved; ValueError for a user who does not exist."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{os.fspath(path)!r}: {error}") from error
