"""Settings of methods in a file's header, and as callers give them: kept, or refused by name."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from small import random_images, small_header, small_model

import gem_lite
from gem_lite.checkpoints.header import Header
from gem_lite.method.methods import make_method, method_classes

WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("naclip", {"std": -1}, "std is -1; expected a number in"),
    ("naclip", {"std": "wide"}, "std is 'wide'; expected a number in"),
    ("naclip", {"std": None}, "std is None; expected a number in"),
    ("naclip", {"sdt": 5.0}, "has no setting 'sdt'"),
    ("naclip", {"positions": "nearest"}, "positions is 'nearest'; expected one of"),
    ("naclip", {"residual": 1}, "residual is 1; expected true or false"),
    ("sclip", {"mlp": "no"}, "mlp is 'no'; expected true or false"),
    ("sclip", {"class_token": "own"}, "class_token is 'own'; expected one of"),
    ("clip_surgery", {"blocks": -6}, "blocks is -6; expected 0 or more"),
    ("clip_surgery", {"features": 5}, "features is 5; expected a string"),
    ("clearclip", {"last": 10**9}, "last is 1000000000; expected 0 or more, at most 1000"),
    ("clearclip", {"last": 10**400}, "last is far too large; expected 0 or more, at most 1000"),
    ("clearclip", {"last": 1000}, "last is 1000; expected 1 to 3 blocks"),
    ("clearclip", {"last": 0}, "last is 0; expected 1 to 3 blocks"),
    ("itaclip", {"middle": "78"}, "middle is '78'; expected several"),
    ("itaclip", {"middle": []}, r"middle is \(\); expected several"),
    ("itaclip", {"middle": [7, 8, 90]}, "block 90 in .*; expected 1 to 12"),
    ("itaclip", {"middle": [7, -8]}, "middle is -8; expected 0 or more"),
    ("resclip", {"rcs": [2.0]}, "rcs is .*; expected several"),
    ("resclip", {"rcs": [2.0, "x"]}, "rcs is 'x'; expected a number in"),
    ("resclip", {"sfr": 3}, "sfr is 3; expected several"),
    ("resclip", {"middle": [6, 0]}, "block 0 in .*; expected 1 to 12"),
    ("sc_clip", {"at": [9, 4, 4]}, "at is .*; expected several"),
    ("sc_clip", {"at": [9, 4, 4, 13]}, "block 13 in .*; expected 1 to 12"),
    ("sc_clip", {"beta": 0}, "beta is 0; expected a number in"),
]


@pytest.mark.parametrize(("name", "settings", "message"), WRONG, ids=lambda case: str(case)[:40])
def test_wrong_settings(name: str, settings: dict[str, Any], message: str) -> None:
    """In a header, in a call, and as lists or tuples alike."""
    content = {**json.loads(small_header().to_json()), "method": name, "settings": settings}
    with pytest.raises(ValueError, match=f"the header is damaged .*{message}"):
        Header.from_json(json.dumps(content))
    with pytest.raises((ValueError, TypeError), match=message):
        small_model().with_method(name, **settings)


def test_optional_settings() -> None:
    made: Any = make_method("resclip", {"std": None, "sfr": None, "pairs": ["qq", "kk"]})
    assert made.std is None and made.sfr is None and made.pairs == ("qq", "kk")
    images = random_images(1, 40, 40)
    with pytest.raises(ValueError, match="pair is 'qz'; expected one of"):
        small_model().with_method("resclip", pairs=("qz",)).encode_image(images)
    with pytest.raises(ValueError, match="no layers to sum"):
        small_model().with_method("sc_clip", at=(9, 4, 10, 4)).encode_image(images)


@pytest.mark.parametrize("name", method_classes())
def test_defaults_are_in_range_and_saved(name: str, tmp_path: Path) -> None:
    model = gem_lite.create_gem_model("tiny-emoji", "v1", method=name)
    gem_lite.save(model, tmp_path / "a.safetensors")
    again = gem_lite.create_gem_model("tiny-emoji", tmp_path / "a.safetensors")
    assert again.method == model.method and again.header.method == name
    defaults = {each.name: each.default for each in fields(model.method)}
    assert make_method(name, defaults) == make_method(name)
    with torch.no_grad():
        images = random_images(1, 64, 64)
        torch.testing.assert_close(again(images, ["cat"]), model(images, ["cat"]))
