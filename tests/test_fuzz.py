"""The fuzzer's targets on their seeds, on damaged copies of those, and on what it once found."""

import importlib.util
import random
from pathlib import Path

import pytest

HERE = Path(__file__).parent / "fuzz"
SPEC = importlib.util.spec_from_file_location("fuzz_targets", HERE / "fuzz.py")
assert SPEC is not None and SPEC.loader is not None
fuzz = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(fuzz)


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
