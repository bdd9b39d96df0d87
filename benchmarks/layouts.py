"""One set of random CLIP weights, written in every file layout that CLIP weights come in.

Needs torch, numpy and safetensors only, so that it runs in any environment.
"""

import json
import math
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

VIT_B_16 = {
    "embed": 512,
    "image": {"size": 224, "patch": 16, "width": 768, "layers": 12, "heads": 12},
    "text": {"context": 77, "vocab": 49408, "width": 512, "layers": 12, "heads": 8},
}

# What OpenAI's archives hold in float16; layer norms and embeddings stay float32 there.
HALF_ENDINGS = (
    "in_proj_weight",
    "in_proj_bias",
    "out_proj.weight",
    "out_proj.bias",
    "c_fc.weight",
    "c_fc.bias",
    "c_proj.weight",
    "c_proj.bias",
    "conv1.weight",
    "visual.proj",
    "text_projection",
)

# Names of CLIP, names of transformers' CLIPModel; {T} and {H} are the two spellings of a tower.
HUGGING_FACE = {
    "logit_scale": "logit_scale",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
}
HUGGING_FACE_BLOCK = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def shapes(size: Mapping) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a CLIP with two transformers, under CLIP's own names."""
    embed, image, text = size["embed"], size["image"], size["text"]
    width = image["width"]
    found: dict[str, tuple[int, ...]] = {
        "logit_scale": (),
        "token_embedding.weight": (text["vocab"], text["width"]),
        "positional_embedding": (text["context"], text["width"]),
        "text_projection": (text["width"], embed),
        "visual.class_embedding": (width,),
        "visual.conv1.weight": (width, 3, image["patch"], image["patch"]),
        "visual.positional_embedding": (1 + (image["size"] // image["patch"]) ** 2, width),
        "visual.proj": (width, embed),
    }
    for norm, d in (
        ("ln_final", text["width"]),
        ("visual.ln_pre", width),
        ("visual.ln_post", width),
    ):
        found |= {f"{norm}.weight": (d,), f"{norm}.bias": (d,)}
    for prefix, tower in (("visual.transformer", image), ("transformer", text)):
        d = tower["width"]
        for layer in range(tower["layers"]):
            block = f"{prefix}.resblocks.{layer}"
            found |= {
                f"{block}.ln_1.weight": (d,),
                f"{block}.ln_1.bias": (d,),
                f"{block}.attn.in_proj_weight": (3 * d, d),
                f"{block}.attn.in_proj_bias": (3 * d,),
                f"{block}.attn.out_proj.weight": (d, d),
                f"{block}.attn.out_proj.bias": (d,),
                f"{block}.ln_2.weight": (d,),
                f"{block}.ln_2.bias": (d,),
                f"{block}.mlp.c_fc.weight": (4 * d, d),
                f"{block}.mlp.c_fc.bias": (4 * d,),
                f"{block}.mlp.c_proj.weight": (d, 4 * d),
                f"{block}.mlp.c_proj.bias": (d,),
            }
    return found


def random_weights(size: Mapping, seed: int = 0) -> dict[str, Tensor]:
    """Weights of a trained model's scale, each drawn from its own name, float32.

    Values that OpenAI's archives keep in float16 are rounded to it, so that every layout holds
    the very same numbers.
    """
    weights = {}
    for name, shape in shapes(size).items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()) + seed)
        x = torch.randn(shape, generator=generator)
        if name == "logit_scale":
            x = torch.tensor(math.log(100.0))
        elif name.endswith("bias"):
            x = 0.1 * x
        elif ".ln_" in name or name.startswith("ln_"):
            x = 1 + 0.1 * x
        elif "embedding" in name:
            x = 0.5 * x
        elif name == "visual.conv1.weight":
            x = x * math.prod(shape[1:]) ** -0.5
        else:
            x = x * shape[0 if name.endswith("proj") or "projection" in name else 1] ** -0.5
        weights[name] = x.half().float() if name.endswith(HALF_ENDINGS) else x
    return weights


class _Node(nn.Module):
    """A module that holds parameters and children, for an archive with given names."""


class _Root(_Node):
    def forward(self, x: Tensor) -> Tensor:
        return x


def write_torchscript(weights: Mapping[str, Tensor], size: Mapping, path: Path) -> None:
    """An archive as OpenAI publishes them: TorchScript, float16 but for norms and embeddings."""
    root = _Root()
    for name, tensor in weights.items():
        *parents, leaf = name.split(".")
        node: nn.Module = root
        for parent in parents:
            if parent not in node._modules:
                node.add_module(parent, nn.Sequential() if parent == "resblocks" else _Node())
            node = node._modules[parent]  # type: ignore[assignment]
        stored = tensor.half() if name.endswith(HALF_ENDINGS) else tensor.clone()
        node.register_parameter(leaf, nn.Parameter(stored, requires_grad=False))
    for name, number in (
        ("input_resolution", size["image"]["size"]),
        ("context_length", size["text"]["context"]),
        ("vocab_size", size["text"]["vocab"]),
    ):
        root.register_buffer(name, torch.tensor(number))
    torch.jit.trace(root.eval(), torch.zeros(1)).save(str(path))


def write_training_checkpoint(weights: Mapping[str, Tensor], path: Path) -> None:
    """A pickle as training scripts leave it: wrapper prefixes, and other entries around it."""
    import numpy as np

    state = OrderedDict((f"_orig_mod.module.{name}", tensor) for name, tensor in weights.items())
    moment = torch.zeros(3)
    torch.save(
        {
            "epoch": 32,
            "step": np.float64(1000.0),
            "name": "a-run",
            "state_dict": state,
            "optimizer": {
                "state": {0: {"step": torch.tensor(1.0), "exp_avg": moment}},
                "param_groups": [{"lr": np.float64(5e-4), "params": [0]}],
            },
            "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        },
        path,
    )


def write_open_clip(weights: Mapping[str, Tensor], path: Path) -> None:
    """A safetensors file as open_clip publishes them: CLIP's names, no header."""
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, path)


def write_hugging_face(
    weights: Mapping[str, Tensor], size: Mapping, activation: str, folder: Path
) -> None:
    """A folder as transformers' CLIPModel.save_pretrained writes it."""
    tensors: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name in HUGGING_FACE:
            transposed = name in ("text_projection", "visual.proj")
            tensors[HUGGING_FACE[name]] = tensor.T if transposed else tensor
            continue
        tower, _, rest = name.partition("transformer.resblocks.")
        layer, _, rest = rest.partition(".")
        block = f"{'vision' if tower else 'text'}_model.encoder.layers.{layer}"
        if rest.startswith("attn.in_proj_"):
            kind = rest.removeprefix("attn.in_proj_")
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                tensors[f"{block}.self_attn.{letter}_proj.{kind}"] = part
        else:
            part_name, _, kind = rest.rpartition(".")
            tensors[f"{block}.{HUGGING_FACE_BLOCK[part_name]}.{kind}"] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    image, text = size["image"], size["text"]

    def tower_config(tower: Mapping) -> dict:
        return {
            "hidden_act": activation,
            "hidden_size": tower["width"],
            "intermediate_size": 4 * tower["width"],
            "num_attention_heads": tower["heads"],
            "num_hidden_layers": tower["layers"],
            "projection_dim": size["embed"],
        }

    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": size["embed"],
        "text_config": tower_config(text)
        | {
            "model_type": "clip_text_model",
            "max_position_embeddings": text["context"],
            "vocab_size": text["vocab"],
        },
        "vision_config": tower_config(image)
        | {
            "model_type": "clip_vision_model",
            "image_size": image["size"],
            "patch_size": image["patch"],
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2))


def layout_paths(folder: Path, activation: str) -> dict[str, Path]:
    """Where `write_all` puts each layout."""
    paths = {
        "plain state dict": folder / "plain.pt",
        "(b) training checkpoint": folder / "checkpoint.pt",
        "(c) open_clip safetensors": folder / "open_clip_model.safetensors",
        "(d) Hugging Face folder": folder / "hugging_face",
    }
    if activation == "quick_gelu":  # OpenAI's archives are always QuickGELU
        paths["(a) TorchScript archive"] = folder / "archive.pt"
    return paths


def write_all(size: Mapping, activation: str, folder: Path, seed: int = 0) -> None:
    """Write one set of weights in every layout."""
    weights = random_weights(size, seed)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(weights, folder / "plain.pt")
    write_training_checkpoint(weights, folder / "checkpoint.pt")
    write_open_clip(weights, folder / "open_clip_model.safetensors")
    write_hugging_face(weights, size, activation, folder / "hugging_face")
    if activation == "quick_gelu":
        write_torchscript(weights, size, folder / "archive.pt")
