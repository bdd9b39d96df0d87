"""What tests of the commands share: a weight file, and no progress when a machine is slow."""

from pathlib import Path

import pytest
from small import small_model

import gem_lite as gem
from gem_lite.tools import progress


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
