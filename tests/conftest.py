"""What tests of the commands share: a weight file, and no progress when a machine is slow."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# Where tests run side by side (`pytest -n`), each process takes its share of the cores, and so do
# the programs that it starts. Read by PyTorch as it is imported.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    share = (os.cpu_count() or 1) // int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(share, 1)))

# Exporting and compiling make millions of objects, through which Python would look for circles
# again and again: a twentieth of the time of all tests.
gc.freeze()
gc.set_threshold(200_000, 20, 20)

from small import small_model  # noqa: E402

import gem_lite as gem  # noqa: E402
from gem_lite.tools import progress  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache folder of the tests' own, in which is noted which files were checked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small random model as a file of ours; not to be written to."""
    path = tmp_path_factory.mktemp("weights") / "small.safetensors"
    gem.save(small_model(), path)
    return path


@pytest.fixture(autouse=True)
def no_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain lines of progress come by the clock; tests that want them set these back."""
    monkeypatch.setattr(progress, "FIRST_LINE", float("inf"))
    monkeypatch.setattr(progress, "FIRST_STEP", float("inf"))
