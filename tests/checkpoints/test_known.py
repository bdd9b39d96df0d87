"""The table of known weights, and where their files are looked for and fetched from."""

import dataclasses
import hashlib
import http.server
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gem_lite.checkpoints import fetch
from gem_lite.checkpoints import known as pretrained
from gem_lite.checkpoints.fetch import FetchError
from gem_lite.checkpoints.known import (
    PRETRAINED,
    Pretrained,
    available_models,
    cache_folder,
    default_file_name,
    fetch_source,
    find_file,
    find_row,
    known_row,
    published_file_name,
    row_by_hash,
    search_folders,
)
from gem_lite.method.config import ARCHITECTURES
from gem_lite.tools.cli import main

# Written down from the publishers' own lists, apart from the package's table:
# model, tag, published file or hub repository, (prefix of the) SHA-256, activation.
FACTS = """
ViT-B/32 openai ViT-B-32.pt
    40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af quick_gelu
ViT-B/16 openai ViT-B-16.pt
    5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f quick_gelu
ViT-L/14 openai ViT-L-14.pt
    b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836 quick_gelu
ViT-L/14-336 openai ViT-L-14-336px.pt
    3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02 quick_gelu
ViT-B/32 metaclip_400m b32_400m.pt
    3c68642594a329afc1ec0fe489ee2b58ab19c9d0556ccf7c404a59baa0762d71 quick_gelu
ViT-B/32 metaclip_fullcc b32_fullcc2.5b.pt
    885b7ec11fe07a9826e2e6812d70e5011918e32fe9b12136b49d5dded92b4386 quick_gelu
ViT-B/16 metaclip_400m b16_400m.pt
    68dfb5996c52a8f4fecb9bd16601e97e1895236645082778bd9cede8429a8d49 quick_gelu
ViT-B/16 metaclip_fullcc b16_fullcc2.5b.pt
    512ea0fb9f2cf88d027e96e4674247a1a91a96af18abc2e2fcdb8008c551e04b quick_gelu
ViT-L/14 metaclip_400m l14_400m.pt
    51c782959f920b030779e494517b8d545f56794df6b0a2796a4c310455a361be quick_gelu
ViT-L/14 metaclip_fullcc l14_fullcc2.5b.pt
    ce24750710544ee288ef0abdead2016730da1893a1d07447bda3a75e1c148f97 quick_gelu
ViT-H/14 metaclip_fullcc h14_fullcc2.5b.pt
    1286807d5cc8d9a0b12563b47474efb53b9522eb3d7eac5a9a5d39c3a776ad5c quick_gelu
ViT-bigG/14 metaclip_fullcc G14_fullcc2.5b.pt
    5fe2b83c7439e0caa2c855dec9a2eaa54f17f3ced288218564b640ca7953447f quick_gelu
ViT-H/14 metaclip_altogether h14_v1.2_altogether.pt
    c4ee0a62c58a38867df142d7be3b0aa1988d6ac49293971b177a03ead6092cc6 gelu
ViT-B/32 laion400m_e31 vit_b_32-quickgelu-laion400m_e31-d867053b.pt d867053b quick_gelu
ViT-B/32 laion400m_e32 vit_b_32-quickgelu-laion400m_e32-46683a32.pt 46683a32 quick_gelu
ViT-B/32 laion2b_e16 vit_b_32-laion2b_e16-af8dbd0c.pth af8dbd0c gelu
ViT-B/32 laion2b_s34b_b79k laion/CLIP-ViT-B-32-laion2B-s34B-b79K - gelu
ViT-B/16 laion400m_e31 vit_b_16-laion400m_e31-00efa78f.pt 00efa78f gelu
ViT-B/16 laion400m_e32 vit_b_16-laion400m_e32-55e67d44.pt 55e67d44 gelu
ViT-B/16 laion2b_s34b_b88k laion/CLIP-ViT-B-16-laion2B-s34B-b88K - gelu
ViT-B/16-plus-240 laion400m_e31 vit_b_16_plus_240-laion400m_e31-8fb26589.pt 8fb26589 gelu
ViT-B/16-plus-240 laion400m_e32 vit_b_16_plus_240-laion400m_e32-699c4b84.pt 699c4b84 gelu
ViT-L/14 laion400m_e31 vit_l_14-laion400m_e31-69988bb6.pt 69988bb6 gelu
ViT-L/14 laion400m_e32 vit_l_14-laion400m_e32-3d133497.pt 3d133497 gelu
ViT-L/14 laion2b_s32b_b82k laion/CLIP-ViT-L-14-laion2B-s32B-b82K - gelu
"""
_WORDS = FACTS.split()
ROWS = [tuple(_WORDS[start : start + 5]) for start in range(0, len(_WORDS), 5)]

# What upstream's own available_models() prints.
UPSTREAM = """
ViT-B/32: openai laion400m_e31 laion400m_e32 laion2b_e16 laion2b_s34b_b79k
ViT-B/32-quickgelu: metaclip_400m metaclip_fullcc
ViT-B/16: openai laion400m_e31 laion400m_e32 laion2b_s34b_b88k
ViT-B/16-quickgelu: metaclip_400m metaclip_fullcc
ViT-B/16-plus-240: laion400m_e31 laion400m_e32
ViT-L/14: openai laion400m_e31 laion400m_e32 laion2b_s32b_b82k
ViT-L/14-quickgelu: metaclip_400m metaclip_fullcc
ViT-L/14-336: openai
"""


def row(model: str = "ViT-B/16", tag: str = "openai") -> Pretrained:
    return known_row(model, tag)


# The table


@pytest.mark.parametrize("model, tag, place, sha256, activation", ROWS)
def test_table_against_the_facts(
    model: str, tag: str, place: str, sha256: str, activation: str
) -> None:
    found = known_row(model, tag)
    assert (found.model, found.tag, found.activation) == (model, tag, activation)
    assert found.sha256 == (None if sha256 == "-" else sha256)
    assert found.size == 448 and found.url is not None
    if tag == "openai":
        base = f"https://openaipublic.azureedge.net/clip/models/{sha256}/"
    elif tag.startswith("metaclip"):
        base = "https://dl.fbaipublicfiles.com/MMPT/metaclip/"
    else:
        base = "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/"
    hub = f"https://huggingface.co/{place}/resolve/main/open_clip_model.safetensors"
    assert found.url == (hub if sha256 == "-" else base + place)
    licence = {"o": "not stated", "m": "CC-BY-NC-4.0", "l": "MIT"}[tag[0]]
    assert found.licence.startswith(licence)
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    usual = (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    )
    assert (found.mean, found.std) == (half if tag == "laion2b_s32b_b82k" else usual)


def test_facts_are_all_there() -> None:
    """The other rows are compared with open_clip's own table, in test_open_clip.py."""
    pairs = {(each.model, each.tag) for each in PRETRAINED}
    assert len(ROWS) == 25 and {(model, tag) for model, tag, *_ in ROWS} <= pairs
    assert len(pairs) == len(PRETRAINED) == 25 + 37 + 2


def test_available_models() -> None:
    pairs = available_models()
    upstream = [
        (line.partition(": ")[0], tag)
        for line in UPSTREAM.strip().split("\n")
        for tag in line.partition(": ")[2].split()
    ]
    assert set(upstream) < set(pairs) and ("ViT-g/14", "laion2b_s34b_b88k") in pairs
    assert len(set(pairs)) == len(pairs)
    for name, tag in pairs:
        found = known_row(name, tag)
        assert (found.name, found.tag) == (name, tag)


def test_models_are_architectures() -> None:
    assert {each.model for each in PRETRAINED} - set(ARCHITECTURES) == {"tiny-emoji"}


def test_shapes_of_the_columns() -> None:
    for each in PRETRAINED:
        assert each.sha256 is None or re.fullmatch("[0-9a-f]{8}|[0-9a-f]{64}", each.sha256)
        assert each.url is None or re.fullmatch(r"https://[\w./-]+", each.url)
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRETRAINED[0].tag = "other"  # type: ignore[misc]


def test_file_names_are_unique() -> None:
    names = [default_file_name(each) for each in PRETRAINED]
    names += [name for each in PRETRAINED if (name := published_file_name(each))]
    assert len(set(map(str.lower, names))) == 2 * 62 + 2
    assert all(re.fullmatch(r"[\w.-]+", name) for name in names)


@pytest.mark.parametrize(
    "model, tag, ours, published",
    [
        ("ViT-B/16", "openai", "ViT-B-16-openai.safetensors", "ViT-B-16.pt"),
        ("ViT-L/14-336", "openai", "ViT-L-14-336-openai.safetensors", "ViT-L-14-336px.pt"),
        ("ViT-B/32", "metaclip_400m", "ViT-B-32-metaclip_400m.safetensors", "b32_400m.pt"),
        (
            "ViT-L/14",
            "laion2b_s32b_b82k",
            "ViT-L-14-laion2b_s32b_b82k.safetensors",
            "CLIP-ViT-L-14-laion2B-s32B-b82K-open_clip_model.safetensors",
        ),
        ("tiny-emoji", "v1", "tiny-emoji-v1.safetensors", None),
        ("tiny-emoji", "v2", "tiny-emoji-v2.safetensors", None),
    ],
)
def test_file_names(model: str, tag: str, ours: str, published: str | None) -> None:
    assert default_file_name(row(model, tag)) == ours
    assert published_file_name(row(model, tag)) == published


def test_readme_of_the_weights() -> None:
    text = (Path(__file__).parents[2] / "weights" / "README.md").read_text(encoding="utf-8")
    lines = text.split("\n")
    for each in PRETRAINED:
        if each.url is not None:
            names = f"`{published_file_name(each)}`", f"`{default_file_name(each)}`"
            parts = (f"| {each.name} | {each.tag} |", *names, f"| {each.sha256 or 'none'} |")
            assert any(all(part in line for part in parts) for line in lines), each
    assert "## tiny-emoji" in lines


# Names


@pytest.mark.parametrize(
    "spelling, tag, name",
    [
        ("ViT-B-16", "openai", "ViT-B/16"),
        ("vit-b/16", "OpenAI", "ViT-B/16"),
        ("ViT-B/16-quickgelu", "openai", "ViT-B/16"),
        ("ViT-B-32-quickgelu", "laion400m_e31", "ViT-B/32"),
        ("ViT-B/16", "metaclip_400m", "ViT-B/16-quickgelu"),
        ("ViT-B-16-quickgelu", "metaclip-fullcc", "ViT-B/16-quickgelu"),
        ("ViT-L/14", "metaclip_2_5b", "ViT-L/14-quickgelu"),
        ("ViT-bigG-14", "metaclip_2pt5b", "ViT-bigG/14-quickgelu"),
        ("ViT-H-14", "metaclip_v1_2_altogether", "ViT-H/14"),
        ("ViT-L/14@336px", "openai", "ViT-L/14-336"),
        ("ViT-L-14-336", "openai", "ViT-L/14-336"),
        ("ViT-L-14-336-quickgelu", "openai", "ViT-L/14-336"),
        ("ViT-B-16-plus-240", "laion400m_e32", "ViT-B/16-plus-240"),
        ("tiny-emoji", "v1", "tiny-emoji"),
    ],
)
def test_spellings(spelling: str, tag: str, name: str) -> None:
    assert known_row(spelling, tag).name == name


@pytest.mark.parametrize(
    "name, tag",
    [("ViT-B/16-quickgelu", "laion400m_e31"), ("ViT-H-14-quickgelu", "metaclip_altogether")],
)
def test_suffix_that_contradicts_the_weights(name: str, tag: str) -> None:
    with pytest.raises(ValueError, match="asks for QuickGELU.*plain GELU"):
        find_row(name, tag)


def test_unknown_tag_lists_the_tags_of_the_model() -> None:
    assert find_row("ViT-L/14-336", "laion400m_e31") is None
    with pytest.raises(ValueError, match="tags of 'ViT-L-14-336': 'openai'"):
        known_row("ViT-L-14-336", "laion400m_e31")
    with pytest.raises(ValueError, match="'metaclip_400m'"):
        known_row("ViT-B/16", "metaclip400m")


def test_unknown_model_lists_the_nearest() -> None:
    assert find_row("ViT-B/61", "openai") is None
    with pytest.raises(ValueError, match="nearest known models: 'ViT-B/16'"):
        known_row("ViT-B/61", "openai")
    with pytest.raises(ValueError, match="available_models"):
        known_row("tiny-emojis", "v1")


@pytest.mark.parametrize("pair", [(None, "openai"), ("ViT-B/16", None), ("ViT-B/16", Path("x"))])
def test_not_text(pair: Any) -> None:
    with pytest.raises(TypeError, match="expected a string"):
        find_row(*pair)


def test_row_by_hash() -> None:
    full = row().sha256
    assert full is not None
    assert row_by_hash(full) is row()
    assert row_by_hash(full.upper()) is row()
    assert row_by_hash("d867053b" + "0" * 56) is row("ViT-B/32", "laion400m_e31")
    assert row_by_hash(full[:-1] + "0") is None


# Files


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The searched folders, first to last, none of them made yet; no setting of the machine."""
    package = tmp_path / "checkout" / "renamed"
    monkeypatch.setattr(pretrained, "__file__", str(package / "checkpoints" / "known.py"))
    monkeypatch.delenv("GEM_LITE_WEIGHTS", raising=False)
    monkeypatch.delenv("GEM_LITE_MIRROR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("no_proxy", "*")
    return {
        "variable": tmp_path / "variable",
        "checkout": tmp_path / "checkout" / "weights",
        "package": package / "weights",
        "wheel": package / "data" / "weights",
        "cache": tmp_path / "xdg" / "gem_lite",
    }


def put(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"x")
    return folder / name


def test_search_order(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert search_folders() == list(folders.values())[1:]
    assert find_file(row()) is None
    assert list(tmp_path.iterdir()) == []  # looking makes no folder
    for name in ("cache", "package", "checkout", "variable"):  # each one hides those before it
        expected = put(folders[name], "ViT-B-16-openai.safetensors")
        if name == "variable":
            monkeypatch.setenv("GEM_LITE_WEIGHTS", str(folders[name]))
        assert find_file(row()) == expected
        assert find_file("ViT-B-16-openai.safetensors") == expected
    assert search_folders() == list(folders.values())


def test_published_file_is_found(folders: dict[str, Path]) -> None:
    published = put(folders["checkout"], "ViT-B-16.pt")
    put(folders["cache"], "ViT-B-16-openai.safetensors")
    assert find_file(row()) == published  # the folder counts more than the kind of file
    converted = put(folders["checkout"], "ViT-B-16-openai.safetensors")
    assert find_file(row()) == converted
    assert find_file(row("ViT-B/32")) is None


def test_a_folder_is_no_file(folders: dict[str, Path]) -> None:
    (folders["checkout"] / "ViT-B-16-openai.safetensors").mkdir(parents=True)
    assert find_file(row()) is None


def test_file_of_the_small_model(folders: dict[str, Path]) -> None:
    shipped = put(folders["package"], "tiny-emoji-v1.safetensors")
    assert find_file(row("tiny-emoji", "v1")) == shipped


def test_missing_folder_in_the_variable(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEM_LITE_WEIGHTS", str(folders["variable"]))
    with pytest.raises(FileNotFoundError, match="GEM_LITE_WEIGHTS.*variable"):
        find_file(row())
    monkeypatch.setenv("GEM_LITE_WEIGHTS", "")
    assert find_file(row()) is None


def test_cache_folder(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert cache_folder() == tmp_path / "xdg" / "gem_lite"
    assert cache_folder(tmp_path / "mine") == tmp_path / "mine"
    assert cache_folder("~/mine") == tmp_path / "home" / "mine"
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == tmp_path / "home" / ".cache" / "gem_lite"
    file = put(tmp_path / "mine", "ViT-B-16.pt")
    assert find_file(row(), cache_dir=tmp_path / "mine") == file


# Fetching

BODY = b"weights of a published file" * 100


@pytest.fixture
def mirror() -> Iterator[tuple[str, list[str]]]:
    """A local server's address and the paths it was asked for; only its clip/ has files."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            found = self.path.startswith("/clip/")
            self.send_response(200 if found else 404)
            self.send_header("Content-Length", str(len(BODY) if found else 0))
            self.end_headers()
            self.wfile.write(BODY if found else b"")

        def log_message(self, *_: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        thread.join()


def with_body(chosen: Pretrained) -> Pretrained:
    return dataclasses.replace(chosen, sha256=hashlib.sha256(BODY).hexdigest())


def test_fetch_from_a_mirror(
    folders: dict[str, Path],
    mirror: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    base, asked = mirror
    path = fetch_source(with_body(row()), mirror=f"{base}/clip/", progress=False)
    assert path == folders["cache"] / "ViT-B-16.pt"
    assert path.read_bytes() == BODY
    assert find_file(row()) == path
    monkeypatch.setenv("GEM_LITE_MIRROR", f"{base}/clip")
    hub = row("ViT-B/32", "laion2b_s34b_b79k")
    assert fetch_source(hub, cache_dir=tmp_path / "mine").parent == tmp_path / "mine"
    fetch_source(with_body(row()))  # already there
    assert asked == [
        "/clip/ViT-B-16.pt",
        "/clip/CLIP-ViT-B-32-laion2B-s34B-b79K-open_clip_model.safetensors",
    ]


def test_the_argument_beats_the_variable(
    folders: dict[str, Path], mirror: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    base, asked = mirror
    monkeypatch.setenv("GEM_LITE_MIRROR", f"{base}/nothing")
    fetch_source(with_body(row()), mirror=f"{base}/clip")
    assert asked == ["/clip/ViT-B-16.pt"]


def test_a_mirror_that_lies(folders: dict[str, Path], mirror: tuple[str, list[str]]) -> None:
    with pytest.raises(FetchError) as caught:
        fetch_source(row(), mirror=f"{mirror[0]}/clip")
    assert str(row().sha256) in str(caught.value)
    assert [path.name for path in folders["cache"].iterdir()] == ["ViT-B-16.pt.lock"]


def test_a_download_is_told_by_the_commands(
    folders: dict[str, Path],
    mirror: tuple[str, list[str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Lines where standard error is no terminal; the library alone writes them to its log."""
    monkeypatch.setattr(fetch, "_LOG_EVERY", 0.0)
    monkeypatch.setenv("GEM_LITE_MIRROR", f"{mirror[0]}/clip")
    arguments = ["convert", "--model", "ViT-B/16", "--pretrained", "openai", "--output"]
    assert main([*arguments, str(tmp_path / "x.safetensors")]) == 2
    told, *_, last = capsys.readouterr().err.splitlines()
    assert told == "gem-lite: ViT-B-16.pt: 0.0 MB of 0.0 MB (100 %)" and "SHA-256" in last
    logger = logging.getLogger(fetch.__name__)
    assert (logger.handlers, logger.level) == ([], logging.NOTSET)
    with pytest.raises(FetchError):
        fetch_source(row())
    assert capsys.readouterr() == ("", "")


def test_error_says_what_to_do(folders: dict[str, Path], mirror: tuple[str, list[str]]) -> None:
    with pytest.raises(FetchError) as caught:
        fetch_source(row(), mirror=mirror[0])
    message = str(caught.value)
    for part in (
        f"{mirror[0]}/ViT-B-16.pt",
        "HTTP 404",
        str(folders["cache"] / "ViT-B-16.pt"),
        "GEM_LITE_WEIGHTS",
        "GEM_LITE_MIRROR",
    ):
        assert part in message


def test_without_a_mirror_only_https(
    folders: dict[str, Path], mirror: tuple[str, list[str]]
) -> None:
    plain = dataclasses.replace(row(), url=f"{mirror[0]}/clip/x.pt")
    with pytest.raises(ValueError, match="plain http"):
        fetch_source(plain)
    with pytest.raises(ValueError, match="begins with https"):
        fetch_source(row(), mirror="/some/folder")


def test_published_url_is_the_default(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def record(url: str, target: Path, **options: Any) -> str:
        calls.append((url, target, options))
        return ""

    monkeypatch.setattr(pretrained, "download", record)
    fetch_source(row())
    options = {"sha256": row().sha256, "progress": None, "allow_http": False}
    assert calls == [(row().url, folders["cache"] / "ViT-B-16.pt", options)]


def test_the_small_model_has_no_url(folders: dict[str, Path]) -> None:
    with pytest.raises(FileNotFoundError, match="tiny-emoji-v1.safetensors is in none of"):
        fetch_source(row("tiny-emoji", "v1"))
