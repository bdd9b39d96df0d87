"""Our weight files: safetensors with configuration and provenance in the header."""

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..method.base import Method
from ..method.model import GEMNetwork
from .assemble import assemble, check_finite, check_shapes, shapes_of
from .files import atomic_file, shown
from .header import METADATA_KEY, Header
from .records import is_checked, remember_checked

DIGEST_KEY = "gem_lite_digest"


class LazyTensors(Mapping[str, Tensor]):
    """The tensors of an open safetensors file, each read when asked for."""

    def __init__(self, file: safe_open) -> None:
        self._file = file
        self.metadata: dict[str, str] = file.metadata() or {}
        names: list[str] = list(file.keys())
        self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in names}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self.shapes:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)


def open_file(path: str | Path) -> tuple[LazyTensors, Header | None]:
    """The tensors of a safetensors file, and the header if it is one of ours.

    Raises FileNotFoundError, or ValueError for a file that is damaged or too new.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weight file at {path}")
    try:
        file = safe_open(path, framework="pt")
        tensors = LazyTensors(file)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); it may be cut short: fetch it"
            " again, or convert it again"
        ) from error
    text = tensors.metadata.get(METADATA_KEY)
    try:
        return tensors, None if text is None else Header.from_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def tensors_digest(tensors: Mapping[str, Tensor], header: str) -> str:
    """SHA-256 of a header's text and of all tensors, in the order of their names."""
    digest = hashlib.sha256(header.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_digest(path: Path, tensors: LazyTensors, *, again: bool = False) -> bool:
    """Hold a file of ours against the digest in it, once on this machine or `again`.

    False for a file without a digest. Raises ValueError for one that does not fit.
    """
    written = tensors.metadata.get(DIGEST_KEY)
    if written is None:
        return False
    if again or not is_checked(path, written):
        digest = tensors_digest(tensors, tensors.metadata.get(METADATA_KEY, ""))
        if digest != written:
            raise ValueError(
                f"{path} was changed after it was written: its digest is {digest}, and it says"
                f" {shown(Exception(written))}; fetch or convert it again"
            )
        remember_checked(path, written)
    return True


def read_header(path: str | Path) -> Header | None:
    """Header of a weight file of ours; None for a safetensors file that somebody else wrote.

    Raises FileNotFoundError, or ValueError for a file that is damaged or too new.
    """
    return open_file(path)[1]


def load(
    path: str | Path,
    *,
    method: Method | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    mmap: bool = True,
) -> tuple[GEMNetwork, Header]:
    """Network and header from a weight file of ours, in eval mode.

    `method` None takes GEM with the header's settings. The most memory in use is the model and one
    tensor. Where dtype and device are the file's own, its pages become the model's memory: read
    when first used, copied when written to (the file stays as it is). Such a file may be replaced
    or deleted while the model is in use, but not overwritten in place; `mmap` False reads all of
    it instead. The first time on a machine, the tensors are held against the file's digest.
    Raises FileNotFoundError; ValueError for a file that is not ours, is damaged or does not fit.
    """
    tensors, header = open_file(path)
    if header is None:
        raise ValueError(f"{path} has no gem_lite header; convert it with convert_weights.py")
    check_shapes(tensors.shapes, header.config, where=str(path))
    check_digest(Path(path), tensors)
    network = assemble(
        tensors,
        header.config,
        method or header.gem,
        dtype=dtype,
        device=device,
        share=mmap,
        where=str(path),
    )
    return network, header


def write(path: str | Path, tensors: Mapping[str, Tensor], header: Header) -> None:
    """Write a weight file (safetensors; CLIP's names; header as in `Header`), atomically.

    Tensors beyond CLIP's, of an edited network, are written too.
    Raises ValueError when CLIP's don't fit the header's configuration, or any is not finite.
    """
    check_finite(tensors)
    check_shapes(shapes_of(tensors), header.config, where="the model to write")
    contiguous: dict[str, Tensor] = {}
    written: set[int] = set()  # places of memory: safetensors refuses tensors that share it
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        place = whole.untyped_storage().data_ptr()
        contiguous[name] = whole.clone() if place in written else whole
        written.add(place)
    text = header.to_json()
    metadata = {
        "format": "pt",
        METADATA_KEY: text,
        DIGEST_KEY: tensors_digest(contiguous, text),
    }
    with atomic_file(path) as temporary:
        try:
            save_file(contiguous, temporary, metadata=metadata)
        except SafetensorError as error:  # a full disk, too
            raise OSError(f"writing {path} failed: {error}") from error
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """One order for the metadata, where safetensors picks any: the same model, the same bytes."""
    with open(path, "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        content = json.loads(file.read(length))
        content["__metadata__"] = dict(sorted(content["__metadata__"].items()))
        text = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(length))  # the format pads with spaces
