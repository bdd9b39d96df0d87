"""Other people's checkpoints, read under CLIP's names: literal name tables.

Four layouts are known: (a) OpenAI's TorchScript archives, (b) `.pt` state dicts as MetaCLIP, LAION
and open_clip write them, (c) open_clip safetensors, (d) Hugging Face `CLIPModel` files. Our own
files are read too. The first three already carry CLIP's names; only (d) needs a table.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import Tensor

from ..method.config import Activation, ModelConfig
from .archive import CLIP_ANCHOR, HUGGINGFACE_ANCHOR, is_torchscript, load_pickle, load_torchscript
from .assemble import Shapes, shapes_of
from .configs import read_huggingface_configs
from .files import file_sha256
from .header import Header
from .huggingface import Part, RenamedTensors, huggingface_entry
from .open_clip import read_open_clip_config
from .ours import open_file

Layout = Literal["torchscript", "pickle", "safetensors", "huggingface", "gem_lite"]

# Written by trainers into a state dict, and no weight: dropped on purpose.
CLIP_DROPPED = ("input_resolution", "context_length", "vocab_size", "attn_mask")

# The weight file of a folder, the one beside a Hugging Face config.json first.
FOLDER_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint as read: tensors under CLIP's names, and what the file says of itself."""

    path: Path  # the weight file
    layout: Layout
    tensors: Mapping[str, Tensor]
    claims: dict[str, Activation] = field(default_factory=dict)  # origin: activation
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    config: ModelConfig | None = None  # where the file describes the whole model
    header: Header | None = None  # of a file of ours

    @property
    def shapes(self) -> Shapes:
        """Name and shape of every tensor, without reading them."""
        return shapes_of(self.tensors)

    def sha256(self) -> str:
        """SHA-256 of the weight file."""
        return file_sha256(self.path)


def read_source(path: str | Path) -> Source:
    """Read a checkpoint of any known layout, from a file or a folder.

    Raises FileNotFoundError; ValueError for a file that is damaged, unsafe or of no known layout,
    or that has tensors CLIP does not have.
    """
    path = Path(path)
    if path.is_dir():
        path = _weight_file(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; give a weight file or its folder")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; fetch it again")
    if _is_safetensors(path):
        return _read_safetensors(path)
    if is_torchscript(path):
        tensors, _ = _clip_tensors(load_torchscript(path), path)
        origin = f"{path.name} is a TorchScript archive as OpenAI's, which are QuickGELU"
        return Source(
            path=path, layout="torchscript", tensors=tensors, claims={origin: "quick_gelu"}
        )
    if path.suffix in (".json", ".txt", ".md"):
        raise ValueError(
            f"{path} is not a weight file; give the file with the tensors or its folder"
        )
    return _read_tensors(load_pickle(path), path, layout="pickle")


def _weight_file(folder: Path) -> Path:
    for name in FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    shards = sorted(folder.glob("*.index.json"))
    if shards:
        raise ValueError(
            f"{folder} holds a checkpoint in several pieces ({shards[0].name}); save it as one file"
            " first, for example with save_pretrained(..., max_shard_size='100GB')"
        )
    raise FileNotFoundError(f"no weight file in {folder}; looked for {', '.join(FOLDER_FILES)}")


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(9)
    return path.suffix == ".safetensors" or (start[8:] == b"{" and start[6:8] == b"\0\0")


def _read_safetensors(path: Path) -> Source:
    tensors, header = open_file(path)
    if header is None:
        return _read_tensors(tensors, path, layout="safetensors")
    return Source(
        path=path,
        layout="gem_lite",
        tensors=tensors,
        claims={f"the header of {path.name}": header.config.activation},
        mean=header.mean,
        std=header.std,
        config=header.config,
        header=header,
    )


def _read_tensors(raw: Mapping[str, Tensor], path: Path, *, layout: Layout) -> Source:
    tensors, is_huggingface = _clip_tensors(raw, path)
    if is_huggingface:
        described = read_huggingface_configs(path.parent, tensors.shapes)
        return Source(path=path, layout="huggingface", tensors=tensors, **vars(described))
    described = read_open_clip_config(path.parent)
    return Source(path=path, layout=layout, tensors=tensors, **vars(described))


def _clip_tensors(raw: Mapping[str, Tensor], path: Path) -> tuple[RenamedTensors, bool]:
    """Tensors under CLIP's names, wrapper prefixes removed; and whether the layout was (d)."""
    for anchor in (HUGGINGFACE_ANCHOR, CLIP_ANCHOR):
        prefixes = {name.removesuffix(anchor) for name in raw if name.endswith(anchor)}
        if prefixes:
            break
    else:
        raise ValueError(
            f"{path} holds no CLIP: no tensor is called {CLIP_ANCHOR!r} or {HUGGINGFACE_ANCHOR!r};"
            f" it has {', '.join(list(raw)[:5])}"
        )
    if len(prefixes) > 1:
        raise ValueError(
            f"{path} holds several models, under the prefixes {sorted(prefixes)}; save only one"
        )
    prefix = prefixes.pop()
    is_huggingface = anchor == HUGGINGFACE_ANCHOR
    recipes: dict[str, dict[Part, str]] = {}
    unknown = []
    for name in raw:
        if not name.startswith(prefix):
            unknown.append(name)
            continue
        entry = huggingface_entry if is_huggingface else _clip_entry
        try:
            target = entry(name.removeprefix(prefix))
        except KeyError:
            unknown.append(name)
            continue
        if target is not None:
            parts = recipes.setdefault(target[0], {})
            if target[1] in parts:
                raise ValueError(
                    f"{path} has both {parts[target[1]]} and {name}; expected only one"
                )
            parts[target[1]] = name
    if unknown:
        shapes = shapes_of(raw)
        listed = ", ".join(f"{name} {list(shapes[name])}" for name in unknown[:8])
        raise ValueError(
            f"{path} has {len(unknown)} tensor(s) that CLIP does not have: {listed}; is it another"
            " kind of model?"
        )
    for name, parts in recipes.items():
        for group in ({"q", "k", "v"}, {"whole", "long"} if "long" in parts else set()):
            missing = group - parts.keys()
            if group & parts.keys() and missing:
                raise ValueError(f"{path} lacks the {', '.join(sorted(missing))} part of {name}")
    return RenamedTensors(raw, recipes), is_huggingface


def _clip_entry(name: str) -> tuple[str, Part] | None:
    name = name.removeprefix("text.")  # open_clip's CustomTextCLIP keeps the text tower apart
    if name in CLIP_DROPPED:
        return None
    if name == "logit_scale":
        return name, "scalar"
    if name == "positional_embedding_res":
        return "positional_embedding", "long"
    if not name.startswith(CLIP_PREFIXES):
        raise KeyError(name)
    return name, "whole"


CLIP_PREFIXES = (
    "visual.",
    "transformer.resblocks.",
    "token_embedding.weight",
    "positional_embedding",
    "ln_final.",
    "text_projection",
)
