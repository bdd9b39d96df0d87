"""A request of the page: its JSON, checked against the limits."""

import base64
import binascii
import json
import re
from typing import Any, NamedTuple

from ...method.methods import methods
from ..demo import DEMO_PICTURES, PHOTOGRAPH
from .limits import Limits, Refusal

WORDS_BYTES = 64_000  # of a request's JSON without its picture
_PICTURE = re.compile(rb'"picture"\s*:\s*"')
_PLACE = "\0picture"  # stands in the JSON for the picture's text


class Question(NamedTuple):
    """A request of the page, checked."""

    model: str
    picture: bytes | str  # an encoded picture, or the name of an example
    prompts: list[str]
    background: list[str]
    methods: list[str]  # one or two, by name
    settings: dict[str, Any]  # of GEM


class NotJSON(Refusal):
    """A request's body is not JSON, or has more of it than any question needs."""


def read_body(body: bytes | bytearray, limits: Limits) -> Question:
    """A request's body, checked against the limits.

    The picture's base64 text is taken out first, so that the JSON parser, which needs twenty times
    the memory of what it reads, sees WORDS_BYTES at most. Raises NotJSON, and ValueError with a
    text for people.
    """
    picture = None
    if match := _PICTURE.search(body):
        end = body.find(b'"', match.end())
        if end >= 0:
            picture = bytes(memoryview(body)[match.end() : end])
            place = json.dumps(_PLACE).encode()
            body = b"".join((body[: match.end() - 1], place, body[end + 1 :]))
    if len(body) > WORDS_BYTES:
        raise NotJSON(f"the request has more than {WORDS_BYTES} bytes beside its picture")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise NotJSON("the request is not JSON") from error
    if isinstance(content, dict) and content.get("picture") == _PLACE:
        content["picture"] = picture
    return read_question(content, limits)


def read_question(content: Any, limits: Limits) -> Question:
    """A request's content, checked against the limits; `picture` is base64, in str or bytes."""
    if not isinstance(content, dict):
        raise ValueError("the request is not a JSON object")
    prompts = _words(content.get("prompts"), "prompts", limits)
    if not prompts:
        raise ValueError("type at least one word to look for")
    picture: Any = content.get("picture")
    if picture is None:
        picture = content.get("example")
        if picture not in (*DEMO_PICTURES, PHOTOGRAPH):
            raise ValueError("choose a picture")
    else:
        if not isinstance(picture, str | bytes):
            raise ValueError("the picture is not base64 text")
        try:
            picture = base64.b64decode(picture, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError("the picture is not base64 text") from error
        if len(picture) > limits.upload_bytes:
            raise ValueError(f"the picture has more than {limits.upload_bytes / 1e6:g} MB")
    settings = content.get("settings", {})
    if not isinstance(settings, dict):
        raise ValueError("the settings are not a JSON object")
    names = content.get("methods", ["gem", "clip"])
    known = [method.name for method in methods()]
    if (
        not isinstance(names, list)
        or not 1 <= len(names) <= 2
        or any(n not in known for n in names)
    ):
        raise ValueError(f"expected one or two methods of: {', '.join(known)}")
    background = _words(content.get("background", []), "background words", limits)
    return Question(str(content.get("model", "")), picture, prompts, background, names, settings)


def _words(values: Any, what: str, limits: Limits) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"the {what} are not a list of strings")
    words = list(dict.fromkeys(" ".join(value.split()) for value in values))
    words = [word for word in words if word]
    if len(words) > limits.prompts:
        raise ValueError(f"{len(words)} {what}; at most {limits.prompts} at a time")
    for word in words:
        if len(word) > limits.letters:
            raise ValueError(f"one of the {what} has {len(word)} letters; at most {limits.letters}")
    return words
