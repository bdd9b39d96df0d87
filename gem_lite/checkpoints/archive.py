"""Reading PyTorch's own files without running anything they contain.

Every pickle is first followed by `pickles.inspect`, and then unpickled by
`torch.load(weights_only=True)`. TorchScript archives, which that refuses, are copied without their
code: what is left is the same zip of one pickle and raw storages that `torch.save` writes, in which
the script classes become inert records.
"""

import errno
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .files import shown
from .pickles import INERT, SCRIPT_CALL, SCRIPT_CLASS, Contents, Refused, inspect

LARGEST_GROWTH, SLACK = 4, 1 << 24  # times a file's size, and bytes, that it may claim to hold
CLIP_ANCHOR = "visual.conv1.weight"
HUGGINGFACE_ANCHOR = "vision_model.embeddings.patch_embedding.weight"
LARGEST_PICKLE = 1 << 23  # bytes; that of ViT-bigG/14 has some 200,000
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errors of the disk that is written to


class Record:
    """Stands in for a TorchScript class: keeps the attributes, runs nothing."""

    def __setstate__(self, state: Any) -> None:
        # A class that packs itself in its own way has no attributes, and so no parameters.
        if isinstance(state, dict):
            self.__dict__.update(state)


class Inert:
    """Stands in for what is not a weight, such as a trainer's numbers and arguments."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _Same:
    """Stands in for how TorchScript spells typed lists and dicts; the plain one is meant."""

    def __call__(self, values: Any, *_: Any) -> Any:
        return values


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
        contents = _inspect_zip(path, path)
    elif start.startswith(b"\x80"):  # the first byte of every pickle that torch.save writes
        contents = _inspect_old(path)
    else:
        raise ValueError(
            f"{path} is not a checkpoint: it begins with {start!r}; expected safetensors, or a file"
            " of torch.save or torch.jit.save. If it was fetched, fetch it again"
        )
    return _plain(_find_state_dict(_load(path, path, contents), path), path)


def load_torchscript(path: Path) -> Mapping[str, Tensor]:
    """Parameters and buffers of a TorchScript archive, under their state-dict names.

    Needs as much space in the temporary folder as the archive takes.
    Raises ValueError for a damaged file.
    """
    _check_claims(path)
    with tempfile.TemporaryDirectory() as folder:
        stripped = Path(folder) / "tensors.pt"
        _copy_without_code(path, stripped)
        root = _load(stripped, path, _inspect_zip(stripped, path))
    if not isinstance(root, Record):
        raise _damaged(path, f"a {type(root).__name__} stands where its module should be")
    return _plain(dict(_tensors(root, "", path, set())), path)


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


def _inspect_zip(path: Path, named: Path) -> Contents:
    """What the one pickle of an archive would do."""
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [entry for entry in archive.infolist() if entry.filename.endswith("data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > LARGEST_PICKLE:
                raise Refused(f"{len(pickles)} pickles in it, or a large one; expected one")
            contents = inspect(archive.read(pickles[0]))
            folder = pickles[0].filename.removesuffix("data.pkl")
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
            for key, claim in contents.storages.items():
                # PyTorch 2.6 does not look, and reads on behind the record.
                if sizes.get(name := f"{folder}data/{key}", claim) < claim:
                    raise Refused(f"{name} has {sizes[name]} bytes, its tensor claims {claim}")
    except Exception as error:  # a damaged file breaks its reader in every way there is
        raise _damaged(named, error) from error
    return _checked(contents, named)


def _inspect_old(path: Path) -> Contents:
    """What the pickles at the start of a file of the old form would do: five, before storages."""
    contents = Contents()
    with path.open("rb") as file:
        for _ in range(5):
            start = file.tell()
            if file.read(1) != b"\x80":
                break
            file.seek(start)
            try:
                part = inspect(file)
            except Refused as error:
                raise _damaged(path, error) from error
            contents.names |= part.names
            contents.storages |= part.storages
            _checked(contents, path)
            if file.tell() > LARGEST_PICKLE:
                raise _damaged(path, "its pickles are too large")
    _check_size(sum(contents.storages.values()), path)
    return contents


def _checked(contents: Contents, path: Path) -> Contents:
    if foreign := contents.foreign:
        listed = ", ".join(shown(Exception(name)) for name in foreign[:8])
        raise ValueError(
            f"{path} is not a plain file of tensors: it would construct or call {listed}. Such a"
            " file could run code when it is read, so it is refused; save the state dict alone, as"
            " safetensors if you can"
        )
    return contents


def _load(path: Path, named: Path, contents: Contents) -> Any:
    # Classes of this call alone: another thread's call ends by forgetting its own.
    inert, record, listed = type("Inert", (Inert,), {}), type("Record", (Record,), {}), _Same()
    stand_ins = ((INERT, inert), (SCRIPT_CLASS, record), (SCRIPT_CALL, listed))
    allowed: list[Any] = [
        (stand_in, name)
        for name in contents.names
        for pattern, stand_in in stand_ins
        if pattern.fullmatch(name)
    ]
    with torch.serialization.safe_globals(allowed):
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file breaks its reader in every way there is
            raise _damaged(named, error) from error


def _damaged(path: Path, reason: Exception | str) -> ValueError:
    text = (str(reason) or repr(reason)).rpartition("WeightsUnpickler error: ")[2]
    text = text.strip().splitlines()[0] if text.strip() else repr(reason)
    return ValueError(
        f"{path} cannot be read ({shown(Exception(text))}); it may be damaged or cut short: fetch"
        " it again, or save its state dict as safetensors"
    )


def _tensors(
    record: Any, prefix: str, path: Path, visited: set[int]
) -> Iterator[tuple[str, Tensor]]:
    if id(record) in visited:
        raise _damaged(path, "a module in it is there twice, or contains itself")
    visited.add(id(record))
    for name, value in vars(record).items():
        if isinstance(value, Tensor):
            yield f"{prefix}{name}", value.detach()
        elif isinstance(value, Record):
            yield from _tensors(value, f"{prefix}{name}.", path, visited)


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
    _check_size(sum(tensor.numel() * tensor.element_size() for tensor in raw.values()), path)
    return raw


def _check_size(claimed: int, path: Path) -> None:
    size = path.stat().st_size
    if claimed > LARGEST_GROWTH * size + SLACK:
        raise ValueError(
            f"{path} has {size} bytes, but its tensors claim {claimed}; it is damaged or hostile"
        )


def _find_state_dict(loaded: Any, path: Path) -> Mapping[str, Tensor]:
    """The mapping with the weights in it, at the top or inside other entries."""
    level = [("", loaded)]
    visited = set()
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
        inner = []
        for _, outer in level:
            if isinstance(outer, Mapping) and id(outer) not in visited:
                visited.add(id(outer))
                inner += [(str(name), entries) for name, entries in outer.items()]
        level = list({id(entries): (name, entries) for name, entries in reversed(inner)}.values())
        level.reverse()
    top = ", ".join(map(str, loaded)) if isinstance(loaded, Mapping) else type(loaded)
    raise ValueError(
        f"{path} holds no CLIP state dict: no entry ends in {CLIP_ANCHOR!r} or"
        f" {HUGGINGFACE_ANCHOR!r}; its entries: {shown(Exception(top))}"
    )
