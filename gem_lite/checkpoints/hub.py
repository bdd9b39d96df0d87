"""Repositories of the Hugging Face hub and local folders, named in place of an architecture."""

from __future__ import annotations

import os
import re
from pathlib import Path

from .fetch import FetchError, download
from .files import cache_folder, expanded
from .known import check_first_use
from .transfer import HUB

HUB_PREFIX, FOLDER_PREFIX = "hf-hub:", "local-dir:"  # as in open_clip

# Of each layout, in order of preference: configurations, and files of weights.
LAYOUTS = (
    (("open_clip_config.json",), ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")),
    (("config.json", "preprocessor_config.json"), ("model.safetensors", "pytorch_model.bin")),
)


def is_named_folder(model_name: str) -> bool:
    """Whether a name is of the hub or of a folder, which need no tag."""
    return model_name.startswith((HUB_PREFIX, FOLDER_PREFIX))


def named_folder(
    model_name: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> Path | None:
    """The folder behind `hf-hub:org/repository` or `local-dir:path`; None for another name.

    A repository is fetched once, into the cache; `@` and a branch, tag or commit may follow its
    name. It must hold open_clip_config.json or config.json with one file of weights beside it.
    $HF_TOKEN is sent to the hub for private and gated ones.
    Raises ValueError for a name that makes no sense, FileNotFoundError, or FetchError.
    """
    if not isinstance(model_name, str):
        return None  # what names a model is checked where it is looked up
    if model_name.startswith(FOLDER_PREFIX):
        folder = expanded(model_name.removeprefix(FOLDER_PREFIX))
        if not folder.is_dir():
            raise FileNotFoundError(f"{model_name!r}: no folder {folder}")
        return folder
    if not model_name.startswith(HUB_PREFIX):
        return None
    repository, _, revision = model_name.removeprefix(HUB_PREFIX).partition("@")
    part = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}"
    if not re.fullmatch(f"{part}/{part}", repository) or not re.fullmatch(part, revision or "main"):
        raise ValueError(
            f"{model_name!r} does not name a repository; expected hf-hub:organisation/name, with"
            " or without @revision"
        )
    name = "--".join([*repository.split("/"), *([revision] if revision else [])])
    folder = cache_folder(cache_dir) / "hub" / name
    url = f"{HUB}/{repository}/resolve/{revision or 'main'}"
    for configs, weights in LAYOUTS:
        if (folder / configs[0]).is_file() and any((folder / file).is_file() for file in weights):
            return folder
    for configs, weights in LAYOUTS:
        if _fetch_first(url, folder, configs[:1], progress):
            for config in configs[1:]:
                _fetch_first(url, folder, (config,), progress)
            if _fetch_first(url, folder, weights, progress):
                return folder
    raise FetchError(
        f"{url} has neither open_clip_config.json nor config.json with a file of weights beside it"
        " (in one piece: open_clip_model.safetensors, model.safetensors or their .bin)"
    )


def _fetch_first(
    url: str, folder: Path, names: tuple[str, ...], progress: bool | None
) -> str | None:
    """The first of the files that the repository has, fetched; None if it has none of them."""
    for name in names:
        try:
            digest = download(f"{url}/{name}", folder / name, progress=progress)
        except FetchError as error:
            if error.code != 404:
                raise
        else:
            if not name.endswith(".json"):
                check_first_use(f"{url}/{name}", digest, folder / name)
            return name
    return None
