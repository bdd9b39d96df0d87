"""A small random CLIP, and writers of every file layout that CLIP weights come in.

The names and shapes here are written down apart from the package's own tables.
"""

import argparse
import json
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rebuild import random_state
from safetensors.torch import save_file
from torch import Tensor, nn

from gem_lite.checkpoints.header import Header
from gem_lite.method.config import Activation, ImageConfig, ModelConfig, TextConfig
from gem_lite.method.methods.gem import GEMConfig

State = Mapping[str, Tensor]

# No size equals another that it could be mixed up with.
SMALL = ModelConfig(
    embed=48,
    activation="quick_gelu",
    image=ImageConfig(size=32, patch=16, width=64, layers=2, heads=2, mlp_width=160),
    text=TextConfig(context=16, vocab=600, width=32, layers=3, heads=1, mlp_width=96),
)
NAME = "small-test"  # no architecture is called so

# What OpenAI's archives hold in float16; layer norms and embeddings stay float32 there.
HALF = ("_proj_weight", "_proj_bias", "proj.weight", "proj.bias", "c_fc.weight", "c_fc.bias")
HALF += ("conv1.weight", "visual.proj", "text_projection")

TO_HUGGING_FACE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final": "text_model.final_layer_norm",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre": "vision_model.pre_layrnorm",
    "visual.ln_post": "vision_model.post_layernorm",
    "visual.transformer.resblocks": "vision_model.encoder.layers",
    "transformer.resblocks": "text_model.encoder.layers",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".attn.out_proj.": ".self_attn.out_proj.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}


def shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of a CLIP under CLIP's own names."""
    image, text, embed = config.image, config.text, config.embed
    found: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "token_embedding.weight": (text.vocab, text.width),
        "positional_embedding": (text.context, text.width),
        "text_projection": (text.width, embed),
        "visual.class_embedding": (image.width,),
        "visual.conv1.weight": (image.width, 3, image.patch, image.patch),
        "visual.positional_embedding": ((image.size // image.patch) ** 2 + 1, image.width),
        "visual.proj": (image.width, embed),
    }
    norms = {"ln_final": text.width, "visual.ln_pre": image.width, "visual.ln_post": image.width}
    linears = {}
    for prefix, tower in (("visual.transformer", image), ("transformer", text)):
        d, mlp = tower.width, tower.mlp_width
        for layer in range(tower.layers):
            block = f"{prefix}.resblocks.{layer}"
            norms |= {f"{block}.ln_1": d, f"{block}.ln_2": d}
            linears |= {
                f"{block}.attn.in_proj_": (3 * d, d),
                f"{block}.attn.out_proj.": (d, d),
                f"{block}.mlp.c_fc.": (mlp, d),
                f"{block}.mlp.c_proj.": (d, mlp),
            }
    for name, d in norms.items():
        found |= {f"{name}.weight": (d,), f"{name}.bias": (d,)}
    for name, (rows, columns) in linears.items():
        found |= {f"{name}weight": (rows, columns), f"{name}bias": (rows,)}
    return found


def state_of(config: ModelConfig = SMALL, *, seed: int = 0) -> dict[str, Tensor]:
    """Random weights of a trained model's scale, float32, the same for the same seed.

    What OpenAI's archives keep in float16 is rounded to it, so that every layout can hold the
    very same numbers.
    """
    state = random_state(shapes(config), seed)
    return {
        name: tensor.half().float() if name.endswith(HALF) else tensor
        for name, tensor in state.items()
    }


def header_of(config: ModelConfig = SMALL, **changes: Any) -> Header:
    """A header for files of ours in tests."""
    fields: dict[str, Any] = {
        "model": NAME,
        "pretrained": "v0",
        "config": config,
        "gem": GEMConfig(blocks=config.image.layers),
        "size": 48,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.4, 0.5, 0.6),
        "source": "https://example.org/weights.pt",
        "sha256": "ab" * 32,
        "verified": "sha256",
        "licence": "MIT",
    }
    return Header(**(fields | changes))


# ------------------------------------------------------------------ (a) TorchScript archives


class Node(nn.Module):
    """Holds parameters and children under given names."""

    def forward(self, x: Tensor) -> Tensor:
        return x


def as_archived(name: str, tensor: Tensor) -> Tensor:
    """A weight in the dtype that OpenAI's archives keep it in."""
    return tensor.half() if name.endswith(HALF) else tensor.clone()


def torchscript_module(state: State, config: ModelConfig = SMALL) -> Node:
    """A module of OpenAI's key names: float16 but for norms and embeddings, three extra buffers."""
    root = Node()
    for name, tensor in state.items():
        *parents, leaf = name.split(".")
        node: nn.Module = root
        for parent in parents:
            if parent not in dict(node.named_children()):
                node.add_module(parent, Node())
            node = node.get_submodule(parent)
        node.register_parameter(leaf, nn.Parameter(as_archived(name, tensor)))
    for name, number in (
        ("input_resolution", config.image.size),
        ("context_length", config.text.context),
        ("vocab_size", config.text.vocab),
    ):
        root.register_buffer(name, torch.tensor(number))
    return root.eval()


def write_torchscript(state: State, path: Path, config: ModelConfig = SMALL) -> Path:
    """An archive as OpenAI publishes them."""
    torch.jit.trace(torchscript_module(state, config), torch.zeros(1)).save(str(path))
    return path


# ------------------------------------------------------------------------------ (b) pickles


def write_training_checkpoint(state: State, path: Path, *, prefix: str = "module.") -> Path:
    """What a training script leaves: wrapper prefixes, and other entries around the weights."""
    torch.save(
        {
            "epoch": 32,
            "step": np.int64(1000),
            "loss": np.float64(0.5),
            "name": "a run",
            "args": argparse.Namespace(lr=5e-4, betas=(0.9, 0.98), resume=None),
            "state_dict": {prefix + name: tensor for name, tensor in state.items()},
            "optimizer": {
                "state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.zeros(3)}},
                "param_groups": [{"lr": np.float64(5e-4), "params": [0]}],
            },
            "scaler": {"scale": 65536.0, "_growth_tracker": 0},
        },
        path,
    )
    return path


# -------------------------------------------------------------------------- (c) safetensors


def write_open_clip(state: State, path: Path) -> Path:
    """A safetensors file as open_clip publishes them: CLIP's names, no header of ours."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


# ------------------------------------------------------------------------- (d) Hugging Face


def hugging_face_state(state: State) -> dict[str, Tensor]:
    """The same weights under the names of transformers' CLIPModel."""
    renamed = {}
    for name, tensor in state.items():
        if name in ("text_projection", "visual.proj"):
            theirs = "text_projection" if name == "text_projection" else "visual_projection"
            renamed[f"{theirs}.weight"] = tensor.T.contiguous()
            continue
        theirs = name
        for ours, other in TO_HUGGING_FACE.items():
            if ours in theirs and not (ours == "positional_embedding" and "visual" in name):
                theirs = theirs.replace(ours, other)
        if ".attn.in_proj_" not in theirs:
            renamed[theirs] = tensor
            continue
        for letter, part in zip("qkv", tensor.chunk(3), strict=True):
            split = theirs.replace(".attn.in_proj_", f".self_attn.{letter}_proj.")
            renamed[split] = part.clone()
    return renamed


def hugging_face_config(
    config: ModelConfig = SMALL, activation: Activation | None = "quick_gelu"
) -> dict[str, Any]:
    """What config.json says, the activation left out for None."""
    image, text = config.image, config.text

    def tower(part: ImageConfig | TextConfig) -> dict[str, Any]:
        said = {} if activation is None else {"hidden_act": activation}
        return said | {
            "hidden_size": part.width,
            "intermediate_size": part.mlp_width,
            "num_attention_heads": part.heads,
            "num_hidden_layers": part.layers,
            "layer_norm_eps": 1e-5,
        }

    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed,
        "text_config": tower(text)
        | {"max_position_embeddings": text.context, "vocab_size": text.vocab, "eos_token_id": 2},
        "vision_config": tower(image) | {"image_size": image.size, "patch_size": image.patch},
    }


def write_hugging_face(
    state: State,
    folder: Path,
    *,
    config: Mapping[str, Any] | None = None,
    name: str = "model.safetensors",
) -> Path:
    """A folder as `CLIPModel.save_pretrained` writes it; `config` empty = no config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = hugging_face_state(state)
    tensors["text_model.embeddings.position_ids"] = torch.arange(16)[None]
    tensors["vision_model.embeddings.position_ids"] = torch.arange(5)[None]
    if name.endswith(".safetensors"):
        save_file(tensors, folder / name, metadata={"format": "pt"})
    else:
        torch.save(tensors, folder / name)
    said = hugging_face_config() if config is None else config
    if said:
        (folder / "config.json").write_text(json.dumps(said))
    return folder


# ---------------------------------------------------------------------------- hostile files


class Call:
    """Unpickling this calls a function, as a malicious file would."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def rewrite_zip(path: Path, target: Path, changes: Mapping[str, bytes | None]) -> Path:
    """A copy of an archive with the entries that end in a key replaced (None: left out)."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as copy:
        for entry in archive.infolist():
            content: bytes | None = archive.read(entry)
            for ending, other in changes.items():
                if entry.filename.endswith(ending):
                    content = other
            if content is not None:
                copy.writestr(entry.filename, content)
    return target


def pickled(content: Any) -> bytes:
    """The content under the pickle protocol that PyTorch's files use."""
    return pickle.dumps(content, protocol=2)
