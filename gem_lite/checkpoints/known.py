"""The known weights: by name, tag and hash, and where their files are on this machine."""

from __future__ import annotations

import os
import urllib.parse
from pathlib import Path
from typing import Any

from ..method.config import QUICKGELU_SUFFIX, fold_name, nearest, split_name
from .fetch import FetchError, download, hash_fits
from .files import cache_folder, expanded
from .records import first_digest, records_file
from .table import HUB_FILES, PRETRAINED, Pretrained

WEIGHTS_VARIABLE = "GEM_LITE_WEIGHTS"  # a folder to look in first
MIRROR_VARIABLE = "GEM_LITE_MIRROR"  # a url to fetch from: `<mirror>/<published file name>`


def available_models() -> list[tuple[str, str]]:
    """The known (model_name, pretrained) pairs, under upstream's names."""
    return [(row.name, row.tag) for row in PRETRAINED]


def first_tag(model: str) -> str:
    """The first tag of a model, to take by default. Raises ValueError for an unknown name."""
    for name, tag in available_models():
        if find_row(model, tag) is not None or name.lower() == model.lower():
            return tag
    names = list(dict(available_models()))
    raise ValueError(
        f"unknown model {model!r}; nearest known models: {nearest(model, names)}; gem-lite models"
        " lists all"
    )


def find_row(model_name: str, pretrained: str) -> Pretrained | None:
    """The row of a pair, or None if the pair is unknown.

    The name may be spelt with `/` or `-` (also `ViT-L/14@336px`), with or without `-quickgelu`;
    the tag may be one of the row's aliases. The row knows the activation, so the suffix is not
    needed, but one that contradicts the row raises ValueError.
    """
    _check_text(model_name, pretrained)
    folded, quickgelu = split_name(model_name)
    tag = _fold_tag(pretrained)
    for row in PRETRAINED:
        if fold_name(row.model) == folded and tag in _tags(row):
            if quickgelu and row.activation == "gelu":
                raise ValueError(
                    f"{model_name!r} asks for QuickGELU, but {row.tag!r} of {row.model!r} was "
                    f"trained with plain GELU: leave out {QUICKGELU_SUFFIX!r}"
                )
            return row
    return None


def known_row(model_name: str, pretrained: str) -> Pretrained:
    """The row of a pair; ValueError that lists the nearest known ones if there is none."""
    row = find_row(model_name, pretrained)
    if row is not None:
        return row
    pairs = available_models()
    folded, _ = split_name(model_name)
    tags = [row.tag for row in PRETRAINED if fold_name(row.model) == folded]
    if tags:
        hint = f"tags of {model_name!r}: {', '.join(map(repr, tags))}"
        wrong = f"pretrained weights {pretrained!r} for model {model_name!r}"
    else:
        hint = f"nearest known models: {nearest(model_name, list(dict(pairs)))}"
        wrong = f"model {model_name!r}"
    raise ValueError(
        f"unknown {wrong}; {hint}. "
        f"available_models() lists all {len(pairs)} pairs; your own file goes in by its path"
    )


def row_by_hash(sha256: str) -> Pretrained | None:
    """The row whose published file has this SHA-256 (64 hex digits), or None."""
    for row in PRETRAINED:
        if row.sha256 is not None and hash_fits(sha256.lower(), row.sha256):
            return row
    return None


def default_file_name(row: Pretrained) -> str:
    """Name of the converted file: `ViT-B-16-openai.safetensors`."""
    return f"{row.model}-{row.tag}.safetensors".replace("/", "-").replace(" ", "-")


def published_file_name(row: Pretrained) -> str | None:
    """Name of the file as published: `ViT-B-16.pt`; None where nothing is published.

    The hub calls every file `open_clip_model.safetensors`, so the repository's name and a dash
    are put before it: `CLIP-ViT-B-16-laion2B-s34B-b88K-open_clip_model.safetensors`.
    """
    if row.url is None:
        return None
    parts = urllib.parse.urlsplit(row.url)
    steps = parts.path.split("/")
    if parts.hostname == "huggingface.co":
        return f"{steps[2]}-{steps[-1]}"
    return steps[-1]


def search_folders(cache_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Where weight files are looked for, first to last.

    The folder in $GEM_LITE_WEIGHTS; `weights/` beside the package, as in a checkout, inside it, and
    in a wheel's data; the user's cache. Only the first has to exist, if set: FileNotFoundError
    otherwise.
    """
    folders = []
    chosen = os.environ.get(WEIGHTS_VARIABLE)
    if chosen:
        folder = expanded(chosen)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{WEIGHTS_VARIABLE} is set to {chosen!r}, which is not a folder; "
                "make it, or unset the variable"
            )
        folders.append(folder)
    package = Path(__file__).resolve().parents[1]
    folders += [place / "weights" for place in (package.parent, package, package / "data")]
    return [*folders, cache_folder(cache_dir)]


def find_file(
    row: Pretrained | str, *, cache_dir: str | os.PathLike[str] | None = None
) -> Path | None:
    """The file of a row (or of this name) in the first of `search_folders` that has it, or None.

    In each folder the converted file comes before the published one.
    """
    names = [row] if isinstance(row, str) else [default_file_name(row)]
    if isinstance(row, Pretrained) and (published := published_file_name(row)):
        names += [published, published.replace(*HUB_FILES)]
    for folder in search_folders(cache_dir):
        for name in names:
            if (folder / name).is_file():
                return folder / name
    return None


def fetch_source(
    row: Pretrained,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    mirror: str | None = None,
    progress: bool | None = None,
) -> Path:
    """Download the published file of a row into the cache, checked against its hash.

    A file that lies there already and fits the hash is returned as it is. With `mirror`, else
    $GEM_LITE_MIRROR, the url is `<mirror>/<published_file_name(row)>`; a mirror may be plain
    http://, everything else is https. `progress` as in `fetch.download`.
    Raises FetchError, and FileNotFoundError for a row without a published file.
    """
    name = published_file_name(row)
    if name is None or row.url is None:
        places = ", ".join(str(folder) for folder in search_folders(cache_dir))
        raise FileNotFoundError(
            f"{row.name!r} {row.tag!r} has no url to fetch from, it ships with gem_lite; "
            f"{default_file_name(row)} is in none of {places}"
        )
    mirror = mirror or os.environ.get(MIRROR_VARIABLE) or None
    url = row.url if mirror is None else f"{mirror.rstrip('/')}/{name}"
    target = cache_folder(cache_dir) / name
    options: dict[str, Any] = {"progress": progress, "allow_http": mirror is not None}
    try:
        try:
            digest = download(url, target, sha256=row.sha256, **options)
        except FetchError as error:
            if error.code != 404 or not name.endswith(HUB_FILES[0]):
                raise
            # Not every repository has safetensors.
            target = target.with_name(name.replace(*HUB_FILES))
            digest = download(url.replace(*HUB_FILES), target, sha256=row.sha256, **options)
    except FetchError as error:
        raise FetchError(
            f"{error}. A folder named in {WEIGHTS_VARIABLE} is searched too, and "
            f"{MIRROR_VARIABLE} may name another server"
        ) from error
    if row.sha256 is None or len(row.sha256) < 64:  # then the first file that came is the measure
        check_first_use(f"{row.model} {row.tag} {target.name}", digest, target)
    return target


def check_first_use(source: str, digest: str, path: Path) -> None:
    """Raise FetchError, and remove the file, if the source gave another one on this machine."""
    if (first := first_digest(source, digest)) != digest:
        path.unlink(missing_ok=True)
        raise FetchError(
            f"{source} was fetched before, with SHA-256 {first}, and now has {digest}; the file was"
            f" deleted. If its publisher changed it, remove the entry from {records_file()}"
        )


def _check_text(model_name: str, pretrained: str) -> None:
    for value, what in ((model_name, "model name"), (pretrained, "pretrained tag")):
        if not isinstance(value, str):
            raise TypeError(f"{what} is {value!r}; expected a string")


def _fold_tag(tag: str) -> str:
    return tag.lower().replace("-", "_")


def _tags(row: Pretrained) -> set[str]:
    return {_fold_tag(tag) for tag in (row.tag, *row.aliases)}
