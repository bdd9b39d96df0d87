"""Other people's checkpoints, read under CLIP's names: literal name tables.

Four layouts are known: (a) OpenAI's TorchScript archives, (b) `.pt` state dicts as MetaCLIP, LAION
and open_clip write them, (c) open_clip safetensors, (d) Hugging Face `CLIPModel` files. Our own
files are read too. The first three already carry CLIP's names; only (d) needs a table.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..method.config import Activation, ImageConfig, ModelConfig, TextConfig
from .archive import LARGEST_GROWTH, SLACK, is_torchscript, load_pickle, load_torchscript
from .ours import METADATA_KEY, Header, LazyTensors

Layout = Literal["torchscript", "pickle", "safetensors", "huggingface", "gem_lite"]
Part = Literal["whole", "transposed", "scalar", "q", "k", "v"]

# Written by trainers into a state dict, and no weight: dropped on purpose.
CLIP_DROPPED = ("input_resolution", "context_length", "vocab_size", "attn_mask")

# Hugging Face name -> (CLIP name, which part of it); None = dropped on purpose.
# {} is the layer's index. A part q, k or v is a third of the rows of in_proj.
HUGGINGFACE_LAYER: dict[str, tuple[str, Part]] = {
    "layer_norm1.weight": ("ln_1.weight", "whole"),
    "layer_norm1.bias": ("ln_1.bias", "whole"),
    "self_attn.q_proj.weight": ("attn.in_proj_weight", "q"),
    "self_attn.k_proj.weight": ("attn.in_proj_weight", "k"),
    "self_attn.v_proj.weight": ("attn.in_proj_weight", "v"),
    "self_attn.q_proj.bias": ("attn.in_proj_bias", "q"),
    "self_attn.k_proj.bias": ("attn.in_proj_bias", "k"),
    "self_attn.v_proj.bias": ("attn.in_proj_bias", "v"),
    "self_attn.out_proj.weight": ("attn.out_proj.weight", "whole"),
    "self_attn.out_proj.bias": ("attn.out_proj.bias", "whole"),
    "layer_norm2.weight": ("ln_2.weight", "whole"),
    "layer_norm2.bias": ("ln_2.bias", "whole"),
    "mlp.fc1.weight": ("mlp.c_fc.weight", "whole"),
    "mlp.fc1.bias": ("mlp.c_fc.bias", "whole"),
    "mlp.fc2.weight": ("mlp.c_proj.weight", "whole"),
    "mlp.fc2.bias": ("mlp.c_proj.bias", "whole"),
}
HUGGINGFACE: dict[str, tuple[str, Part] | None] = {
    "logit_scale": ("logit_scale", "scalar"),
    "text_model.embeddings.position_ids": None,
    "text_model.embeddings.token_embedding.weight": ("token_embedding.weight", "whole"),
    "text_model.embeddings.position_embedding.weight": ("positional_embedding", "whole"),
    "text_model.final_layer_norm.weight": ("ln_final.weight", "whole"),
    "text_model.final_layer_norm.bias": ("ln_final.bias", "whole"),
    "text_projection.weight": ("text_projection", "transposed"),
    "vision_model.embeddings.position_ids": None,
    "vision_model.embeddings.class_embedding": ("visual.class_embedding", "whole"),
    "vision_model.embeddings.patch_embedding.weight": ("visual.conv1.weight", "whole"),
    "vision_model.embeddings.position_embedding.weight": ("visual.positional_embedding", "whole"),
    "vision_model.pre_layrnorm.weight": ("visual.ln_pre.weight", "whole"),
    "vision_model.pre_layrnorm.bias": ("visual.ln_pre.bias", "whole"),
    "vision_model.post_layernorm.weight": ("visual.ln_post.weight", "whole"),
    "vision_model.post_layernorm.bias": ("visual.ln_post.bias", "whole"),
    "visual_projection.weight": ("visual.proj", "transposed"),
    **{
        f"{theirs}.encoder.layers.{{}}.{name}": (f"{ours}.resblocks.{{}}.{target}", part)
        for theirs, ours in (
            ("text_model", "transformer"),
            ("vision_model", "visual.transformer"),
        )
        for name, (target, part) in HUGGINGFACE_LAYER.items()
    },
}

# The weight file of a folder, the one beside a Hugging Face config.json first.
FOLDER_FILES = (
    "model.safetensors",
    "open_clip_model.safetensors",
    "pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)


class RenamedTensors(Mapping[str, Tensor]):
    """Tensors under CLIP's names, each made from its parts when asked for."""

    def __init__(self, raw: Mapping[str, Tensor], recipes: dict[str, dict[Part, str]]) -> None:
        self._raw = raw
        self._recipes = recipes

    def __getitem__(self, name: str) -> Tensor:
        parts = self._recipes[name]
        if {"q", "k", "v"} <= set(parts):
            sources = [parts["q"], parts["k"], parts["v"]]
            thirds = [self._raw[source] for source in sources]
            if len({third.shape for third in thirds}) > 1:
                shown = ", ".join(
                    f"{source} {list(third.shape)}"
                    for source, third in zip(sources, thirds, strict=True)
                )
                raise ValueError(f"the parts of {name} differ in shape: {shown}; expected one")
            return torch.cat(thirds)
        ((part, source),) = parts.items()
        tensor = self._raw[source]
        if part == "transposed" and tensor.ndim == 2:  # another rank is named by check_shapes
            return tensor.T
        # Some trainers store the logit scale as a vector of one.
        return tensor.reshape(()) if part == "scalar" and tensor.numel() == 1 else tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._recipes)

    def __len__(self) -> int:
        return len(self._recipes)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint as read: tensors under CLIP's names, and what the file says of itself."""

    path: Path  # the weight file
    layout: Layout
    tensors: Mapping[str, Tensor]
    claims: dict[str, Activation] = field(default_factory=dict)  # who says which activation
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    config: ModelConfig | None = None  # where the file describes the whole model
    header: Header | None = None  # of a file of ours

    def sha256(self) -> str:
        """SHA-256 of the weight file."""
        digest = hashlib.sha256()
        with self.path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        return digest.hexdigest()


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
        tensors, _ = _clip_tensors(_plain(load_torchscript(path), path), path)
        says = f"{path.name} is a TorchScript archive as OpenAI's, which are QuickGELU"
        return Source(path=path, layout="torchscript", tensors=tensors, claims={says: "quick_gelu"})
    if path.suffix in (".json", ".txt", ".md"):
        raise ValueError(f"{path} is no weight file; give the file with the tensors or its folder")
    raw = _plain(_find_state_dict(load_pickle(path), path), path)
    return _read_tensors(raw, path, layout="pickle")


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
    try:
        file = safe_open(path, framework="pt")
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); it may be cut short: fetch it"
            " again"
        ) from error
    text = (file.metadata() or {}).get(METADATA_KEY)
    source = _read_tensors(LazyTensors(file), path, layout="safetensors")
    if text is None:
        return source
    try:
        header = Header.from_json(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return replace(
        source,
        layout="gem_lite",
        claims={f"the header of {path.name}": header.config.activation},
        mean=header.mean,
        std=header.std,
        config=header.config,
        header=header,
    )


def _read_tensors(raw: Mapping[str, Tensor], path: Path, *, layout: Layout) -> Source:
    tensors, is_huggingface = _clip_tensors(raw, path)
    if is_huggingface:
        return _with_huggingface_config(
            Source(path=path, layout="huggingface", tensors=tensors), path.parent
        )
    return _with_open_clip_config(Source(path=path, layout=layout, tensors=tensors), path.parent)


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


CLIP_ANCHOR = "visual.conv1.weight"
HUGGINGFACE_ANCHOR = "vision_model.embeddings.patch_embedding.weight"


def _find_state_dict(loaded: Any, path: Path) -> Mapping[str, Tensor]:
    """The mapping with the weights in it, at the top or inside other entries."""
    level = [("", loaded)]
    for _ in range(4):
        found = [
            (name, entries)
            for name, entries in level
            if isinstance(entries, Mapping)
            and any(str(key).endswith((CLIP_ANCHOR, HUGGINGFACE_ANCHOR)) for key in entries)
        ]
        if found:
            names = [name for name, _ in found]
            if len(found) > 1 and "state_dict" not in names:
                raise ValueError(
                    f"{path} holds several models, under the entries {names}; save one alone"
                )
            chosen = dict(found).get("state_dict", found[0][1])
            return {str(key): value for key, value in chosen.items() if isinstance(value, Tensor)}
        level = [
            (str(name), entries)
            for _, outer in level
            if isinstance(outer, Mapping)
            for name, entries in outer.items()
        ]
    top = ", ".join(map(str, list(loaded)[:8])) if isinstance(loaded, Mapping) else type(loaded)
    raise ValueError(
        f"{path} holds no CLIP state dict: no entry ends in {CLIP_ANCHOR!r} or"
        f" {HUGGINGFACE_ANCHOR!r}; found {top}"
    )


def _clip_tensors(raw: Mapping[str, Tensor], path: Path) -> tuple[RenamedTensors, bool]:
    """Tensors under CLIP's names, wrapper prefixes removed; and whether the layout was (d)."""
    for anchor in (HUGGINGFACE_ANCHOR, CLIP_ANCHOR):
        prefixes = {name.removesuffix(anchor) for name in raw if name.endswith(anchor)}
        if prefixes:
            break
    else:
        raise ValueError(
            f"{path} holds no CLIP: no tensor is called {CLIP_ANCHOR!r} or {HUGGINGFACE_ANCHOR!r};"
            f" found {', '.join(list(raw)[:5])}"
        )
    if len(prefixes) > 1:
        raise ValueError(
            f"{path} holds several models, under the prefixes {sorted(prefixes)}; save one alone"
        )
    prefix = prefixes.pop()
    is_huggingface = anchor == HUGGINGFACE_ANCHOR
    recipes: dict[str, dict[Part, str]] = {}
    unknown = []
    for name in raw:
        if not name.startswith(prefix):
            unknown.append(name)
            continue
        entry = _huggingface_entry if is_huggingface else _clip_entry
        try:
            target = entry(name.removeprefix(prefix))
        except KeyError:
            unknown.append(name)
            continue
        if target is not None:
            parts = recipes.setdefault(target[0], {})
            if target[1] in parts:
                raise ValueError(f"{path} has both {parts[target[1]]} and {name}; expected one")
            parts[target[1]] = name
    if unknown:
        shown = ", ".join(f"{name} {list(raw[name].shape)}" for name in unknown[:8])
        raise ValueError(
            f"{path} has {len(unknown)} tensor(s) that CLIP does not have: {shown}; is it another"
            " kind of model?"
        )
    for name, parts in recipes.items():
        missing = {"q", "k", "v"} - set(parts) if set(parts) & {"q", "k", "v"} else set()
        if missing:
            raise ValueError(f"{path} lacks the {', '.join(sorted(missing))} part of {name}")
    return RenamedTensors(raw, recipes), is_huggingface


def _huggingface_entry(name: str) -> tuple[str, Part] | None:
    index = re.search(r"\.layers\.(\d+)\.", name)
    if index is None:
        return HUGGINGFACE[name]
    entry = HUGGINGFACE[name.replace(index[0], ".layers.{}.")]
    return None if entry is None else (entry[0].format(index[1]), entry[1])


def _clip_entry(name: str) -> tuple[str, Part] | None:
    name = name.removeprefix("text.")  # open_clip's CustomTextCLIP keeps the text tower apart
    if name in CLIP_DROPPED:
        return None
    if name == "logit_scale":
        return name, "scalar"
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


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not readable JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected an object")
    return content


_HIDDEN_ACTS: dict[str, Activation] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}


def _with_huggingface_config(source: Source, folder: Path) -> Source:
    """Add what config.json and preprocessor_config.json beside the weights say."""
    config = _read_json(folder / "config.json")
    claims: dict[str, Activation] = {}
    # transformers lets the entries that end in _dict, of older versions, override the others.
    for tower in ("text_config", "vision_config", "text_config_dict", "vision_config_dict"):
        settings = _section(config, tower, folder / "config.json")
        act = settings.get("hidden_act")
        if act is not None:
            if not isinstance(act, str) or act not in _HIDDEN_ACTS:
                raise ValueError(
                    f"{folder / 'config.json'}: {tower}.hidden_act is {act!r}; expected one of"
                    f" {list(_HIDDEN_ACTS)}"
                )
            claims[f"{tower}.hidden_act of config.json"] = _HIDDEN_ACTS[act]
        eps = settings.get("layer_norm_eps", 1e-5)
        if eps != 1e-5:
            raise ValueError(
                f"{folder / 'config.json'}: {tower}.layer_norm_eps is {eps}; CLIP's is 1e-05"
            )
    preprocessor = _read_json(folder / "preprocessor_config.json")
    return replace(
        source,
        claims=claims,
        mean=_triple(preprocessor, "image_mean", folder / "preprocessor_config.json"),
        std=_triple(preprocessor, "image_std", folder / "preprocessor_config.json"),
        config=_huggingface_model_config(source, config, claims),
    )


def _huggingface_model_config(
    source: Source, config: dict[str, Any], claims: dict[str, Activation]
) -> ModelConfig | None:
    heads = []
    for tower in ("vision_config", "text_config"):
        count = (config.get(tower) or {}).get("num_attention_heads")
        if count is None or len(set(claims.values())) != 1:
            return None
        if isinstance(count, bool) or not isinstance(count, int):
            raise ValueError(
                f"{source.path.parent / 'config.json'}: {tower}.num_attention_heads is {count!r};"
                " expected a whole number"
            )
        heads.append(count)
    return config_from_shapes(
        shapes_of(source.tensors),
        activation=next(iter(claims.values())),
        image_heads=heads[0],
        text_heads=heads[1],
        where=str(source.path),
    )


def _with_open_clip_config(source: Source, folder: Path) -> Source:
    """Add what open_clip_config.json beside the weights says."""
    path = folder / "open_clip_config.json"
    config = _read_json(path)
    quick_gelu = _section(config, "model_cfg", path).get("quick_gelu")
    preprocess = _section(config, "preprocess_cfg", path)
    claims: dict[str, Activation] = {}
    if quick_gelu is not None:
        if not isinstance(quick_gelu, bool):
            raise ValueError(f"{path}: quick_gelu is {quick_gelu!r}; expected true or false")
        claims["quick_gelu of open_clip_config.json"] = "quick_gelu" if quick_gelu else "gelu"
    return replace(
        source,
        claims=claims,
        mean=_triple(preprocess, "mean", path),
        std=_triple(preprocess, "std", path),
    )


def _section(config: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise ValueError(f"{path}: {name} is {section!r}; expected an object")
    return section


def _triple(settings: dict[str, Any], name: str, path: Path) -> tuple[float, ...] | None:
    values = settings.get(name)
    if values is None:
        return None
    if (
        not isinstance(values, list)
        or len(values) != 3
        or any(isinstance(value, bool) or not isinstance(value, int | float) for value in values)
    ):
        raise ValueError(f"{path}: {name} is {values!r}; expected three numbers")
    return tuple(float(value) for value in values)


def shapes_of(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor."""
    return {name: tuple(tensors[name].shape) for name in tensors}


# Tensors that tell a model's sizes, and how many dimensions they have.
SIZES = {
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "visual.proj": 2,
    "visual.transformer.resblocks.0.mlp.c_fc.weight": 2,
    "token_embedding.weight": 2,
    "positional_embedding": 2,
    "transformer.resblocks.0.mlp.c_fc.weight": 2,
}


def config_from_shapes(
    shapes: Mapping[str, tuple[int, ...]],
    *,
    activation: Activation,
    image_heads: int,
    text_heads: int,
    where: str,
) -> ModelConfig:
    """Configuration of a model from its tensors' shapes and what they don't show.

    Raises ValueError when a tensor that tells a size is missing or has another rank.
    """
    for name, rank in SIZES.items():
        if len(shapes.get(name, range(rank))) != rank:
            raise ValueError(
                f"{where}: {name} has shape {list(shapes[name])}; expected {rank} dimensions"
            )
    try:
        width, _, patch, _ = shapes["visual.conv1.weight"]
        patches = shapes["visual.positional_embedding"][0] - 1
        vocab, text_width = shapes["token_embedding.weight"]
        layers = [
            len(
                {name for name in shapes if re.match(rf"{tower}resblocks\.\d+\.ln_1\.weight", name)}
            )
            for tower in (r"visual\.transformer\.", r"transformer\.")
        ]
        return ModelConfig(
            embed=shapes["visual.proj"][1],
            activation=activation,
            image=ImageConfig(
                size=round(patches**0.5) * patch,
                patch=patch,
                width=width,
                layers=layers[0],
                heads=image_heads,
                mlp_width=shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0],
            ),
            text=TextConfig(
                context=shapes["positional_embedding"][0],
                vocab=vocab,
                width=text_width,
                layers=layers[1],
                heads=text_heads,
                mlp_width=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0],
            ),
        )
    except KeyError as error:
        raise ValueError(f"{where} has no tensor {error}; expected all of a CLIP's") from error
