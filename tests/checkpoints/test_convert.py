"""Other layouts into ours: layouts (c) and (d), the activation, what does not fit, the writing."""

import dataclasses
import functools
import hashlib
import json
import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from layouts import (
    SMALL,
    as_archived,
    header_of,
    hugging_face_config,
    hugging_face_state,
    state_of,
    write_hugging_face,
    write_open_clip,
    write_torchscript,
    write_training_checkpoint,
)
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gem_lite
from gem_lite.checkpoints import convert as convert_module
from gem_lite.checkpoints import known as pretrained
from gem_lite.checkpoints import ours as checkpoint
from gem_lite.checkpoints.configs import config_from_shapes
from gem_lite.checkpoints.convert import convert
from gem_lite.checkpoints.header import Header
from gem_lite.checkpoints.known import Pretrained
from gem_lite.checkpoints.others import read_source
from gem_lite.checkpoints.ours import read_header
from gem_lite.factory import header_for
from gem_lite.method.config import ARCHITECTURES, OPENAI_MEAN, OPENAI_STD, Activation, ModelConfig
from gem_lite.tools import cli

ROOT = Path(__file__).resolve().parents[2]
STATE = state_of()
GELU = dataclasses.replace(SMALL, activation="gelu")


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """The same names, and the same values and dtypes under them."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.fixture
def small_b32(monkeypatch: pytest.MonkeyPatch) -> None:
    """ViT-B/32 is as small as SMALL, so that its names, tags and hashes can be used."""
    monkeypatch.setitem(ARCHITECTURES, "ViT-B/32", GELU)


@pytest.fixture
def no_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Weights are looked for in the empty folder that is returned, and in no other."""
    folder = tmp_path / "weights of tests"
    folder.mkdir()
    monkeypatch.setattr(pretrained, "search_folders", lambda cache_dir=None: [folder])
    return folder


def plain(folder: Path) -> Path:
    """A file that says nothing of itself."""
    torch.save(STATE, folder / "plain.pt")
    return folder / "plain.pt"


def edited(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The folder after a change to one of its JSON files."""
    content = json.loads((folder / name).read_text())
    change(content)
    (folder / name).write_text(json.dumps(content))
    return folder


# -------------------------------------------------------------------------- (c) safetensors


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "model", "a.bin"])
def test_open_clip_file(tmp_path: Path, name: str) -> None:
    source = read_source(write_open_clip(STATE, tmp_path / name))
    assert source.layout == "safetensors"
    assert not source.claims and source.config is None and source.header is None
    assert_equal(source.tensors, STATE)


@pytest.mark.parametrize(("quick", "expected"), [(True, "quick_gelu"), (False, "gelu")])
def test_open_clip_config(tmp_path: Path, quick: bool, expected: Activation) -> None:
    write_open_clip(STATE, tmp_path / "open_clip_model.safetensors")
    said = {
        "model_cfg": {"quick_gelu": quick, "embed_dim": 48},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.5, 1]},
    }
    (tmp_path / "open_clip_config.json").write_text(json.dumps(said))
    source = read_source(tmp_path)
    assert source.claims == {"quick_gelu of open_clip_config.json": expected}
    assert (source.mean, source.std) == ((0.5, 0.5, 0.5), (0.25, 0.5, 1.0))


def test_open_clip_config_without_activation(tmp_path: Path) -> None:
    write_open_clip(STATE, tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text('{"model_cfg": {"embed_dim": 48}}')
    source = read_source(tmp_path)
    assert not source.claims and source.mean is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"model_cfg": {"quick_gelu": "false"}}', "quick_gelu is 'false'; expected true or false"),
        ('{"model_cfg": [1]}', r"model_cfg is \[1\]; expected an object"),
        ('{"preprocess_cfg": {"mean": 0.5}}', "mean is 0.5; expected three numbers"),
        ('{"preprocess_cfg": {"std": [1, 2]}}', "expected three numbers"),
        ('{"preprocess_cfg": {"std": ["a", 1, 2]}}', "expected three numbers"),
        ("[]", "holds a list; expected an object"),
        ("{", "not readable JSON"),
        (b"\xff\xfe\xff", "not readable JSON"),
    ],
)
def test_damaged_open_clip_config(tmp_path: Path, content: str | bytes, message: str) -> None:
    write_open_clip(STATE, tmp_path / "open_clip_model.safetensors")
    raw = content if isinstance(content, bytes) else content.encode()
    (tmp_path / "open_clip_config.json").write_bytes(raw)
    with pytest.raises(ValueError, match=rf"open_clip_config\.json.*{message}"):
        read_source(tmp_path)


# ------------------------------------------------------------------------- (d) Hugging Face


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("by", ["folder", "file"])
def test_hugging_face(tmp_path: Path, name: str, by: str) -> None:
    folder = write_hugging_face(STATE, tmp_path, name=name)
    source = read_source(folder if by == "folder" else folder / name)
    assert source.layout == "huggingface"
    assert_equal(source.tensors, STATE)
    assert source.config == SMALL
    assert set(source.claims.values()) == {"quick_gelu"} and len(source.claims) == 2


def test_hugging_face_without_config(tmp_path: Path) -> None:
    folder = write_hugging_face(STATE, tmp_path, config={})
    source = read_source(folder / "model.safetensors")
    assert source.layout == "huggingface" and not source.claims and source.config is None
    assert_equal(source.tensors, STATE)


def test_hugging_face_under_a_prefix(tmp_path: Path) -> None:
    wrapped = {f"clip.{name}": tensor for name, tensor in hugging_face_state(STATE).items()}
    torch.save({"state_dict": wrapped}, tmp_path / "a.pt")
    assert_equal(read_source(tmp_path / "a.pt").tensors, STATE)


def test_hugging_face_with_scale_as_a_vector(tmp_path: Path) -> None:
    tensors = hugging_face_state(STATE)
    tensors["logit_scale"] = tensors["logit_scale"][None]
    save_file(tensors, tmp_path / "model.safetensors")
    assert_equal(read_source(tmp_path).tensors, STATE)


def test_hugging_face_mean_and_std(tmp_path: Path) -> None:
    folder = write_hugging_face(STATE, tmp_path)
    said = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": 224}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    source = read_source(folder)
    assert (source.mean, source.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_folder_with_two_layouts(tmp_path: Path) -> None:
    """As on LAION's hub pages; the config.json there goes with model.safetensors."""
    write_open_clip(STATE, tmp_path / "open_clip_model.safetensors")
    write_hugging_face(STATE, tmp_path)
    assert read_source(tmp_path).path.name == "model.safetensors"
    (tmp_path / "model.safetensors").unlink()
    assert read_source(tmp_path).path.name == "open_clip_model.safetensors"


def test_folder_in_pieces(tmp_path: Path) -> None:
    write_hugging_face(STATE, tmp_path, name="model-00001-of-00002.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"several pieces .*index\.json.*one file"):
        read_source(tmp_path)


def test_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no weight file in .*looked for model\.safe"):
        read_source(tmp_path)


def test_config_in_place_of_weights(tmp_path: Path) -> None:
    folder = write_hugging_face(STATE, tmp_path)
    with pytest.raises(ValueError, match=r"config\.json is not a weight file"):
        read_source(folder / "config.json")


def set_in(tower: str, key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(config: dict[str, Any]) -> None:
        if value is None:
            del config[tower][key]
        else:
            config[tower][key] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in("text_config", "layer_norm_eps", 1e-12), "text_config.layer_norm_eps is 1e-12"),
        (set_in("vision_config", "layer_norm_eps", 1e-6), "vision_config.layer_norm_eps is 1e-06"),
        (set_in("text_config", "hidden_act", "relu"), "text_config.hidden_act is 'relu'"),
        (set_in("vision_config", "hidden_act", "gelu_new"), "vision_config.hidden_act is 'gelu_n"),
        (
            set_in("vision_config", "hidden_act", ["gelu"]),
            r"vision_config.hidden_act is \['gelu'\]",
        ),
        (set_in("text_config", "num_attention_heads", "8"), "num_attention_heads is '8'"),
        (lambda config: config.update(text_config=[]) or config.update(vision_config=3), "is 3"),
    ],
)
def test_wrong_hugging_face_config(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    folder = edited(write_hugging_face(STATE, tmp_path), "config.json", change)
    with pytest.raises(ValueError, match=rf"config\.json.*{message}"):
        read_source(folder)


@pytest.mark.parametrize("content", ["[1, 2]", "not json", '"text"', "{"])
def test_damaged_hugging_face_config(tmp_path: Path, content: str) -> None:
    folder = write_hugging_face(STATE, tmp_path)
    (folder / "config.json").write_text(content)
    with pytest.raises(ValueError, match=r"config\.json"):
        read_source(folder)


@pytest.mark.parametrize("missing", ["text_config", "vision_config"])
def test_one_tower_says_the_activation(tmp_path: Path, missing: str) -> None:
    change = set_in(missing, "hidden_act", None)
    folder = edited(write_hugging_face(STATE, tmp_path), "config.json", change)
    assert set(read_source(folder).claims.values()) == {"quick_gelu"}


# --------------------------------------------------------------------------- the activation


@functools.cache
def archive_bytes() -> bytes:
    """Of an archive of the small model, traced once."""
    with TemporaryDirectory() as folder:
        return write_torchscript(STATE, Path(folder) / "archive.pt").read_bytes()


def says_archive(folder: Path) -> Path:
    (folder / "archive.pt").write_bytes(archive_bytes())
    return folder / "archive.pt"


def says_header(folder: Path) -> Path:
    checkpoint.write(folder / "ours.safetensors", STATE, header_of(model="ViT-B/32"))
    return folder / "ours.safetensors"


def says_hidden_act(folder: Path) -> Path:
    return write_hugging_face(STATE, folder / "hf")


def says_open_clip(folder: Path) -> Path:
    (folder / "open").mkdir()
    (folder / "open" / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": true}}')
    return write_open_clip(STATE, folder / "open" / "open_clip_model.safetensors")


def says_hash(folder: Path) -> Path:
    return plain(folder)


FILES = {  # who says quick_gelu, and as what an error names it
    "archive": (says_archive, r"archive\.pt is a TorchScript archive"),
    "header": (says_header, r"the header of ours\.safetensors"),
    "hidden_act": (says_hidden_act, r"text_config\.hidden_act of config\.json"),
    "open_clip": (says_open_clip, r"quick_gelu of open_clip_config\.json"),
    "hash": (says_hash, "the file's hash, which is that of ViT-B/32 test-tag"),
}


def know(monkeypatch: pytest.MonkeyPatch, path: Path, **changes: Any) -> Pretrained:
    """Put a row with the file's own hash into the table, in place of ViT-B/32's rows."""
    fields: dict[str, Any] = {
        "name": "ViT-B/32",
        "tag": "test-tag",
        "activation": "quick_gelu",
        "url": "https://example.org/published.pt",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "a test's",
        "source": "https://example.org",
        "mean": (0.7, 0.8, 0.9),
        "std": (0.3, 0.2, 0.1),
        "size": 64,
    }
    row = Pretrained(**(fields | changes))
    others = tuple(row for row in pretrained.PRETRAINED if row.model != "ViT-B/32")
    monkeypatch.setattr(pretrained, "PRETRAINED", (row, *others))
    return row


@pytest.fixture(params=list(FILES))
def quick_file(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_b32: None
) -> tuple[Path, str]:
    """A checkpoint that is QuickGELU by one source alone, and what an error calls the source."""
    make, named = FILES[request.param]
    path = make(tmp_path)
    if request.param == "hash":
        know(monkeypatch, path)
    return path, named


def activation_of(model: gem_lite.GEMPredictor) -> str:
    """The activation of what was really built, in both towers."""
    network = model.network
    layers = {
        type(module)
        for tower in (network.visual.transformer, network.transformer)
        for module in tower.modules()
        if type(module).__name__ in ("QuickGELU", "GELU")
    }
    assert len(layers) == 1
    built = {"QuickGELU": "quick_gelu", "GELU": "gelu"}[layers.pop().__name__]
    assert built == network.config.activation == model.header.config.activation
    return built


def test_file_alone_decides(quick_file: tuple[Path, str]) -> None:
    assert activation_of(gem_lite.create_gem_model("ViT-B/32", quick_file[0])) == "quick_gelu"


def test_file_and_those_who_agree(quick_file: tuple[Path, str]) -> None:
    model = gem_lite.create_gem_model("vit-b-32-quickgelu", quick_file[0], activation="quick_gelu")
    assert activation_of(model) == "quick_gelu"


def test_argument_against_file(quick_file: tuple[Path, str]) -> None:
    path, named = quick_file
    with pytest.raises(ValueError, match=f"disagree on the activation.*{named}.*the argument: gel"):
        gem_lite.create_gem_model("ViT-B/32", path, activation="gelu")


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_argument_alone_decides(tmp_path: Path, small_b32: None, activation: Activation) -> None:
    model = gem_lite.create_gem_model("ViT-B/32", plain(tmp_path), activation=activation)
    assert activation_of(model) == activation


def test_name_alone_decides(tmp_path: Path, small_b32: None) -> None:
    model = gem_lite.create_gem_model("ViT-B/32-quickgelu", plain(tmp_path))
    assert activation_of(model) == "quick_gelu"


def test_name_against_argument(tmp_path: Path, small_b32: None) -> None:
    with pytest.raises(ValueError, match="the argument: gelu; the name 'ViT-B/32-quickgelu': qui"):
        gem_lite.create_gem_model("ViT-B/32-quickgelu", plain(tmp_path), activation="gelu")


def gelu_file(folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A checkpoint that is GELU by one source alone, and what an error calls the source."""
    if kind == "header":
        header = header_of(config=GELU, model="ViT-B/32")
        checkpoint.write(folder / "ours.safetensors", STATE, header)
        return folder / "ours.safetensors", FILES[kind][1]
    if kind == "hash":
        know(monkeypatch, plain(folder), activation="gelu")
        return folder / "plain.pt", FILES[kind][1]
    if kind == "hidden_act":
        folder = write_hugging_face(STATE, folder, config=hugging_face_config(SMALL, "gelu"))
        return folder, FILES[kind][1]
    path = says_open_clip(folder)
    (path.parent / "open_clip_config.json").write_text('{"model_cfg": {"quick_gelu": false}}')
    return path, FILES[kind][1]


@pytest.mark.parametrize("kind", ["header", "hash", "hidden_act", "open_clip"])
def test_name_against_file(
    tmp_path: Path, small_b32: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path, named = gelu_file(tmp_path, kind, monkeypatch)
    assert activation_of(gem_lite.create_gem_model("ViT-B/32", path)) == "gelu"
    with pytest.raises(ValueError, match=f"{named}: gelu; .*the name .*-quickgelu': quick_gelu"):
        gem_lite.create_gem_model("ViT-B/32-quickgelu", path)


@pytest.mark.parametrize("kind", ["archive", "hidden_act", "open_clip"])
def test_hash_against_file(
    tmp_path: Path, small_b32: None, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    make, named = FILES[kind]
    path = make(tmp_path)
    file = path / "model.safetensors" if path.is_dir() else path
    know(monkeypatch, file, activation="gelu")
    message = f"{named}.*: quick_gelu; .*the file's hash, which is that of ViT-B/32 test-tag: gelu"
    with pytest.raises(ValueError, match=message):
        gem_lite.create_gem_model("ViT-B/32", path)


def test_towers_against_each_other(tmp_path: Path, small_b32: None) -> None:
    change = set_in("text_config", "hidden_act", "gelu")
    folder = edited(write_hugging_face(STATE, tmp_path), "config.json", change)
    message = r"text_config\.hidden_act.*: gelu; vision_config\.hidden_act.*: quick_gelu"
    with pytest.raises(ValueError, match=message):
        gem_lite.create_gem_model("ViT-B/32", folder)


def test_old_spelling_of_a_tower_against_the_new(tmp_path: Path, small_b32: None) -> None:
    """transformers lets text_config_dict override text_config."""
    folder = write_hugging_face(STATE, tmp_path)
    edited(folder, "config.json", lambda config: config.update(text_config_dict=None))
    assert activation_of(gem_lite.create_gem_model("ViT-B/32", folder)) == "quick_gelu"
    other = {"hidden_act": "gelu"}
    edited(folder, "config.json", lambda config: config.update(text_config_dict=other))
    message = r"text_config\.hidden_act.*: quick_gelu; .*text_config_dict\.hidden_act.*: gelu"
    with pytest.raises(ValueError, match=message):
        gem_lite.create_gem_model("ViT-B/32", folder)


@pytest.mark.parametrize(
    "make",
    [
        plain,
        lambda folder: write_training_checkpoint(STATE, folder / "a.pt"),
        lambda folder: write_open_clip(STATE, folder / "a.safetensors"),
        lambda folder: write_hugging_face(STATE, folder, config={}),
        lambda folder: write_hugging_face(STATE, folder, config=hugging_face_config(SMALL, None)),
    ],
)
def test_nobody_decides(tmp_path: Path, small_b32: None, make: Callable[[Path], Path]) -> None:
    with pytest.raises(ValueError, match="does not say which activation") as caught:
        gem_lite.create_gem_model("ViT-B/32", make(tmp_path))
    for help in ("activation='quick_gelu' or 'gelu'", "--activation", "-quickgelu"):
        assert help in str(caught.value)


# ------------------------------------------------------------------------- tags and hashes


def test_known_hash(tmp_path: Path, small_b32: None, monkeypatch: pytest.MonkeyPatch) -> None:
    row = know(monkeypatch, plain(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        header = gem_lite.create_gem_model("ViT-B/32", tmp_path / "plain.pt").header
    assert (header.model, header.pretrained) == ("ViT-B/32", "test-tag")
    assert (header.mean, header.std, header.size) == (row.mean, row.std, row.size)
    assert header.source == "https://example.org/published.pt"
    assert header.licence == "a test's"
    assert header.sha256 == row.sha256
    assert header.verified == "sha256"


def test_known_part_of_a_hash(
    tmp_path: Path, small_b32: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = plain(tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    know(monkeypatch, path, sha256=digest[:8])
    header = gem_lite.create_gem_model("ViT-B/32", path).header
    assert header.sha256 == digest
    assert header.verified == f"sha256 prefix {digest[:8]}"


def test_unknown_file(tmp_path: Path, small_b32: None) -> None:
    path = plain(tmp_path)
    header = gem_lite.create_gem_model("ViT-B/32", path, activation="gelu").header
    assert header.source == "plain.pt"
    assert header.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (header.verified, header.licence) == ("unverified", "unknown")
    assert (header.mean, header.std, header.size) == (OPENAI_MEAN, OPENAI_STD, 448)


def test_tag_decides_and_another_hash_warns(
    tmp_path: Path, small_b32: None, no_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The published file lies in a folder that is searched, but is not the published file."""
    row = know(monkeypatch, plain(tmp_path), sha256="0" * 64)
    (tmp_path / "plain.pt").rename(no_folders / "published.pt")
    with pytest.warns(UserWarning, match="differs from the published SHA-256 0000") as caught:
        model = gem_lite.create_gem_model("ViT-B/32", "test-tag")
    assert len(caught) == 1
    assert activation_of(model) == "quick_gelu"
    assert model.header.verified == f"differs from the published SHA-256 {'0' * 64}"
    assert (model.header.mean, model.header.licence) == (row.mean, row.licence)


def test_tag_against_file(
    tmp_path: Path, small_b32: None, no_folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = says_archive(tmp_path)
    know(monkeypatch, path, activation="gelu", sha256=None)
    path.rename(no_folders / "published.pt")
    with pytest.raises(ValueError, match="TorchScript archive.*the tag 'test-tag': gelu"):
        gem_lite.create_gem_model("ViT-B/32", "test-tag")


@pytest.mark.parametrize("by", ["create_gem_model", "command"])
def test_tag_against_our_own_file(
    tmp_path: Path, small_b32: None, no_folders: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    path = says_header(tmp_path)
    know(monkeypatch, plain(tmp_path), activation="gelu")
    message = "the header of .*: quick_gelu; the tag 'test-tag': gelu"
    if by == "command":
        wanted = ["--model", "ViT-B/32", "--pretrained", "test-tag", "--source", str(path)]
        assert cli.main(["convert", *wanted, "--output", str(tmp_path / "o.safetensors")]) == 2
        return
    path.rename(no_folders / "ViT-B-32-test-tag.safetensors")
    with pytest.raises(ValueError, match=message):
        gem_lite.create_gem_model("ViT-B/32", "test-tag")


def test_url_is_of_the_hash(
    tmp_path: Path, small_b32: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is known by its hash, but given for another tag's."""
    row = know(monkeypatch, plain(tmp_path))
    other = dataclasses.replace(row, tag="other", sha256="1" * 64, url="https://example.org/o.pt")
    header = header_for_other(tmp_path / "plain.pt", other)
    assert header.source == "https://example.org/published.pt"


def header_for_other(path: Path, row: Pretrained) -> Header:
    with pytest.warns(UserWarning, match="differs from the published"):
        return header_for(read_source(path), "ViT-B/32", row)


# ---------------------------------------------------------------------- what does not fit


def put(name: str, tensor: Tensor | None) -> dict[str, Tensor]:
    """STATE with one tensor changed, added, or left out (None)."""
    changed = {**STATE, name: tensor}
    return {name: tensor for name, tensor in changed.items() if tensor is not None}


MISFITS = [
    ("visual.proj", None, r"missing visual\.proj, expected shape \[64, 48\]"),
    ("ln_final.bias", None, r"missing ln_final\.bias, expected shape \[32\]"),
    ("visual.proj", torch.zeros(64, 49), r"visual\.proj has shape \[64, 49\], expected \[64, 48\]"),
    ("visual.proj", torch.zeros(64), r"visual\.proj has shape \[64\], expected \[64, 48\]"),
    ("visual.proj", torch.zeros(1, 64, 48), r"visual\.proj has shape \[1, 64, 48\], expected"),
    ("logit_scale", torch.zeros(2), r"logit_scale has shape \[2\], expected \[\]"),
    (
        "transformer.resblocks.3.ln_1.weight",
        torch.zeros(32),
        r"unknown tensor transformer\.resblocks\.3\.ln_1\.weight of shape \[32\]",
    ),
    ("visual.head.weight", torch.zeros(2, 3), r"unknown tensor visual\.head\.weight of shape"),
    ("ln_final.bias", torch.zeros(32).int(), r"ln_final\.bias holds torch\.int32; expected float"),
    ("ln_final.bias", torch.zeros(32) == 0, r"ln_final\.bias holds torch\.bool; expected float"),
    (
        "ln_final.bias",
        torch.zeros(32).to(torch.float8_e4m3fn),
        r"ln_final\.bias holds torch\.float8_e4m3fn; expected float",
    ),
]


@pytest.mark.parametrize("layout", ["pickle", "safetensors", "gem_lite"])
@pytest.mark.parametrize(("name", "tensor", "message"), MISFITS)
def test_misfit(
    tmp_path: Path, small_b32: None, layout: str, name: str, tensor: Tensor | None, message: str
) -> None:
    path = tmp_path / "a.safetensors"
    state = put(name, tensor)
    if layout == "pickle":
        torch.save(state, path.with_suffix(".pt"))
        path = path.with_suffix(".pt")
    elif layout == "safetensors":
        save_file(state, path)
    else:
        header = header_of(config=GELU, model="ViT-B/32")
        save_file(state, path, metadata={"format": "pt", "gem_lite": header.to_json()})
    with pytest.raises(ValueError, match=f"{path.name}.*{message}"):
        gem_lite.create_gem_model("ViT-B/32", path, activation="gelu")


def test_many_misfits_are_counted(tmp_path: Path, small_b32: None) -> None:
    torch.save({n: t for n, t in STATE.items() if "resblocks" not in n}, tmp_path / "a.pt")
    with pytest.raises(ValueError, match=r"missing .*; and 52 more$"):  # 12 x 5 blocks, 8 shown
        gem_lite.create_gem_model("ViT-B/32", tmp_path / "a.pt", activation="gelu")


def q_of(layer: int) -> str:
    return f"text_model.encoder.layers.{layer}.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (q_of(1), None, r"lacks the q part of transformer\.resblocks\.1\.attn\.in_proj_weight"),
        (
            q_of(1),
            torch.zeros(32, 31),
            r"in_proj_weight differ in shape: .*q_proj\.weight \[32, 31\], .*k_proj.* \[32, 32\]",
        ),
        ("visual_projection.weight", None, r"no tensor 'visual\.proj'"),
        ("visual_projection.weight", torch.zeros(48), r"visual\.proj has shape \[48\]"),
        ("visual_projection.weight", torch.zeros(1, 48, 64), r"visual\.proj has shape \[1, 48"),
        ("vision_model.embeddings.position_embedding.weight", torch.zeros(5), r"has shape \[5\]"),
        ("vision_model.head.weight", torch.zeros(2), r"does not have: vision_model\.head\.weight"),
        ("text_model.encoder.layers.0.self_attn.z.bias", torch.zeros(2), r"self_attn\.z\.bias \[2"),
        ("vision_model.post_layernorm.bias", torch.zeros(3), r"visual\.ln_post\.bias has shape"),
        ("vision_model.post_layernorm.bias", None, r"missing visual\.ln_post\.bias"),
    ],
)
@pytest.mark.parametrize("described", [True, False])
def test_hugging_face_misfit(
    tmp_path: Path,
    small_b32: None,
    name: str,
    tensor: Tensor | None,
    message: str,
    described: bool,
) -> None:
    folder = write_hugging_face(STATE, tmp_path, config=None if described else {})
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(name, None)
    save_file(
        tensors if tensor is None else {**tensors, name: tensor}, folder / "model.safetensors"
    )
    if not described:
        message = message.replace("no tensor 'visual", "missing visual").replace("proj'", "proj")
    with pytest.raises(ValueError, match=message):
        gem_lite.create_gem_model("ViT-B/32", folder, activation="quick_gelu")


def test_uneven_parts_are_no_whole(tmp_path: Path, small_b32: None) -> None:
    """q one row short and k one row long: together they have the right number of rows."""
    tensors = hugging_face_state(STATE)
    tensors[q_of(0)] = torch.zeros(31, 32)
    tensors[q_of(0).replace("q_proj", "k_proj")] = torch.zeros(33, 32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"q_proj\.weight \[31, 32\], .*k_proj\.weight \[33, 32"):
        gem_lite.create_gem_model("ViT-B/32", tmp_path, activation="gelu")


def test_file_of_another_architecture(tmp_path: Path, small_b32: None) -> None:
    with pytest.raises(ValueError, match=r"visual\.conv1\.weight has shape \[64, 3, 16, 16\], exp"):
        gem_lite.create_gem_model("ViT-L/14", plain(tmp_path), activation="gelu")


def test_heads_that_contradict_the_name(tmp_path: Path, small_b32: None) -> None:
    """The tensors don't show the heads, but config.json does."""
    change = set_in("vision_config", "num_attention_heads", 4)
    folder = edited(write_hugging_face(STATE, tmp_path), "config.json", change)
    with pytest.raises(ValueError, match="describes another model than 'ViT-B/32'.*heads=4"):
        gem_lite.create_gem_model("ViT-B/32", folder)


def test_unknown_name_needs_a_file_that_describes_itself(tmp_path: Path) -> None:
    folder = write_hugging_face(STATE, tmp_path / "hf")
    assert gem_lite.create_gem_model("my-own", folder).network.config == SMALL
    with pytest.raises(ValueError, match="unknown model 'my-own'; nearest known"):
        gem_lite.create_gem_model("my-own", plain(tmp_path), activation="gelu")


def test_config_from_shapes() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in STATE.items()}
    heads: dict[str, Any] = {"image_heads": 2, "text_heads": 1, "where": "here"}
    assert config_from_shapes(shapes, activation="quick_gelu", **heads) == SMALL
    del shapes["token_embedding.weight"]
    with pytest.raises(ValueError, match=r"here has no tensor 'token_embedding\.weight'"):
        config_from_shapes(shapes, activation="gelu", **heads)


# ------------------------------------------------------------------------------ the writing


def written(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a written file, read without the package."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt"
    return load_file(path), json.loads(metadata["gem_lite"])


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
SOURCES = {
    "archive": says_archive,
    "pickle": lambda folder: write_training_checkpoint(STATE, folder / "a.pt"),
    "safetensors": lambda folder: write_open_clip(STATE, folder / "a.safetensors"),
    "huggingface": lambda folder: write_hugging_face(STATE, folder / "hf"),
    "gem_lite": says_header,
}


@pytest.mark.parametrize("dtype", [None, "fp32", "fp16", "bf16"])
@pytest.mark.parametrize("layout", list(SOURCES))
def test_convert(tmp_path: Path, layout: str, dtype: str | None) -> None:
    source = read_source(SOURCES[layout](tmp_path))
    output = tmp_path / "converted.safetensors"
    error = convert(source, output, header_of(), dtype=None if dtype is None else DTYPES[dtype])
    if layout == "archive":
        expected = {name: as_archived(name, tensor) for name, tensor in STATE.items()}
    else:
        expected = STATE
    if dtype is not None:
        expected = {name: tensor.to(DTYPES[dtype]) for name, tensor in expected.items()}
    found, _ = written(output)
    assert_equal(found, expected)
    # Another order of a matrix in memory may turn a last bit.
    least, most = {"fp16": (1e-5, 5e-3), "bf16": (1e-4, 4e-2)}.get(dtype or "", (0, 1e-6))
    assert least <= error <= most
    assert list(tmp_path.glob(".*")) == []


def test_written_header(tmp_path: Path) -> None:
    output = tmp_path / "converted.safetensors"
    convert(read_source(plain(tmp_path)), output, header_of())
    _, header = written(output)
    assert header == {
        "model": "small-test",
        "pretrained": "v0",
        "config": {
            "embed": 48,
            "activation": "quick_gelu",
            "image": {
                "size": 32,
                "patch": 16,
                "width": 64,
                "layers": 2,
                "heads": 2,
                "mlp_width": 160,
            },
            "text": {
                "context": 16,
                "vocab": 600,
                "width": 32,
                "layers": 3,
                "heads": 1,
                "mlp_width": 96,
            },
        },
        "gem": {
            "blocks": 2,
            "iters": 1,
            "inv_temp": None,
            "streams": "qkv",
            "residual": True,
            "mlp": False,
            "class_token": "gem",
            "positions": "bicubic_antialias",
        },
        "method": "gem",
        "settings": {},
        "size": 48,
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "source": "https://example.org/weights.pt",
        "sha256": "ab" * 32,
        "verified": "sha256",
        "licence": "MIT",
        "format_version": 1,
    }


def test_written_file_may_be_read_by_others(tmp_path: Path) -> None:
    output = tmp_path / "converted.safetensors"
    convert(read_source(plain(tmp_path)), output, header_of())
    umask = os.umask(0)
    os.umask(umask)
    assert output.stat().st_mode & 0o777 == 0o666 & ~umask


OLD = b"what stood here before"


def fails_and_keeps(
    output: Path, kind: type[BaseException], message: str | None, action: Callable[[], Any]
) -> None:
    """The action raises; a file at `output` stays as it was, and no other file appears."""
    for before in (None, OLD):
        if before is not None:
            output.write_bytes(before)
        names = sorted(output.parent.iterdir())
        with pytest.raises(kind, match=message):
            action()
        assert sorted(output.parent.iterdir()) == names
        assert before is None or output.read_bytes() == before


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out" / "converted.safetensors"


def test_overflow(tmp_path: Path, output: Path) -> None:
    torch.save(put("visual.conv1.weight", STATE["visual.conv1.weight"] * 1e6), tmp_path / "a.pt")
    source = read_source(tmp_path / "a.pt")
    fails_and_keeps(
        output,
        ValueError,
        r"visual\.conv1\.weight overflows torch\.float16; choose fp32 or bf16",
        lambda: convert(source, output, header_of(), dtype=torch.float16),
    )
    convert(source, output, header_of(), dtype=torch.bfloat16)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_not_finite(tmp_path: Path, output: Path, number: float, dtype: torch.dtype | None) -> None:
    spoilt = STATE["ln_final.bias"].clone()
    spoilt[3] = number
    torch.save(put("ln_final.bias", spoilt), tmp_path / "a.pt")
    source = read_source(tmp_path / "a.pt")
    fails_and_keeps(
        output,
        ValueError,
        r"a\.pt: ln_final\.bias holds numbers that are not finite",
        lambda: convert(source, output, header_of(), dtype=dtype),
    )


@pytest.mark.parametrize("name", ["visual.proj", "text_projection"])
@pytest.mark.parametrize("damage", ["noise", "nan", "swapped"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_check_of_the_written_file(
    tmp_path: Path,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    damage: str,
    dtype: torch.dtype | None,
) -> None:
    """The writer writes something else than it was given: the features show it."""

    def spoil(tensors: dict[str, Tensor], *args: Any, **kwargs: Any) -> None:
        tensor = tensors[name].clone()
        if damage == "noise":
            tensor += torch.randn(tensor.shape, generator=torch.manual_seed(0)).to(tensor)
        elif damage == "nan":
            tensor.view(-1)[0] = float("nan")
        else:
            tensor = tensor.flip(0).contiguous()
        save_file({**tensors, name: tensor}, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_file", spoil)
    fails_and_keeps(
        output,
        ValueError,
        "the written file's features differ from .* by .*nothing was written"
        f"|{name} holds numbers that are not finite",
        lambda: convert(read_source(plain(tmp_path)), output, header_of(), dtype=dtype),
    )


def test_smallest_damage_that_the_check_sees(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a change of dtype, an error of a few thousandths in one row is no rounding."""

    def spoil(tensors: dict[str, Tensor], *args: Any, **kwargs: Any) -> None:
        tensor = tensors["visual.proj"].clone()
        tensor[5] *= 1.003
        save_file({**tensors, "visual.proj": tensor}, *args, **kwargs)

    monkeypatch.setattr(checkpoint, "save_file", spoil)
    with pytest.raises(ValueError, match="features differ"):
        convert(read_source(plain(tmp_path)), output, header_of())


@pytest.mark.parametrize("where", ["before", "after", "interrupted"])
def test_writer_that_dies(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def die(tensors: Any, path: Path, **kwargs: Any) -> None:
        if where != "before":
            path.write_bytes(b"half a file")
        raise KeyboardInterrupt if where == "interrupted" else OSError("the disk is full")

    monkeypatch.setattr(checkpoint, "save_file", die)
    kind = KeyboardInterrupt if where == "interrupted" else OSError
    source = read_source(plain(tmp_path))
    fails_and_keeps(output, kind, None, lambda: convert(source, output, header_of()))


def test_check_that_dies(tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args: Any) -> None:
        raise RuntimeError("no memory left")

    monkeypatch.setattr(convert_module, "_features_error", die)
    source = read_source(plain(tmp_path))
    fails_and_keeps(output, RuntimeError, "memory", lambda: convert(source, output, header_of()))


def test_header_that_does_not_fit(tmp_path: Path, output: Path) -> None:
    other = dataclasses.replace(SMALL, embed=50)
    source = read_source(plain(tmp_path))
    fails_and_keeps(
        output,
        ValueError,
        r"visual\.proj has shape \[64, 48\], expected \[64, 50\]",
        lambda: convert(source, output, header_of(config=other)),
    )


def test_no_folder_to_write_to(tmp_path: Path) -> None:
    source = read_source(plain(tmp_path))
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere to write a.safetensors to"):
        convert(source, tmp_path / "nowhere" / "a.safetensors", header_of())
    assert not (tmp_path / "nowhere").exists()


def test_output_is_a_folder(tmp_path: Path) -> None:
    source = read_source(plain(tmp_path))
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError, match="folder is a folder; give the name of a file"):
        convert(source, tmp_path / "folder", header_of())
    assert not list((tmp_path / "folder").iterdir())


def test_source_folder_is_only_read(tmp_path: Path, output: Path) -> None:
    folder = write_hugging_face(STATE, tmp_path / "hf")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    folder.chmod(0o555)
    try:
        convert(read_source(folder), output, header_of())
    finally:
        folder.chmod(0o755)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_file_over_itself(tmp_path: Path) -> None:
    """Source and output are one file."""
    path = says_header(tmp_path)
    convert(read_source(path), path, header_of(), dtype=torch.bfloat16)
    assert_equal(written(path)[0], {name: tensor.bfloat16() for name, tensor in STATE.items()})


def test_foreign_file_over_itself(tmp_path: Path) -> None:
    path = write_open_clip(STATE, tmp_path / "a.safetensors")
    convert(read_source(path), path, header_of())
    assert_equal(written(path)[0], STATE)


def test_views_of_one_storage(tmp_path: Path, output: Path) -> None:
    """Some trainers keep all weights in one flat tensor."""
    flat = torch.cat([tensor.reshape(-1) for tensor in STATE.values()])
    parts = flat.split([tensor.numel() for tensor in STATE.values()])
    views = {
        name: part.view(tensor.shape)
        for part, (name, tensor) in zip(parts, STATE.items(), strict=True)
    }
    torch.save(views, tmp_path / "a.pt")
    convert(read_source(tmp_path / "a.pt"), output, header_of())
    assert_equal(written(output)[0], STATE)


def test_parameters_with_gradients_convert_and_load(
    tmp_path: Path, output: Path, small_b32: None
) -> None:
    parameters = {name: nn.Parameter(tensor) for name, tensor in STATE.items()}
    torch.save(parameters, tmp_path / "a.pt")
    convert(read_source(tmp_path / "a.pt"), output, header_of())
    assert_equal(written(output)[0], STATE)
    model = gem_lite.create_gem_model("ViT-B/32", tmp_path / "a.pt", activation="gelu")
    assert all(parameter.is_leaf for parameter in model.parameters())


# ------------------------------------------------------------------------- the command line


def run(*arguments: str | Path, folder: Path, thin: bool = False) -> subprocess.CompletedProcess:
    """The command in a process of its own."""
    start = [str(ROOT / "convert_weights.py")] if thin else ["-m", "gem_lite", "convert"]
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_command(tmp_path: Path) -> None:
    folder = write_hugging_face(STATE, tmp_path / "hf")
    done = run("--model", "own/model", "--pretrained", "v0", "--source", folder,
               "--dtype", "fp16", folder=tmp_path)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    output = tmp_path / "own-model-v0.safetensors"
    assert done.stdout.startswith(f"{output.name}: ") and done.stdout.count("\n") == 1
    assert_equal(written(output)[0], {name: tensor.half() for name, tensor in STATE.items()})
    header = read_header(output)
    assert header is not None
    assert (header.model, header.pretrained, header.config) == ("own/model", "v0", SMALL)
    assert header.source == "model.safetensors"
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert (header.sha256, header.verified) == (digest, "unverified")
    assert gem_lite.create_gem_model("own/model", output).header == header


def test_command_and_a_mistake(tmp_path: Path) -> None:
    torch.save({"nothing": 1}, tmp_path / "a.pt")
    done = run("--model", "ViT-B/32", "--pretrained", "x", "--source", "a.pt",
               folder=tmp_path, thin=True)  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and "Traceback" not in done.stderr
    assert done.stderr.startswith("gem-lite: a.pt holds no CLIP state dict")
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that the command is called in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def command(*arguments: str | Path) -> int:
    return cli.main(["convert", *map(str, arguments)])


def test_default_output(here: Path, small_b32: None) -> None:
    wanted = ("--model", "ViT-B-32", "--pretrained", "mine", "--activation", "gelu")
    assert command(*wanted, "--source", plain(here)) == 0
    assert (here / "ViT-B-32-mine.safetensors").is_file()
    (here / "weights").mkdir()
    assert command(*wanted, "--source", "plain.pt") == 0
    header = read_header(here / "weights" / "ViT-B-32-mine.safetensors")
    assert header is not None and header.config.activation == "gelu"


def test_tag_with_a_file_of_another_hash(here: Path, small_b32: None) -> None:
    """A known tag's name, activation and licence; a warning; and the header tells."""
    source = plain(here)
    with pytest.warns(UserWarning, match=r"plain\.pt has SHA-256 .* of ViT-B/32 openai"):
        assert command("--model", "vit-b-32", "--pretrained", "openai", "--source", source) == 0
    header = read_header(here / "ViT-B-32-openai.safetensors")
    assert header is not None
    published = "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"
    assert header.verified == f"differs from the published SHA-256 {published}"
    assert header.sha256 == hashlib.sha256(source.read_bytes()).hexdigest()
    assert (header.model, header.pretrained) == ("ViT-B/32", "openai")
    assert header.source == "plain.pt"  # not the url, from where it did not come
    assert header.config.activation == "quick_gelu"
    assert "MIT" in header.licence


MISTAKES = {
    "no such source": (["--source", "none.pt"], "no checkpoint at none.pt"),
    "a name of two lines": (["--source", "no\nne.pt"], "no checkpoint at no ne.pt"),
    "no activation": (["--source", "plain.pt"], "does not say which activation"),
    "unknown tag": ([], "unknown pretrained weights 'mine' for model 'ViT-B/32'"),
    "no folder": (
        ["--source", "plain.pt", "--activation", "gelu", "--output", "a/b.safetensors"],
        "no folder a to write",
    ),
    "a folder": (
        ["--source", "plain.pt", "--activation", "gelu", "--output", "."],
        "is a folder; give the name of a file",
    ),
    "page": (["--source", "page.pt"], "page.pt is not a checkpoint: it begins with"),
    "contradiction": (["--source", "ts.pt", "--activation", "gelu"], "the sources disagree"),
    "overflow": (
        ["--source", "large.pt", "--activation", "gelu", "--dtype", "fp16"],
        "overflows torch.float16",
    ),
}


@pytest.mark.parametrize("mistake", list(MISTAKES))
def test_mistakes(
    here: Path, small_b32: None, capsys: pytest.CaptureFixture[str], mistake: str
) -> None:
    plain(here)
    write_torchscript(STATE, here / "ts.pt")
    torch.save({name: tensor * 1e6 for name, tensor in STATE.items()}, here / "large.pt")
    (here / "page.pt").write_text("<html>\n404\n</html>")
    names = sorted(here.iterdir())
    arguments, message = MISTAKES[mistake]
    assert command("--model", "ViT-B/32", "--pretrained", "mine", *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1 and printed.err.startswith("gem-lite: ")
    assert message in printed.err
    assert sorted(here.iterdir()) == names


@pytest.mark.parametrize("device", ["nonsense", "cuda:99"])
def test_wrong_device(
    here: Path, small_b32: None, capsys: pytest.CaptureFixture[str], device: str
) -> None:
    wanted = ["--model", "ViT-B/32", "--pretrained", "mine", "--source", str(plain(here))]
    assert command(*wanted, "--activation", "gelu", "--device", device) == 2
    assert f"device is '{device}'" in capsys.readouterr().err
    assert [path.name for path in here.iterdir()] == ["plain.pt"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--model", "ViT-B/32"],
        ["--model", "ViT-B/32", "--pretrained", "x", "--dtype", "int8"],
        ["--model", "ViT-B/32", "--pretrained", "x", "--activation", "relu"],
    ],
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        command(*arguments)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gem-lite convert: ") and line.endswith("(see gem-lite convert --help)")


# -------------------------------------------------------------------- once in its full size


@pytest.fixture(scope="module")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """An archive of a real ViT-B/32's size, and its weights."""
    from layouts import shapes

    numbers = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0)).mul_(0.03)
    state = {}
    for place, (name, shape) in enumerate(shapes(ARCHITECTURES["ViT-B/32"]).items()):
        dtype = as_archived(name, torch.zeros(())).dtype
        size = math.prod(shape)
        flat = numbers.to(dtype).roll(place).repeat(size // len(numbers) + 1)[:size]
        tensor = flat.reshape(shape)
        state[name] = tensor + 1 if name.endswith("weight") and "ln_" in name else tensor
    path = tmp_path_factory.mktemp("full") / "ViT-B-32.pt"
    config: ModelConfig = ARCHITECTURES["ViT-B/32"]
    return write_torchscript(state, path, config), state


def test_full_size(
    full_size: tuple[Path, dict[str, Tensor]], here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, state = full_size
    known = know(monkeypatch, path, tag="openai")
    assert command("--model", "ViT-B/32", "--pretrained", "openai", "--source", path) == 0
    output = here / "ViT-B-32-openai.safetensors"
    assert output.stat().st_size < path.stat().st_size * 1.01  # float16 stays so
    with safe_open(output, framework="pt") as file:
        assert set(file.keys()) == set(state)
        for name, tensor in state.items():
            assert torch.equal(file.get_tensor(name), tensor), name
    header = read_header(output)
    assert header is not None and (header.verified, header.sha256) == ("sha256", known.sha256)
    model, transform = gem_lite.create_model_and_transforms("ViT-B/32", output)
    assert sum(parameter.numel() for parameter in model.parameters()) == 151_277_313
    assert activation_of(model) == "quick_gelu"
    assert (transform.mean, transform.std) == (known.mean, known.std)
    with torch.inference_mode():
        maps = model(torch.randn(1, 3, 64, 96), ["cat", "dog"])
    assert maps.shape == (1, 2, 64, 96) and maps.isfinite().all()
