"""The fuzzer's targets on their seeds, on damaged copies of those, and on what it once found."""

import importlib.util
import io
import random
import struct
import zipfile
import zlib
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parents[1] / "fuzz"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", HERE / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


fuzz, mutate = module("fuzz"), module("mutate")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_targets(name: str, tmp_path: Path) -> None:
    target = fuzz.TARGETS[name]
    fuzz.seeds(tmp_path, name)
    chance = random.Random(0)
    inputs = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    assert len(inputs) >= 3
    for content in inputs:
        target(content)
        for _ in range(6):
            damaged = bytearray(content[: chance.randrange(len(content) + 1)])
            for _ in range(min(3, len(damaged))):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            target(bytes(damaged))
    for path in sorted(HERE.glob(f"found/{name}-*")):
        target(path.read_bytes())


def swapped(content: bytes, most: int) -> bytes:
    """Stands in for libFuzzer: another last byte."""
    return content[:-1] + bytes([content[-1] ^ 1]) if content else b"x"


def test_mutations_keep_the_envelope(tmp_path: Path) -> None:
    """About half of them: the archive opens with right checksums, and something in it differs."""
    fuzz.seeds(tmp_path / "checkpoint", "checkpoint")
    fuzz.seeds(tmp_path / "image", "image")
    kinds = {"two.pt": "zip", "script.pt": "zip", "own": "safetensors", "PNG-RGB": "png"}
    for path in sorted(tmp_path.glob("*/*")):
        content = path.read_bytes()
        if path.name not in kinds:
            continue
        whole = 0
        for seed in range(40):
            other = mutate.mutated(content, 40_000, seed, swapped)
            assert len(other) <= 40_000
            if other == swapped(content, 0):  # the bytes as they were, but for the last
                continue
            whole += 1
            if kinds[path.name] == "zip":
                with zipfile.ZipFile(io.BytesIO(other)) as archive:
                    assert archive.testzip() is None
            elif kinds[path.name] == "safetensors":
                (length,) = struct.unpack_from("<Q", other)
                assert other[8 + length :] == content[8 + struct.unpack_from("<Q", content)[0] :]
            else:
                chunks = list(mutate.png_chunks(other))
                assert other[8:] == b"".join(
                    struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
                    for chunk in chunks
                )
        assert 10 <= whole <= 30
