"""Reading PyTorch's own files without running anything they contain.

Every unpickling goes through `torch.load(weights_only=True)`. TorchScript archives, which that
refuses, are first copied without their code: what is left is the same zip of one pickle and raw
storages that `torch.save` writes, in which the script classes become inert records.
"""

import _codecs
import argparse
import pickle
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


class Record:
    """Stands in for a TorchScript class: keeps the attributes, runs nothing."""


def is_torchscript(path: Path) -> bool:
    """Whether the file is an archive written by `torch.jit.save`."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def load_pickle(path: Path) -> Any:
    """What `torch.save` wrote to the file: tensors, numbers, strings, lists and dicts of them.

    Raises ValueError for a damaged file, or one that holds anything that is not plain data.
    """
    scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [
        np.dtype,
        *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
        (scalar, "numpy.core.multiarray.scalar"),  # as numpy 1 wrote it
        (scalar, "numpy._core.multiarray.scalar"),  # as numpy 2 does
        (_codecs.encode, "_codecs.encode"),
        argparse.Namespace,
    ]
    return _load(path, path, allowed)


def load_torchscript(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers of a TorchScript archive, under their state-dict names.

    Needs as much space in the temporary folder as the archive takes.
    Raises ValueError for a damaged file.
    """
    with tempfile.TemporaryDirectory() as folder:
        stripped = Path(folder) / "tensors.pt"
        try:
            _copy_without_code(path, stripped)
            names = torch.serialization.get_unsafe_globals_in_checkpoint(stripped)
        except (zipfile.BadZipFile, RuntimeError, EOFError) as error:
            raise _damaged(path, error) from error
        allowed: list[Any] = [
            (type("Record", (Record,), {}), name) for name in names if name.startswith("__torch__.")
        ]
        # TorchScript spells typed lists as calls of these; the plain list is what they mean.
        allowed += [(_same, name) for name in names if name.startswith("torch.jit._pickle.build_")]
        root = _load(stripped, path, allowed)
    return dict(_tensors(root, ""))


def _same(values: list[Any], *_: Any) -> list[Any]:
    return values


def _copy_without_code(path: Path, target: Path) -> None:
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as copy:
        for entry in archive.infolist():
            _, _, name = entry.filename.partition("/")
            if name in ("data.pkl", "version", "byteorder") or name.startswith("data/"):
                with archive.open(entry) as source, copy.open(entry.filename, "w") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)


def _load(path: Path, named: Path, allowed: list[Any]) -> Any:
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        try:
            foreign = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        except (RuntimeError, pickle.UnpicklingError, ValueError):
            foreign = []
        known = {entry[1] for entry in allowed if isinstance(entry, tuple)}
        foreign = sorted(set(foreign) - known)
        if foreign:
            reason = f"it would construct or call {', '.join(foreign)}"
        raise ValueError(
            f"{named} is not a plain file of tensors: {reason}. Such a file could run code when it"
            " is read, so it is refused; save the state dict alone, as safetensors if you can"
        ) from error
    except (RuntimeError, EOFError, zipfile.BadZipFile, KeyError, OSError) as error:
        raise _damaged(named, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = (str(error) or repr(error)).splitlines()[0]
    return ValueError(f"{path} cannot be read ({reason}); it may be cut short: fetch it again")


def _tensors(record: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(record).items():
        if isinstance(value, Tensor):
            yield prefix + name, value.detach()
        elif isinstance(value, Record):
            yield from _tensors(value, f"{prefix}{name}.")
