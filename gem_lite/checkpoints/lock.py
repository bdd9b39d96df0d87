"""A lock between processes: a file that one of them holds."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_logger = logging.getLogger(__name__)

_POLL = 0.1  # seconds between two looks at a lock that another process holds


@contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Hold `path` as a lock; yields False at once where the file system has no locks.

    The operating system frees the lock of a process that dies, so there is no stale lock to
    detect. The holder removes the file; who waited on the removed one opens the new one.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            locked = _wait(descriptor, path)
            with suppress(FileNotFoundError):
                if not locked or os.path.samestat(os.fstat(descriptor), os.stat(path)):
                    break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        yield locked
    finally:
        with suppress(OSError):  # Windows does not remove an open file: it stays, empty
            path.unlink()
        if locked:
            _unlock(descriptor)
        os.close(descriptor)


def _wait(descriptor: int, path: Path) -> bool:
    told = False
    while True:
        try:
            if _lock(descriptor):
                return True
        except OSError as error:
            _logger.info("no file locks at %s (%s): going on without", path, error)
            return False
        if not told:
            _logger.info("another process holds %s: waiting", path)
            told = True
        time.sleep(_POLL)


if sys.platform == "win32":

    def _lock(descriptor: int) -> bool:
        """True if we have it now, False if another has; OSError where there are no locks."""
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:

    def _lock(descriptor: int) -> bool:
        """True if we have it now, False if another has; OSError where there are no locks."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _unlock(descriptor: int) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
