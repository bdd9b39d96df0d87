"""A method and its settings as the command line writes them: "gem", "naclip:std=3,mlp=false"."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..method.base import Method


def parsed_setting(text: str) -> tuple[str, Any]:
    """The name and the value of "std=3"; a value is JSON (a number, true, ...), else a string.

    Raises ValueError for a setting without a name or a value.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals):
        raise ValueError(f"{text!r} is not NAME=VALUE, such as std=3")
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError):
        return name, value


def parsed_method(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings behind its colon, parted by commas outside of brackets.

    Raises ValueError as `parsed_setting`.
    """
    name, colon, listed = text.partition(":")
    return name, dict(map(parsed_setting, re.split(r",(?![^\[]*\])", listed))) if colon else {}


def asked_method(
    text: str, more: Mapping[str, Any] | None = None
) -> tuple[str | Method, dict[str, Any]]:
    """The method written, with `more` settings: its name and them, or the method of a file.

    "own.py:std=3" runs that file, which defines one subclass of Method; it may be written as those
    in `methods/` are. Raises ValueError for an unknown method or setting, FileNotFoundError.
    """
    from ..method import methods

    name, settings = parsed_method(text)
    settings.update(more or {})
    try:
        if name.endswith(".py"):
            return methods.configured(_kind_in(Path(name)), settings), {}
        methods.make_method(name, settings)
    except TypeError as error:
        raise ValueError(f"--method {text}: {error}") from error
    return name, settings


def _kind_in(path: Path) -> type[Method]:
    """The method that a file of the user's defines, which is run for it."""
    from ..method import methods

    if not path.is_file():
        raise FileNotFoundError(f"--method {path}: there is no such file")
    # A name beside the methods' own, from which their relative imports work.
    spec = importlib.util.spec_from_file_location(f"{methods.__name__}._file_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        steps = traceback.extract_tb(error.__traceback__)
        line = [step.lineno for step in steps if step.filename == spec.origin][-1:]
        line = [error.lineno] if isinstance(error, SyntaxError) else line
        raise ValueError(f"{path}, line {line[0]}: {type(error).__name__}: {error}") from error
    kinds = methods.classes_in(module)
    if len(kinds) != 1:
        raise ValueError(f"--method {path}: {len(kinds)} subclasses of Method; expected one")
    return kinds[0]
