"""Traced programs as files, each with what its user has to know in its metadata."""

import os
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..checkpoints.files import atomic_file
from ..checkpoints.header import METADATA_KEY
from .forms import FORMATS
from .graphs import reason

ONE_FILE = 2_000_000_000  # bytes; protocol buffers end at 2 GiB


def chosen_format(path: Path, asked: str | None) -> str:
    """The format asked for, or that of the path's suffix. Raises ValueError or ImportError."""
    chosen = path.suffix.removeprefix(".").lower() if asked is None else asked
    if chosen not in FORMATS:
        raise ValueError(
            f"format is {asked!r}; expected one of {list(FORMATS)}"
            if asked is not None
            else f"{path} ends neither in .pt2 nor in .onnx; give the format"
        )
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if chosen == "onnx" and missing:
        raise ImportError(
            f"ONNX files need {' and '.join(missing)}; install the extra: pip install"
            " 'gem_lite[onnx]'"
        )
    return chosen


def write_pt2(program: Any, path: Path, metadata: str) -> None:
    """`torch.export.save`, whole or not at all; the metadata is its extra file `gem_lite.json`."""
    from torch.export import save

    # By an open file: of a name PyTorch wants a suffix.
    with atomic_file(path) as temporary, open(temporary, "wb") as file:
        save(program, file, extra_files={f"{METADATA_KEY}.json": metadata})


def write_onnx(
    program: Any,
    path: Path,
    metadata: str,
    *,
    what: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
) -> None:
    """An ONNX file, whole or not at all, with metadata property `gem_lite`.

    Weights of more than 2 GB lie beside it, in `<name>.data`. Raises ValueError, which
    begins with `what`, for a program that has no form in ONNX.
    """
    import torch

    with atomic_file(path) as temporary:
        try:
            onnx = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=inputs,
                output_names=outputs,
            )
        except Exception as error:  # of many kinds, PyTorch's own
            raise ValueError(f"{what} has no form in ONNX: {reason(error)}") from error
        assert onnx is not None
        onnx.model.metadata_props[METADATA_KEY] = metadata
        weights = [each.const_value for each in onnx.model.graph.initializers.values()]
        if sum(each.nbytes for each in weights if each is not None) <= ONE_FILE:
            onnx.save(temporary, external_data=False)
            return
        with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            onnx.save(Path(folder, path.name), external_data=True)  # which names its data file
            os.replace(Path(folder, f"{path.name}.data"), path.with_name(f"{path.name}.data"))
            os.replace(Path(folder, path.name), temporary)
