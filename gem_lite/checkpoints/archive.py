"""Reading PyTorch's own files without running anything they contain.

Every unpickling goes through `torch.load(weights_only=True)`. TorchScript archives, which that
refuses, are first copied without their code: what is left is the same zip of one pickle and raw
storages that `torch.save` writes, in which the script classes become inert records.
"""

import _codecs
import argparse
import errno
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

LARGEST_GROWTH, SLACK = 4, 1 << 24  # times a file's size, and bytes, that it may claim to hold
CLIP_ANCHOR = "visual.conv1.weight"
HUGGINGFACE_ANCHOR = "vision_model.embeddings.patch_embedding.weight"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of the disk that is written to


class Record:
    """Stands in for a TorchScript class: keeps the attributes, runs nothing."""

    def __setstate__(self, state: Any) -> None:
        # A class that packs itself in its own way has no attributes, and so no parameters.
        if isinstance(state, dict):
            self.__dict__.update(state)


def is_torchscript(path: Path) -> bool:
    """Whether the file is an archive written by `torch.jit.save`."""
    if not _is_zip(path):
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception as error:  # a damaged file breaks its reader in every way there is
        raise _damaged(path, error) from error


def load_pickle(path: Path) -> Mapping[str, Tensor]:
    """The state dict of a CLIP in a file of `torch.save`, at its top or inside other entries.

    Raises ValueError for a file that is damaged, holds anything that is not plain data, or no CLIP.
    """
    with path.open("rb") as file:
        start = file.read(24)
    if start.startswith(b"PK"):
        if not _is_zip(path):
            raise _damaged(path, "its end is missing")
        _check_claims(path)
    elif not start.startswith(b"\x80"):  # the first byte of every pickle that torch.save writes
        raise ValueError(
            f"{path} is not a checkpoint: it begins with {start!r}; expected safetensors, or a file"
            " of torch.save or torch.jit.save. If it was fetched, fetch it again"
        )
    scalar = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [
        np.dtype,
        *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
        (scalar, "numpy.core.multiarray.scalar"),  # as numpy 1 wrote it
        (scalar, "numpy._core.multiarray.scalar"),  # as numpy 2 does
        (_codecs.encode, "_codecs.encode"),
        argparse.Namespace,
    ]
    return _plain(_find_state_dict(_load(path, path, allowed), path), path)


def load_torchscript(path: Path) -> Mapping[str, Tensor]:
    """Parameters and buffers of a TorchScript archive, under their state-dict names.

    Needs as much space in the temporary folder as the archive takes.
    Raises ValueError for a damaged file.
    """
    _check_claims(path)
    with tempfile.TemporaryDirectory() as folder:
        stripped = Path(folder) / "tensors.pt"
        _copy_without_code(path, stripped)
        try:
            names = torch.serialization.get_unsafe_globals_in_checkpoint(stripped)
        except Exception as error:  # a damaged file breaks its reader in every way there is
            raise _damaged(path, error) from error
        allowed: list[Any] = [
            (type("Record", (Record,), {}), name) for name in names if name.startswith("__torch__.")
        ]
        # TorchScript spells typed lists and dicts as calls of these; the plain one is meant.
        allowed += [(_same, name) for name in names if name.startswith("torch.jit._pickle.")]
        root = _load(stripped, path, allowed)
    if not isinstance(root, Record):
        raise _damaged(path, f"a {type(root).__name__} stands where its module should be")
    try:
        return _plain(dict(_tensors(root, "")), path)
    except RecursionError as error:
        raise _damaged(path, "a module in it contains itself") from error


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile as error:  # an archive in several files
        raise _damaged(path, error) from error


def _check_claims(path: Path) -> None:
    """Refuse an archive that would unpack to far more than it is: a zip bomb.

    PyTorch stores tensors uncompressed; only TorchScript's code, a few kilobytes, is not.
    """
    size = path.stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(entry.file_size for entry in archive.infolist())
    except Exception as error:  # a damaged file breaks its reader in every way there is
        raise _damaged(path, error) from error
    if claimed > LARGEST_GROWTH * size + SLACK:
        raise ValueError(
            f"{path} has {size} bytes and would unpack to {claimed}, which no checkpoint does; it"
            " is refused"
        )


def _same(values: list[Any], *_: Any) -> list[Any]:
    return values


def _copy_without_code(path: Path, target: Path) -> None:
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as copy:
        for entry in archive.infolist():
            _, _, name = entry.filename.partition("/")
            if name not in ("data.pkl", "version", "byteorder") and not name.startswith("data/"):
                continue
            try:
                with archive.open(entry) as source, copy.open(entry.filename, "w") as sink:
                    shutil.copyfileobj(source, sink, 1 << 20)
            except Exception as error:  # a damaged file breaks its reader in every way there is
                if getattr(error, "errno", None) in FULL:
                    raise
                raise _damaged(path, error) from error


def _load(path: Path, named: Path, allowed: list[Any]) -> Any:
    with torch.serialization.safe_globals(allowed):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if foreign := _foreign(path, str(error)):
                raise ValueError(
                    f"{named} is not a plain file of tensors: it would construct or call"
                    f" {', '.join(foreign)}. Such a file could run code when it is read, so it is"
                    " refused; save the state dict alone, as safetensors if you can"
                ) from error
            reason = re.search(r"WeightsUnpickler error: (.+)", str(error))
            raise _damaged(named, reason[1] if reason else error) from error
        except Exception as error:  # a damaged file breaks its reader in every way there is
            raise _damaged(named, error) from error


def _foreign(path: Path, message: str) -> list[str]:
    """What a refused file would import, from the file, else from torch's message."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # not a zip, or a pickle that goes on in an unknown way
        return re.findall(r"GLOBAL (\S+) (?:was not|whose module)", message)


def _damaged(path: Path, reason: Exception | str) -> ValueError:
    shown = (str(reason) or repr(reason)).splitlines()[0].partition(". ")[0]
    return ValueError(
        f"{path} cannot be read ({shown}); it may be damaged or cut short: fetch it again, or save"
        " its state dict as safetensors"
    )


def _tensors(record: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    for name, value in vars(record).items():
        if isinstance(value, Tensor):
            yield prefix + name, value.detach()
        elif isinstance(value, Record):
            yield from _tensors(value, f"{prefix}{name}.")


def _plain(raw: Mapping[str, Tensor], path: Path) -> Mapping[str, Tensor]:
    """The tensors, all of them ordinary, in memory, and together no larger than the file allows.

    A pickle can say that a tensor of any shape is the same few bytes read again and again.
    """
    for name, tensor in raw.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise ValueError(
                f"{path}: {name} is a {tensor.layout} tensor of {tensor.dtype} on {tensor.device};"
                " expected a plain one, with numbers"
            )
    claimed = sum(tensor.numel() * tensor.element_size() for tensor in raw.values())
    size = path.stat().st_size
    if claimed > LARGEST_GROWTH * size + SLACK:
        raise ValueError(
            f"{path} has {size} bytes, but its tensors claim {claimed}; it is damaged or hostile"
        )
    return raw


def _find_state_dict(loaded: Any, path: Path) -> Mapping[str, Tensor]:
    """The mapping with the weights in it, at the top or inside other entries."""
    level = [("", loaded)]
    for _ in range(4):
        models = [
            (name, entries)
            for name, entries in level
            if isinstance(entries, Mapping)
            and any(str(key).endswith((CLIP_ANCHOR, HUGGINGFACE_ANCHOR)) for key in entries)
        ]
        if models:
            names = [name for name, _ in models]
            if len(models) > 1 and names.count("state_dict") != 1:
                raise ValueError(
                    f"{path} holds several models, under the entries {names}; save only one"
                )
            entries = dict(models).get("state_dict", models[0][1])
            return {str(key): value for key, value in entries.items() if isinstance(value, Tensor)}
        level = [
            (str(name), entries)
            for _, outer in level
            if isinstance(outer, Mapping)
            for name, entries in outer.items()
        ]
    top = ", ".join(map(str, list(loaded)[:8])) if isinstance(loaded, Mapping) else type(loaded)
    raise ValueError(
        f"{path} holds no CLIP state dict: no entry ends in {CLIP_ANCHOR!r} or"
        f" {HUGGINGFACE_ANCHOR!r}; its entries: {top}"
    )
