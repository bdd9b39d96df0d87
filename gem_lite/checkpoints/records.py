"""What this machine remembers of weight files: which were checked, and what a source gave first.

All of it lies in records.json in the cache folder. Where that cannot be read or written, nothing is
remembered: files are checked anew.
"""

import json
import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from .files import atomic_file, cache_folder, exclusive

_logger = logging.getLogger(__name__)

MOST = 1000  # entries of each kind, the latest
LARGEST = 1 << 20  # bytes


def records_file() -> Path:
    """Where the records are."""
    return cache_folder() / "records.json"


def is_checked(path: Path, digest: str) -> bool:
    """Whether the file was found to have this digest, and has not been touched since."""
    with suppress(OSError):
        return _read("checked").get(str(path.resolve())) == _state(path, digest)
    return False


def remember_checked(path: Path, digest: str) -> None:
    """Note that the file has this digest."""
    with suppress(OSError):
        _add("checked", str(path.resolve()), _state(path, digest))


def first_digest(source: str, digest: str) -> str:
    """The digest that the source's file had when it was first fetched on this machine."""
    first = _read("sources").get(source)
    if isinstance(first, str):
        return first
    with suppress(OSError):
        _add("sources", source, digest)
    return digest


def _state(path: Path, digest: str) -> list[Any]:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, digest]


def _read(kind: str) -> dict[str, Any]:
    with suppress(OSError, ValueError, RecursionError):
        with records_file().open(encoding="utf-8") as file:
            content = json.loads(file.read(LARGEST))
        entries = content.get(kind) if isinstance(content, dict) else None
        if isinstance(entries, dict):
            return entries
    return {}


def _add(kind: str, key: str, value: Any) -> None:
    file = records_file()
    os.makedirs(file.parent, exist_ok=True)
    with exclusive(file.with_name(file.name + ".lock")):
        content = {name: _read(name) for name in ("checked", "sources")}
        content[kind].pop(key, None)
        content[kind] = dict([*content[kind].items(), (key, value)][-MOST:])
        with atomic_file(file) as temporary:
            temporary.write_text(json.dumps(content, indent=1), encoding="utf-8")
