"""The methods: CLIP, GEM and their relatives, each in one file of at most forty lines.

A file here defines one subclass of `Method` with a `name`; nothing else has to be edited.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import fields
from types import ModuleType
from typing import Any, NamedTuple

from ..base import Method


class MethodInfo(NamedTuple):
    """A method as `methods()` lists it."""

    name: str  # what `create_gem_model(method=...)` takes
    summary: str  # one line
    paper: str
    settings: dict[str, Any]  # their defaults


def method_classes() -> dict[str, type[Method]]:
    """The classes of all methods by name, in alphabetical order."""
    classes = {}
    for _, file, _ in pkgutil.iter_modules(__path__):
        for kind in classes_in(importlib.import_module(f".{file}", __name__)):
            classes[kind.name] = kind
    return dict(sorted(classes.items()))


def classes_in(module: ModuleType) -> list[type[Method]]:
    """The methods that a module defines itself."""
    classes = [kind for _, kind in inspect.getmembers(module, inspect.isclass)]
    own = [kind for kind in classes if kind.__module__ == module.__name__]
    return [kind for kind in own if issubclass(kind, Method)]


def methods() -> list[MethodInfo]:
    """Every method with one line on it, its paper and its settings."""
    return [
        MethodInfo(
            name,
            (kind.__doc__ or "").split("\n", maxsplit=1)[0],
            kind.paper,
            {field.name: field.default for field in fields(kind)},
        )
        for name, kind in method_classes().items()
    ]


def make_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """A method by name, with its defaults but for `settings`.

    Raises ValueError for an unknown name or setting (lists those there are) or a value out of
    range, TypeError for a value of another type.
    """
    classes = method_classes()
    if name not in classes:
        raise ValueError(f"unknown method {name!r}; expected one of {list(classes)}")
    return configured(classes[name], settings or {})


def configured(kind: type[Method], settings: Mapping[str, Any]) -> Method:
    """A method of a class with settings as JSON holds them. Raises as `make_method`."""
    known = [field.name for field in fields(kind)]
    if unknown := [key for key in settings if key not in known]:
        raise ValueError(f"method {kind.name!r} has no setting {unknown[0]!r}; it has {known}")
    listed: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()
    }
    return kind(**listed)
