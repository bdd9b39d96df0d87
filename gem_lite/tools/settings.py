"""A method and its settings as the command line writes them: "gem", "naclip:std=3,mlp=false"."""

import json
from typing import Any


def parsed_method(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings; values are JSON, and what is no JSON is a string.

    Raises ValueError for a setting without a name or a value.
    """
    name, _, listed = text.partition(":")
    settings = {}
    for part in listed.split(",") if listed else ():
        key, equals, value = part.partition("=")
        if not (key.strip() and equals):
            raise ValueError(f"--method {text!r}: {part!r} is not NAME=VALUE, such as std=3")
        try:
            settings[key.strip()] = json.loads(value)
        except ValueError:
            settings[key.strip()] = value.strip()
    return name, settings
