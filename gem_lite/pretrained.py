"""The known weights: what each file is, where it comes from, and where it lies on this machine."""

from __future__ import annotations

import os
import urllib.parse
from dataclasses import dataclass
from pathlib import Path

from .config import (
    OPENAI_MEAN,
    OPENAI_STD,
    QUICKGELU_SUFFIX,
    Activation,
    fold_name,
    nearest,
)
from .fetch import FetchError, download, hash_fits

WEIGHTS_VARIABLE = "GEM_LITE_WEIGHTS"  # a folder to look in first
MIRROR_VARIABLE = "GEM_LITE_MIRROR"  # a url to fetch from: `<mirror>/<published file name>`

HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class Pretrained:
    """One row of the table. None in `mean`, `std` and `size`: the file's own header says."""

    name: str  # as available_models() lists it, with "-quickgelu" where upstream has it
    tag: str
    activation: Activation
    url: str | None  # of the published file; None: ships with the package
    sha256: str | None  # of the published file: 64 digits, or the first ones; None: not published
    licence: str  # of the weights
    source: str  # who publishes them
    mean: tuple[float, float, float] | None = OPENAI_MEAN
    std: tuple[float, float, float] | None = OPENAI_STD
    size: int | None = 448  # side that pictures are resized to, GEM's default
    aliases: tuple[str, ...] = ()  # other names of the tag

    @property
    def model(self) -> str:
        """The architecture, without the suffix: `ViT-B/16`."""
        return self.name.removesuffix(QUICKGELU_SUFFIX)


def _openai(name: str, file: str, sha256: str) -> Pretrained:
    return Pretrained(
        name=name,
        tag="openai",
        activation="quick_gelu",
        url=f"https://openaipublic.azureedge.net/clip/models/{sha256}/{file}",
        sha256=sha256,
        licence="not stated for the weights (code: MIT)",
        source="https://github.com/openai/CLIP",
    )


def _metaclip(
    name: str, tag: str, file: str, sha256: str, aliases: tuple[str, ...] = ()
) -> Pretrained:
    return Pretrained(
        name=name,
        tag=tag,
        activation="quick_gelu" if name.endswith(QUICKGELU_SUFFIX) else "gelu",
        url=f"https://dl.fbaipublicfiles.com/MMPT/metaclip/{file}",
        sha256=sha256,
        licence="CC-BY-NC-4.0",
        source="https://github.com/facebookresearch/MetaCLIP",
        aliases=aliases,
    )


def _laion(name: str, tag: str, file: str, activation: Activation = "gelu") -> Pretrained:
    """A file of open_clip's release; its name ends in the first 8 digits of its SHA-256."""
    return Pretrained(
        name=name,
        tag=tag,
        activation=activation,
        url=f"https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/{file}",
        sha256=file.rpartition("-")[2].partition(".")[0],
        licence="MIT",
        source="https://github.com/mlfoundations/open_clip",
    )


def _laion_hub(
    name: str,
    tag: str,
    repository: str,
    mean: tuple[float, float, float] = OPENAI_MEAN,
    std: tuple[float, float, float] = OPENAI_STD,
) -> Pretrained:
    return Pretrained(
        name=name,
        tag=tag,
        activation="gelu",
        url=f"https://huggingface.co/{repository}/resolve/main/open_clip_model.safetensors",
        sha256=None,
        mean=mean,
        std=std,
        licence="MIT",
        source=f"https://huggingface.co/{repository}",
    )


def _tiny(tag: str) -> Pretrained:
    """A small model that ships with the package."""
    return Pretrained(
        name="tiny-emoji",
        tag=tag,
        activation="quick_gelu",
        url=None,
        sha256=None,
        licence="see weights/README.md",
        source="gem_lite",
        mean=None,
        std=None,
        size=None,
    )


_FULLCC = ("metaclip_2_5b", "metaclip_2pt5b")

# fmt: off
PRETRAINED: tuple[Pretrained, ...] = (
    _openai("ViT-B/32", "ViT-B-32.pt",
            "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    # Upstream builds plain GELU for the next two, which their file names contradict.
    _laion("ViT-B/32", "laion400m_e31", "vit_b_32-quickgelu-laion400m_e31-d867053b.pt",
           "quick_gelu"),
    _laion("ViT-B/32", "laion400m_e32", "vit_b_32-quickgelu-laion400m_e32-46683a32.pt",
           "quick_gelu"),
    _laion("ViT-B/32", "laion2b_e16", "vit_b_32-laion2b_e16-af8dbd0c.pth"),
    _laion_hub("ViT-B/32", "laion2b_s34b_b79k", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K"),
    _metaclip("ViT-B/32-quickgelu", "metaclip_400m", "b32_400m.pt",
              "3c68642594a329afc1ec0fe489ee2b58ab19c9d0556ccf7c404a59baa0762d71"),
    _metaclip("ViT-B/32-quickgelu", "metaclip_fullcc", "b32_fullcc2.5b.pt",
              "885b7ec11fe07a9826e2e6812d70e5011918e32fe9b12136b49d5dded92b4386", _FULLCC),

    _openai("ViT-B/16", "ViT-B-16.pt",
            "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    _laion("ViT-B/16", "laion400m_e31", "vit_b_16-laion400m_e31-00efa78f.pt"),
    _laion("ViT-B/16", "laion400m_e32", "vit_b_16-laion400m_e32-55e67d44.pt"),
    _laion_hub("ViT-B/16", "laion2b_s34b_b88k", "laion/CLIP-ViT-B-16-laion2B-s34B-b88K"),
    _metaclip("ViT-B/16-quickgelu", "metaclip_400m", "b16_400m.pt",
              "68dfb5996c52a8f4fecb9bd16601e97e1895236645082778bd9cede8429a8d49"),
    _metaclip("ViT-B/16-quickgelu", "metaclip_fullcc", "b16_fullcc2.5b.pt",
              "512ea0fb9f2cf88d027e96e4674247a1a91a96af18abc2e2fcdb8008c551e04b", _FULLCC),

    _laion("ViT-B/16-plus-240", "laion400m_e31", "vit_b_16_plus_240-laion400m_e31-8fb26589.pt"),
    _laion("ViT-B/16-plus-240", "laion400m_e32", "vit_b_16_plus_240-laion400m_e32-699c4b84.pt"),

    _openai("ViT-L/14", "ViT-L-14.pt",
            "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    _laion("ViT-L/14", "laion400m_e31", "vit_l_14-laion400m_e31-69988bb6.pt"),
    _laion("ViT-L/14", "laion400m_e32", "vit_l_14-laion400m_e32-3d133497.pt"),
    _laion_hub("ViT-L/14", "laion2b_s32b_b82k", "laion/CLIP-ViT-L-14-laion2B-s32B-b82K",
               HALF, HALF),
    _metaclip("ViT-L/14-quickgelu", "metaclip_400m", "l14_400m.pt",
              "51c782959f920b030779e494517b8d545f56794df6b0a2796a4c310455a361be"),
    _metaclip("ViT-L/14-quickgelu", "metaclip_fullcc", "l14_fullcc2.5b.pt",
              "ce24750710544ee288ef0abdead2016730da1893a1d07447bda3a75e1c148f97", _FULLCC),

    _openai("ViT-L/14-336", "ViT-L-14-336px.pt",
            "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),

    _metaclip("ViT-H/14-quickgelu", "metaclip_fullcc", "h14_fullcc2.5b.pt",
              "1286807d5cc8d9a0b12563b47474efb53b9522eb3d7eac5a9a5d39c3a776ad5c", _FULLCC),
    _metaclip("ViT-H/14", "metaclip_altogether", "h14_v1.2_altogether.pt",
              "c4ee0a62c58a38867df142d7be3b0aa1988d6ac49293971b177a03ead6092cc6",
              ("metaclip_v1_2_altogether",)),
    _metaclip("ViT-bigG/14-quickgelu", "metaclip_fullcc", "G14_fullcc2.5b.pt",
              "5fe2b83c7439e0caa2c855dec9a2eaa54f17f3ced288218564b640ca7953447f", _FULLCC),

    _tiny("v1"),
    _tiny("v2"),
)
# fmt: on


def available_models() -> list[tuple[str, str]]:
    """The known (model_name, pretrained) pairs, under upstream's names."""
    return [(row.name, row.tag) for row in PRETRAINED]


def find_row(model_name: str, pretrained: str) -> Pretrained | None:
    """The row of a pair, or None if the pair is unknown.

    The name may be spelt with `/` or `-` (also `ViT-L/14@336px`), with or without `-quickgelu`;
    the tag may be one of the row's aliases. The row knows the activation, so the suffix is not
    needed, but one that contradicts the row raises ValueError.
    """
    _check_text(model_name, pretrained)
    folded = fold_name(model_name)
    tag = _fold_tag(pretrained)
    for row in PRETRAINED:
        if fold_name(row.model) == folded.removesuffix(QUICKGELU_SUFFIX) and tag in _tags(row):
            if folded.endswith(QUICKGELU_SUFFIX) and row.activation == "gelu":
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
    folded = fold_name(model_name).removesuffix(QUICKGELU_SUFFIX)
    tags = [each.tag for each in PRETRAINED if fold_name(each.model) == folded]
    if tags:
        hint = f"tags of {model_name!r}: {', '.join(map(repr, tags))}"
    else:
        hint = f"nearest known models: {nearest(model_name, list(dict(pairs)))}"
    raise ValueError(
        f"unknown pretrained weights {pretrained!r} for model {model_name!r}; {hint}. "
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


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """`cache_dir`, else `gem_lite` in $XDG_CACHE_HOME, else in ~/.cache. Makes no folder."""
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # unset, empty, or relative, which the XDG rules say to ignore
        base = os.path.expanduser("~/.cache")
    return Path(base, "gem_lite")


def search_folders(cache_dir: str | os.PathLike[str] | None = None) -> list[Path]:
    """Where weight files are looked for, first to last.

    The folder in $GEM_LITE_WEIGHTS; `weights/` beside the package, as in a checkout; `weights/`
    inside the package, as in a wheel; the user's cache. Only the first has to exist, if set:
    FileNotFoundError otherwise.
    """
    folders = []
    chosen = os.environ.get(WEIGHTS_VARIABLE)
    if chosen:
        folder = Path(chosen).expanduser()
        if not folder.is_dir():
            raise FileNotFoundError(
                f"{WEIGHTS_VARIABLE} is set to {chosen!r}, which is no folder; "
                "make it, or unset the variable"
            )
        folders.append(folder)
    package = Path(__file__).resolve().parent
    folders += [package.parent / "weights", package / "weights", cache_folder(cache_dir)]
    return folders


def find_file(
    row: Pretrained | str, *, cache_dir: str | os.PathLike[str] | None = None
) -> Path | None:
    """The file of a row (or of this name) in the first of `search_folders` that has it, or None.

    In each folder the converted file comes before the published one.
    """
    wanted = [row] if isinstance(row, str) else [default_file_name(row), published_file_name(row)]
    for folder in search_folders(cache_dir):
        for name in wanted:
            if name is not None and (folder / name).is_file():
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
    try:
        download(url, target, sha256=row.sha256, progress=progress, allow_http=mirror is not None)
    except FetchError as error:
        raise FetchError(
            f"{error}. A folder named in {WEIGHTS_VARIABLE} is searched too, and "
            f"{MIRROR_VARIABLE} may name another server"
        ) from error
    return target


def _check_text(model_name: str, pretrained: str) -> None:
    for value, what in ((model_name, "model name"), (pretrained, "pretrained tag")):
        if not isinstance(value, str):
            raise TypeError(f"{what} is {value!r}; expected a string")


def _fold_tag(tag: str) -> str:
    return tag.lower().replace("-", "_")


def _tags(row: Pretrained) -> set[str]:
    return {_fold_tag(tag) for tag in (row.tag, *row.aliases)}
