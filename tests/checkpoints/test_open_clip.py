"""The table and the architectures against open_clip's own, field by field."""

import importlib
import json
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from gem_lite.checkpoints.open_clip import read_open_clip_config
from gem_lite.checkpoints.table import PRETRAINED
from gem_lite.method.config import ARCHITECTURES

SPEC = find_spec("open_clip")
if SPEC is None or not SPEC.submodule_search_locations:
    pytest.skip(
        "open_clip is not installed: pip install --no-deps open_clip_torch", allow_module_level=True
    )
FOLDER = Path(SPEC.submodule_search_locations[0])
MODEL_CONFIGS = FOLDER / "model_configs"


def _table() -> dict[str, dict[str, dict[str, Any]]]:
    """Their table alone: the package's own __init__ would need torchvision and more."""
    package = types.ModuleType("open_clip")
    package.__path__ = [str(FOLDER)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "open_clip", package)
        return importlib.import_module("open_clip.pretrained")._PRETRAINED


TABLE = _table()
ROWS = [row for row in PRETRAINED if row.url is not None]


def theirs(name: str) -> str:
    """Their spelling of a model's name."""
    return name.replace("/", "-")


def entry(name: str, tag: str) -> dict[str, Any]:
    return TABLE[theirs(name)][tag]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.name} {row.tag}")
def test_each_field_of_a_row(row: Any) -> None:
    expected = entry(row.model, row.tag)
    assert row.activation == ("quick_gelu" if expected.get("quick_gelu") else "gelu")
    assert (row.mean, row.std) == (expected["mean"], expected["std"])
    assert row.resize_mode == expected["resize_mode"]
    assert expected["interpolation"] == "bicubic"
    hub = expected["hf_hub"].removesuffix("/")
    if (row.model, row.tag) == ("ViT-B/16-plus-240", "laion400m_e32"):
        assert hub.endswith("laion400m_e31") and row.hub is None  # their mistake
    else:
        assert row.hub == hub
    if expected["url"]:
        assert row.url == expected["url"]
    else:
        assert row.url == f"https://huggingface.co/{hub}/resolve/main/open_clip_model.safetensors"


def test_every_plain_clip_of_theirs_is_in_the_table() -> None:
    """Every transformer with CLIP's tokenizer, its positions, its class token and its pooling."""
    plain = {theirs(name) for name in ARCHITECTURES}
    expected = {(name, tag) for name, tags in TABLE.items() if name in plain for tag in tags}
    assert {(theirs(row.model), row.tag) for row in ROWS} == expected


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("suffix", ["", "-quickgelu"])
def test_architectures(name: str, suffix: str, tmp_path: Path) -> None:
    path = MODEL_CONFIGS / f"{theirs(name)}{suffix}.json"
    if not path.is_file():
        assert suffix  # some have no entry of their own for it
        return
    content = {"model_cfg": json.loads(path.read_text())}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    described = read_open_clip_config(tmp_path)
    assert described.config is not None
    assert described.config.activation == ("quick_gelu" if suffix else "gelu")
    assert vars(described.config) == {
        **vars(ARCHITECTURES[name]),
        "activation": described.config.activation,
    }


def refusal(folder: Path, content: dict[str, Any]) -> str:
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": content}))
    try:
        read_open_clip_config(folder)
    except ValueError as error:
        return str(error)
    return ""


def test_every_other_model_of_theirs_is_refused_by_a_field(tmp_path: Path) -> None:
    """And each model that is taken has a ViT of CLIP's kind on both sides."""
    taken = set()
    for path in sorted(MODEL_CONFIGS.glob("*.json")):
        content = json.loads(path.read_text())
        message = refusal(tmp_path, content)
        if not message:
            taken.add(path.stem)
            image, text = content["vision_cfg"], content["text_cfg"]
            assert not {"timm_model_name", "attentional_pool", "pool_type"} & set(image), path
            assert not {"hf_model_name", "hf_tokenizer_name", "pool_type"} & set(text), path
            continue
        assert message.startswith(str(tmp_path)) and len(message) < 300 + len(str(tmp_path))
    refused = {path.stem for path in MODEL_CONFIGS.glob("*.json")} - taken
    assert {theirs(name) for name in ARCHITECTURES} <= taken
    for start in ("RN", "convnext", "coca", "EVA", "ViTamin", "PE-", "MobileCLIP", "nllb", "mt5"):
        assert any(name.startswith(start) for name in refused), start
        assert not any(name.startswith(start) for name in taken), start
    assert not {name for name in taken if "SigLIP" in name or "CLIPA" in name}
    assert not {name for name in taken if "worldwide" in name}
