"""From a tag or path to a file, and from a file to what is known of it."""

import os
import warnings
from dataclasses import replace
from pathlib import Path

from ..method.config import OPENAI_MEAN, OPENAI_STD, Activation
from ..method.methods.gem import GEMConfig
from .convert import convert, resolve_config
from .files import cache_folder, exclusive, expanded
from .header import Header
from .known import (
    default_file_name,
    fetch_source,
    find_file,
    find_row,
    known_row,
    row_by_hash,
)
from .others import Source, read_source
from .table import Pretrained
from .verify import check_once

DEFAULT_SIZE = 448  # GEM's input side for CLIPs trained at 224 to 336
CHECKPOINT_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")


def locate(
    model_name: str,
    pretrained: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    mirror: str | None = None,
) -> tuple[Path, Pretrained | None]:
    """The file behind a tag or path, fetched and converted if need be; and the tag's row.

    Raises ValueError for an unknown tag, FileNotFoundError for a path where nothing is, FetchError.
    """
    row = find_row(model_name, pretrained) if isinstance(pretrained, str) else None
    if row is None:
        path = expanded(pretrained)
        if path.exists():
            return path, None
        text = os.fspath(pretrained)
        if (
            isinstance(pretrained, os.PathLike)
            or os.sep in text
            or path.suffix in (CHECKPOINT_ENDINGS)
        ):
            raise FileNotFoundError(f"no checkpoint at {path}")
        row = known_row(model_name, text)
    file = find_file(row, cache_dir=cache_dir)
    return file or _fetch_and_convert(row, cache_dir, mirror), row


def _fetch_and_convert(
    row: Pretrained, cache_dir: str | os.PathLike[str] | None, mirror: str | None
) -> Path:
    if row.url is None:
        return fetch_source(row, cache_dir=cache_dir)  # says where the shipped file was looked for
    output = cache_folder(cache_dir) / default_file_name(row)
    output.parent.mkdir(parents=True, exist_ok=True)
    # One process at a time: the others wait here, and then find the converted file.
    with exclusive(output.with_name(output.name + ".lock")):
        if (file := find_file(row, cache_dir=cache_dir)) is not None:
            return file
        fetched = fetch_source(row, cache_dir=cache_dir, mirror=mirror)
        source = read_source(fetched)
        convert(source, output, header_for(source, row.name, row))
        fetched.unlink(missing_ok=True)  # the converted file holds all of it
    return output


def header_for(
    source: Source,
    model_name: str,
    row: Pretrained | None = None,
    *,
    activation: Activation | None = None,
    tag: str | None = None,
) -> Header:
    """What is known of a checkpoint: from itself, from the table, from arguments.

    A file whose hash is in the table is known by it, whatever it is called. Raises ValueError when
    sources contradict each other, when nothing tells the activation, or when the tensors don't fit.
    """
    claims = dict(source.claims)
    if row is not None:
        claims[f"the tag {row.tag!r}"] = row.activation
    if (own := source.header) is not None:
        source = replace(source, claims=claims)
        config = resolve_config(source, model_name, activation=activation)
        check_once(source, row)
        return replace(own, config=config)
    sha256 = source.sha256()
    by_hash = row_by_hash(sha256)
    known = row or by_hash
    if by_hash is not None:
        claims[f"the file's hash, which is that of {by_hash.name} {by_hash.tag}"] = (
            by_hash.activation
        )
    source = replace(source, claims=claims)
    config = resolve_config(source, model_name, activation=activation)
    verified = _verified(source, sha256, row, by_hash)
    mean, std = source.mean or OPENAI_MEAN, source.std or OPENAI_STD
    if known is not None and known.mean is not None and known.std is not None:
        mean, std = known.mean, known.std
    return Header(
        model=known.model if known else model_name,
        pretrained=known.tag if known else tag or source.path.name,
        config=config,
        gem=GEMConfig(blocks=min(6, config.image.layers)),
        size=(known.size if known else None) or DEFAULT_SIZE,
        mean=mean,
        std=std,
        source=(by_hash.url if by_hash else None) or source.path.name,
        sha256=sha256,
        verified=verified,
        licence=known.licence if known else "unknown",
    )


def _verified(
    source: Source, sha256: str, row: Pretrained | None, by_hash: Pretrained | None
) -> str:
    if by_hash is not None and (row is None or row is by_hash):
        full = by_hash.sha256 == sha256
        return "sha256" if full else f"sha256 prefix {by_hash.sha256}"
    if row is None or row.sha256 is None:
        return "unverified"
    note = f"differs from the published SHA-256 {row.sha256}"
    warnings.warn(
        f"{source.path} has SHA-256 {sha256}, which {note} of {row.name} {row.tag}; it is used"
        " all the same, and a converted file's header says so",
        stacklevel=4,
    )
    return note
