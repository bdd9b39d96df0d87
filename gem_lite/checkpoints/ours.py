"""Our weight files: safetensors with configuration and provenance in the header."""

import json
import math
import os
import struct
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..method.base import Method
from ..method.config import ImageConfig, ModelConfig, TextConfig
from ..method.methods.gem import GEMConfig
from ..method.model import GEMNetwork

FORMAT_VERSION = 1
METADATA_KEY = "gem_lite"

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a weight file says about itself, beside its tensors."""

    model: str  # name, such as "ViT-B/16"
    pretrained: str  # tag, such as "openai"
    config: ModelConfig
    gem: GEMConfig  # the settings that suit these weights
    size: int  # side in pixels that the image transform resizes to by default
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str  # url or file name the weights came from
    sha256: str  # of that source file
    verified: str  # how the hash was checked: "sha256", "sha256 prefix", "unverified", ...
    licence: str
    method: str = "gem"  # name of the method that the file asks for
    settings: dict[str, Any] = field(default_factory=dict)  # of a method other than GEM
    format_version: int = FORMAT_VERSION

    def changed(self, *, config: ModelConfig, method: Method) -> "Header":
        """The header for weights that were in use and may have been trained further.

        A method of the user's own is not recorded: whoever loads the file passes it again.
        """
        header = replace(self, config=config, verified="saved from memory")
        if isinstance(method, GEMConfig):
            return replace(header, gem=method, method="gem", settings={})
        if method.name == Method.name:
            return header
        return replace(header, method=method.name, settings=asdict(method))

    def to_json(self) -> str:
        """The header as the text stored in a file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Header":
        """The header from the text stored in a file. Raises ValueError when it is not one."""
        try:
            content = json.loads(text)
            version = content["format_version"]
            if version > FORMAT_VERSION:
                raise ValueError(
                    f"format version {version} is newer than this package's {FORMAT_VERSION};"
                    " update the package"
                )
            config = content["config"]
            config["image"] = _typed(ImageConfig, config["image"])
            config["text"] = _typed(TextConfig, config["text"])
            content["config"] = _typed(ModelConfig, config)
            content["gem"] = _typed(GEMConfig, content["gem"])
            for name in ("mean", "std"):
                content[name] = _three_numbers(name, content[name])
            return _typed(cls, content)
        except (KeyError, TypeError, RecursionError, json.JSONDecodeError) as error:
            raise ValueError(
                f"the header is damaged ({error!r}); convert the file again"
            ) from error


def _typed(kind: type[_T], values: Any) -> _T:
    """A dataclass made of what JSON held; TypeError for a value of another type than its field."""
    if not isinstance(values, dict):
        raise TypeError(f"{kind.__name__} is {values!r}; expected an object")
    kinds = {each.name: each.type for each in fields(cast(Any, kind))}
    for name, value in values.items():
        expected = kinds.get(name)
        if expected in (int, str, bool) and type(value) is not expected:
            raise TypeError(f"{name} is {value!r}; expected {expected.__name__}")
    return kind(**values)


def _three_numbers(name: str, values: Any) -> tuple[float, ...]:
    if not (
        isinstance(values, list)
        and len(values) == 3
        and all(type(value) in (int, float) and math.isfinite(value) for value in values)
    ):
        raise TypeError(f"{name} is {values!r}; expected three numbers")
    return tuple(values)


@contextmanager
def open_safetensors(path: Path) -> Iterator[safe_open]:
    """A safetensors file, or ValueError saying that it cannot be read as one."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); it may be cut short: fetch or"
            " convert it again"
        ) from error


def read_header(path: str | Path) -> Header | None:
    """Header of a weight file of ours; None for a safetensors file that somebody else wrote.

    Raises FileNotFoundError, or ValueError for a file that is damaged or too new.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weight file at {path}")
    with open_safetensors(path) as file:
        text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        return None
    try:
        return Header.from_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model."""
    with torch.device("meta"):
        network = GEMNetwork(config, Method(blocks=0))
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def check_shapes(found: Mapping[str, tuple[int, ...]], config: ModelConfig, *, where: str) -> None:
    """Raise ValueError naming each missing, extra or wrong tensor."""
    layers = config.image.layers + config.text.layers
    if layers > len(found):  # said before a network of that many is thought of
        raise ValueError(
            f"{where} does not fit the model: {len(found)} tensors for {layers} layers"
        )
    try:
        expected = expected_shapes(config)
    except (TypeError, RuntimeError) as error:  # torch, of sizes beyond 64 bits
        raise ValueError(
            f"{where} does not fit the model: nothing has the sizes {config}"
        ) from error
    faults = [
        f"{name} has shape {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != shape
    ]
    faults += [
        f"missing {name}, expected shape {list(shape)}"
        for name, shape in expected.items()
        if name not in found
    ]
    faults += [
        f"unknown tensor {name} of shape {list(shape)}"
        for name, shape in found.items()
        if name not in expected
    ]
    if faults:
        shown = "; ".join(faults[:8]) + (f"; and {len(faults) - 8} more" if faults[8:] else "")
        raise ValueError(f"{where} does not fit the model: {shown}")


def assemble(
    tensors: Mapping[str, Tensor],
    config: ModelConfig,
    method: Method,
    *,
    dtype: torch.dtype,
    device: torch.device | str,
    share: bool = False,
) -> GEMNetwork:
    """A network that takes each tensor, one at a time, in `dtype` on `device`.

    share: tensors that are so already are taken as they are; otherwise all are copied.
    Names and shapes must have been checked (`check_shapes`). Nothing is initialised first.
    Raises ValueError for copied numbers that are not finite. Shared ones are not read here; they
    lie in files of ours, and `write` lets no such number in.
    """
    with torch.device("meta"):
        network = GEMNetwork(config, method)
    state = {}
    for name in network.state_dict():
        tensor = tensors[name]
        state[name] = tensor.to(device=device, dtype=dtype, copy=not share)
        if state[name] is not tensor:
            check_finite({name: state[name]})
    network.load_state_dict(state, strict=True, assign=True)
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    return network.eval()


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError naming the first tensor that holds infinities or what is no number."""
    for name, tensor in tensors.items():
        # The sum is the quick test; a large one of half numbers may overflow by itself.
        if not torch.isfinite(tensor.sum()) and not torch.isfinite(tensor).all():
            raise ValueError(f"{name} holds numbers that are not finite; is the file damaged?")


class LazyTensors(Mapping[str, Tensor]):
    """The tensors of an open safetensors file, each read when asked for."""

    def __init__(self, file: safe_open) -> None:
        self._file = file
        self._names = list(file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def safetensors_shapes(file: safe_open) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor in an open file, without reading the tensors."""
    return {name: tuple(file.get_slice(name).get_shape()) for name in list(file.keys())}


def load(
    path: str | Path,
    *,
    method: Method | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[GEMNetwork, Header]:
    """Network and header from a weight file of ours, in eval mode.

    `method` None takes GEM with the header's settings. The most memory in use is the model and one
    tensor. Where dtype and device are the file's own, its pages become the model's memory: read
    when first used, copied when written to (the file stays as it is). Such a file may be replaced
    or deleted while the model is in use, but not overwritten in place.
    Raises FileNotFoundError; ValueError for a file that is not ours, is damaged or does not fit.
    """
    header = read_header(path)
    if header is None:
        raise ValueError(f"{path} has no gem_lite header; convert it with convert_weights.py")
    with open_safetensors(Path(path)) as file:
        check_shapes(safetensors_shapes(file), header.config, where=str(path))
        network = assemble(
            LazyTensors(file),
            header.config,
            method or header.gem,
            dtype=dtype,
            device=device,
            share=os.name != "nt",  # Windows lets nobody replace a file that is in use
        )
    return network, header


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` when the block ends well.

    When it does not, the temporary file is removed, and what stood at `path` still stands.
    Raises FileNotFoundError when the folder does not exist.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write {path.name} to; make it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; give the name of a file")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mode = 0o666 & ~_umask()
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write(path: str | Path, tensors: Mapping[str, Tensor], header: Header) -> None:
    """Write a weight file (safetensors; CLIP's names; header as in `Header`), atomically.

    Raises ValueError when the tensors don't fit the header's configuration or are not finite.
    """
    check_finite(tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_shapes(shapes, header.config, where="the model to write")
    kept = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {"format": "pt", METADATA_KEY: header.to_json()}
    with atomic_file(path) as temporary:
        try:
            save_file(kept, temporary, metadata=metadata)
        except SafetensorError as error:  # how it tells of a full disk
            raise OSError(f"writing {path} failed: {error}") from error
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """One order for the metadata, where safetensors picks any: the same model, the same bytes."""
    with open(path, "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        described = json.loads(file.read(length))
        described["__metadata__"] = dict(sorted(described["__metadata__"].items()))
        text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(length))  # the format pads with spaces
