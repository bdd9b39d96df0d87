"""A method and its settings as the command line writes them: "gem", "naclip:std=3,mlp=false"."""

import json
from typing import Any


def parsed_setting(text: str) -> tuple[str, Any]:
    """The name and the value of "std=3"; a value is JSON (a number, true, ...), else a string.

    Raises ValueError for a setting without a name or a value.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not (name and equals):
        raise ValueError(f"{text!r} is not NAME=VALUE, such as std=3")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def parsed_method(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings behind its colon. Raises ValueError as `parsed_setting`."""
    name, colon, listed = text.partition(":")
    return name, dict(map(parsed_setting, listed.split(","))) if colon else {}
