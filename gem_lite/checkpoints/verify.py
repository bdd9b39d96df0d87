"""Known weight files on this machine against the table and against their own digests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .fetch import hash_fits
from .files import file_sha256
from .known import default_file_name, find_file
from .others import Source
from .ours import LazyTensors, check_digest, open_file
from .records import is_checked, remember_checked
from .table import PRETRAINED, Pretrained


class Verdict(NamedTuple):
    """What a check of one known file gave."""

    row: Pretrained
    path: Path
    fits: bool | None  # None: there is nothing to hold it against
    reason: str


def check_shipped(path: Path, row: Pretrained, *, again: bool = False) -> None:
    """Hold the file that ships with the package against the table, once on this machine or `again`.

    Raises ValueError for another file. Does nothing for a row whose files are fetched.
    """
    if row.url is not None or row.sha256 is None:
        return
    if again or not is_checked(path, row.sha256):
        digest = file_sha256(path)
        if digest != row.sha256:
            raise ValueError(
                f"{path} is not the file that ships with this version of gem_lite: its SHA-256 is"
                f" {digest}, expected {row.sha256}; install it again, or give a file of your own by"
                " its path"
            )
        remember_checked(path, row.sha256)


def check_once(source: Source, row: Pretrained | None = None) -> None:
    """Hold a file against what is known of it, the first time that it is loaded on a machine.

    Raises ValueError that names the file if it was changed after it was written.
    """
    if isinstance(source.tensors, LazyTensors) and source.header is not None:
        has_digest = check_digest(source.path, source.tensors)
        if not has_digest and row is not None and row.url is not None:
            raise ValueError(f"{source.path} was written without a digest; convert it again")
    if row is not None:
        check_shipped(source.path, row)


def verify_all(cache_dir: str | os.PathLike[str] | None = None) -> Iterator[Verdict]:
    """Read every known file that is on this machine, and say whether it is what it should be."""
    for row in PRETRAINED:
        path = find_file(row, cache_dir=cache_dir)
        if path is None:
            continue
        try:
            yield Verdict(row, path, *_check(path, row))
        except (ValueError, OSError) as error:
            yield Verdict(row, path, False, str(error))


def _check(path: Path, row: Pretrained) -> tuple[bool | None, str]:
    if row.url is None:
        check_shipped(path, row, again=True)
        return True, "as shipped"
    if path.name == default_file_name(row):
        return _check_converted(path)
    digest = file_sha256(path)
    if row.sha256 is None:
        return None, f"SHA-256 {digest}; its publisher states none"
    fits = hash_fits(digest, row.sha256)
    return fits, f"SHA-256 {row.sha256}" if fits else f"SHA-256 {digest}, expected {row.sha256}"


def _check_converted(path: Path) -> tuple[bool | None, str]:
    tensors, header = open_file(path)
    if header is None:
        return False, "not a file of gem_lite's"
    if not check_digest(path, tensors, again=True):
        return None, "written without a digest; convert it again"
    return True, f"digest; its source: {header.verified}"
