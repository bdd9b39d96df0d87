"""Mutations that keep a file's envelope whole, so that more than its checksum is tested.

A flipped bit in a zip archive or a PNG is found by its CRC, and one in the length of a safetensors
header ends the reading there. Half of the time, therefore, one part is taken out, mutated by
libFuzzer, and put back under lengths and checksums that fit.
"""

import io
import json
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any

Mutate = Callable[[bytes, int], bytes]  # content, most bytes of the outcome
PNG = b"\x89PNG\r\n\x1a\n"


def mutated(data: bytes, most: int, seed: int, mutate: Mutate) -> bytes:
    """The input changed: as bytes, or within its envelope where it has one that is known."""
    chance = random.Random(seed)
    if chance.random() < 0.5:
        try:
            if data.startswith(b"PK"):
                return _zip(data, most, chance, mutate)
            if data.startswith(PNG):
                return _png(data, most, chance, mutate)
            if data[6:9] == b"\0\0{":
                return _safetensors(data, most, chance, mutate)
        except Exception:  # damaged before: nothing to keep whole
            pass
    return mutate(data, most)


def _zip(data: bytes, most: int, chance: random.Random, mutate: Mutate) -> bytes:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    pickles = [name for name in parts if name.endswith(".pkl")]
    name = chance.choice(pickles if pickles and chance.random() < 0.8 else list(parts))
    room = max(1, most - len(data) + len(parts[name]))
    parts[name] = mutate(parts[name], room)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in parts.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return out.getvalue()[:most]


def _png(data: bytes, most: int, chance: random.Random, mutate: Mutate) -> bytes:
    chunks = list(png_chunks(data))
    place = chance.randrange(len(chunks))
    chunks[place] = mutate(chunks[place], max(5, most - len(data) + len(chunks[place])))
    out = PNG
    for chunk in chunks:
        out += struct.pack(">I", max(0, len(chunk) - 4)) + chunk
        out += struct.pack(">I", zlib.crc32(chunk))
    return out[:most]


def png_chunks(data: bytes) -> Iterator[bytes]:
    """Kind and content of each chunk, in order."""
    at = len(PNG)
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        yield data[at + 4 : at + 8 + length]
        at += 12 + length


def _safetensors(data: bytes, most: int, chance: random.Random, mutate: Mutate) -> bytes:
    (length,) = struct.unpack_from("<Q", data)
    header, body = data[8 : 8 + length], data[8 + length :]
    if chance.random() < 0.3:
        header = mutate(header, max(2, most - 8 - len(body)))
    else:
        described = json.loads(header)
        metadata = described.get("__metadata__", {})
        if "gem_lite" in metadata and chance.random() < 0.7:
            inner = json.loads(metadata["gem_lite"])
            metadata["gem_lite"] = json.dumps(_replaced(inner, chance))
        else:
            described = _replaced(described, chance)
        header = json.dumps(described).encode()
    return (struct.pack("<Q", len(header)) + header + body)[:most]


ODD = (None, True, -1, 0, 1, 3, 1e308, float("nan"), 2**31, 2**63, "", "F16", "ln_1", [], {}, [[]])


def _replaced(value: Any, chance: random.Random) -> Any:
    """The JSON with an entry somewhere in it replaced, removed, added or copied."""
    if not value or not isinstance(value, dict | list) or chance.random() < 0.1:
        return chance.choice(ODD)
    places = list(value) if isinstance(value, dict) else list(range(len(value)))
    place, act = chance.choice(places), chance.random()
    if act < 0.1:
        del value[place]
    elif act < 0.2:
        value[place] = value[chance.choice(places)]
    elif act < 0.3 and isinstance(value, dict):
        value[chance.choice(("size", "ln_1", place + "x"))] = chance.choice(ODD)
    else:
        value[place] = _replaced(value[place], chance)
    return value
