"""A wrong sign or a dropped step in a method's own function: what holds it notices."""

from collections.abc import Callable
from functools import cache
from typing import Any

import family_reference as reference
import pytest
import torch
from family_model import arrays, random_picture, texts
from test_methods import GOLDEN, RESCLIP, TOLERANCE, encode, encoder, error, other_tower, stored
from test_methods import weighted_gem as plain_videogem
from test_registers import METHOD as REGISTERS
from test_registers import registers as plain_registers
from torch import Tensor

from gem_lite.method import attention, base, blocks, neurons, scores, semantic
from gem_lite.method.heatmap import score_maps
from gem_lite.method.methods import (
    clearclip,
    clip_surgery,
    itaclip,
    legrad,
    make_method,
    maskclip,
    methods,
    naclip,
    registers,
    resclip,
    sc_clip,
    sclip,
    sfp,
    videogem,
)

# The arrays of family.npz, made by the authors' code, that hold each method.
GOLDENS = {
    "clip": "clip",
    "gem": "gem",
    "maskclip": "maskclip_quickgelu",
    "clip_surgery": "surgery",
    "sclip": "sclip",
    "clearclip": "clearclip/ClearCLIP",
    "naclip": "naclip/reduced_naclip_std5",
    "sc_clip": "scclip",
    "sfp": "sfp/SOM",
    "itaclip": "itaclip",
    "resclip": "resclip",
    "legrad": "legrad/last2",
}
# Those without: nobody's outputs could be had, so the paper's formula, written again naively.
ORACLES = {"videogem": "test_methods.weighted_gem", "registers": "test_registers.registers"}


@cache
def plain(name: str) -> Tensor:
    """The features [n, e] that an oracle gives."""
    tower, image = other_tower(), random_picture("other", (48, 48))
    if name == "registers":
        return reference.project(tower, plain_registers(tower, image, REGISTERS))
    shares = (0.3, 0.4, 0.5, 0.6, 0.7, 0.9, 0.9, 0.9)
    return reference.project(tower, plain_videogem(tower, image, shares))


@torch.no_grad()
def distance(name: str) -> float:
    """How far a method, or a variant in `GOLDEN`, is from what holds it, of the largest value."""
    words = texts(dtype=torch.float32)
    if name in ORACLES:
        method = REGISTERS if name == "registers" else make_method(name)
        found = encoder(other_tower(), method)(random_picture("other", (48, 48))[None]).gem[0]
        return error(found, plain(name))
    if name == "feature surgery":
        method = make_method("clip_surgery", {"features": "surgery"})
        visual, image, features = encode("surgery", "native", GOLDEN["surgery"])
        expected = stored("surgery/native/similarity_surgery")[1:].T
        return error(method.scores(visual, image, features, words)[0], expected)
    if name == "resclip":
        visual, image, features = encode(name, "native", RESCLIP[name])
        found = RESCLIP[name].scores(visual, image, features, words)
        return error(found[0], stored("resclip/native/cos").flatten(1))
    if name == "legrad":
        method = make_method(name)
        visual, image, features = encode(name, "native", method)
        found = method.scores(visual, image, features, words[:3])
        maps = score_maps(found, features.grid, (112, 112))[0][:, 3::4, 3::4]
        return error(maps, stored("legrad/last2/native/map"))
    golden = GOLDENS.get(name, name)
    expected = stored(f"{golden}/native/features")
    _, _, features = encode(golden, "native", GOLDEN[golden])
    return error(features.gem[0, -len(expected) :], expected)


Function = Callable[..., Any]


def negated(function: Function) -> Function:
    """With its first argument negated: scores with the wrong sign."""
    return lambda first, *rest, **named: function(-first, *rest, **named)


def nothing(function: Function) -> Function:
    """The step left out: it returns its first argument."""
    return lambda first, *rest, **named: first


def zeros(function: Function) -> Function:
    """The term left out."""
    return lambda *rest, **named: torch.zeros_like(function(*rest, **named))


def first_only(function: Function) -> Function:
    """The first call's term alone."""
    calls: list[int] = []

    def damaged(*rest: Any, **named: Any) -> Tensor:
        calls.append(1)
        out = function(*rest, **named)
        return out if len(calls) == 1 else torch.zeros_like(out)

    return damaged


def colder(function: Function) -> Function:
    return lambda streams, v, inv_temp, **named: function(streams, v, -inv_temp, **named)


def unrefined(function: Function) -> Function:
    return lambda *rest, **named: function(*rest, **{**named, "iters": 0})


def two_streams(function: Function) -> Function:
    return lambda streams, *rest, **named: function(streams[:2], *rest, **named)


def no_window(function: Function) -> Function:
    return lambda a, b, v, bias=None: function(a, b, v)


def no_mlp(function: Function) -> Function:
    return lambda *rest, **named: function(*rest, **{**named, "mlp": False})


def own_scale(function: Function) -> Function:
    return lambda x, channels: function(x, 2 * channels)


def patch_for_class_token(function: Function) -> Function:
    return lambda x, text: function(torch.cat([x[:, 1:2], x[:, 1:]], dim=1), text)


# Method, owner of the function, its name, what becomes of it.
DAMAGES: list[tuple[str, Any, str, Callable[[Function], Function]]] = [
    ("clip", attention, "project", lambda f: lambda *x: torch.stack([-(y := f(*x))[0], *y[1:]])),
    ("clip", blocks.MLP, "forward", lambda f: lambda self, x: torch.zeros_like(x)),
    ("gem", attention, "self_self_attention", colder),
    ("gem", attention, "self_self_attention", unrefined),
    ("gem", attention, "self_self_attention", two_streams),
    ("gem", attention, "adaptive_inv_temp", own_scale),
    ("videogem", attention, "self_self_attention", colder),
    ("videogem", attention, "self_self_attention", unrefined),
    ("videogem", videogem.VideoGEM, "attention", lambda f: lambda self, heads: -f(self, heads)),
    ("maskclip", maskclip.MaskCLIP, "attention", lambda f: lambda self, heads: -heads.v),
    ("maskclip", maskclip.MaskCLIP, "attention", lambda f: base.Method.attention),
    ("clip_surgery", clip_surgery, "attend", negated),
    ("clip_surgery", clip_surgery, "attend", lambda f: lambda a, b, v: v),
    ("feature surgery", scores, "similarity", negated),
    ("feature surgery", clip_surgery, "feature_surgery", patch_for_class_token),
    ("feature surgery", clip_surgery, "feature_surgery", lambda f: lambda x, t: f(x, t, t[:1])),
    ("sclip", sclip, "attend", negated),
    ("sclip", sclip, "attend", first_only),
    ("clearclip", clearclip, "attend", negated),
    ("clearclip/ClearCLIP_last3", clearclip.ClearCLIP, "combine", lambda f: lambda self, x, _: x),
    ("naclip", naclip, "attend", negated),
    ("naclip", naclip, "attend", no_window),
    ("naclip", naclip, "gaussian_window", lambda f: lambda *x: -f(*x)),
    ("resclip", semantic, "weights", negated),
    ("resclip", semantic, "gaussian_window", zeros),
    ("resclip", semantic, "class_agreement", zeros),
    ("resclip", semantic, "patch_classes", zeros),
    ("resclip", semantic, "refine", nothing),
    ("resclip", resclip, "second_pass", lambda f: lambda *x: x[-1]),
    ("sc_clip", sc_clip, "weights", negated),
    ("sc_clip", sc_clip, "repair", nothing),
    ("sc_clip", sc_clip, "aggregate", nothing),
    ("sc_clip", sc_clip, "affinity", negated),
    ("sc_clip", sc_clip, "outliers", lambda f: lambda x: ~f(x)),
    ("sc_clip", sc_clip, "sum_of", lambda f: lambda x: list(x)[-1]),
    ("sfp", sfp, "weights", negated),
    ("sfp", sfp, "repair", nothing),
    ("sfp", sfp, "aggregate", nothing),
    ("sfp", sfp, "affinity", negated),
    ("sfp", sfp, "sinks", zeros),
    ("sfp", sfp, "sum_of", lambda f: lambda x: list(x)[-1]),
    ("itaclip", itaclip, "weights", negated),
    ("itaclip", itaclip.ITACLIP, "_own", first_only),
    ("legrad", legrad, "weights", negated),
    ("legrad", legrad, "_relevance", lambda f: lambda *x: -f(*x)),
    ("legrad", legrad, "_relevance", first_only),
    ("legrad", base.Trunk, "dense", no_mlp),
    ("registers", registers, "register_neurons", zeros),
    ("registers", neurons, "attend", negated),
    ("registers", registers, "with_register", lambda f: lambda trunk, _: trunk.tokens[12]),
]


@pytest.mark.parametrize("name", [*GOLDENS, *ORACLES, "feature surgery"])
def test_undamaged(name: str) -> None:
    assert distance(name) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "owner", "function", "damage"),
    DAMAGES,
    ids=[f"{name}-{function}-{number}" for number, (name, _, function, _) in enumerate(DAMAGES)],
)
def test_damage_is_noticed(
    name: str,
    owner: Any,
    function: str,
    damage: Callable[[Function], Function],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if name in ORACLES:
        plain(name)
    monkeypatch.setattr(owner, function, damage(getattr(owner, function)))
    assert not distance(name) <= 100 * TOLERANCE


def test_every_method_is_held_and_damaged() -> None:
    names = {info.name for info in methods()}
    assert GOLDENS.keys() | ORACLES.keys() == names and not GOLDENS.keys() & ORACLES.keys()
    for golden in GOLDENS.values():
        assert any(key.startswith(f"{golden}/native/") for key in arrays()), golden
    damaged = [name.split("/")[0] for name, *_ in DAMAGES]
    assert all(damaged.count(name) >= 2 for name in names)
