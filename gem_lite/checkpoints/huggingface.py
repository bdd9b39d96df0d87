"""Hugging Face's names for CLIP's tensors: a literal table, and tensors made of their parts."""

import re
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from .assemble import shapes_of

Part = Literal["whole", "transposed", "scalar", "q", "k", "v", "long"]

LONG_CLIP_KEPT = 20  # positions of CLIP that Long-CLIP keeps as they are (its section 3.1)

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


def huggingface_entry(name: str) -> tuple[str, Part] | None:
    """CLIP's name for a tensor and which part of it; None = dropped. KeyError: unknown."""
    index = re.search(r"\.layers\.(\d+)\.", name)
    if index is None:
        return HUGGINGFACE[name]
    entry = HUGGINGFACE[name.replace(index[0], ".layers.{}.")]
    return None if entry is None else (entry[0].format(index[1]), entry[1])


class RenamedTensors(Mapping[str, Tensor]):
    """Tensors under CLIP's names, each made from its parts when asked for.

    recipes: for each of CLIP's names, the part it is made of and the name of that in `raw`.
    Raises ValueError when q, k and v of one projection differ in shape.
    """

    def __init__(self, raw: Mapping[str, Tensor], recipes: dict[str, dict[Part, str]]) -> None:
        self._raw = raw
        self._recipes = recipes
        shapes = shapes_of(raw)
        self.shapes = {
            name: _shape(name, {part: (theirs, shapes[theirs]) for part, theirs in parts.items()})
            for name, parts in recipes.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        parts = {part: self._raw[theirs] for part, theirs in self._recipes[name].items()}
        if "q" in parts:
            return torch.cat([parts["q"], parts["k"], parts["v"]])
        if "long" in parts:
            return torch.cat([parts["whole"][:LONG_CLIP_KEPT], parts["long"][LONG_CLIP_KEPT:]])
        ((part, tensor),) = parts.items()
        # A matrix of another rank, or several scales, are for check_shapes to refuse.
        return tensor.T if part == "transposed" else tensor.reshape(self.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._recipes)

    def __len__(self) -> int:
        return len(self._recipes)


def _shape(name: str, parts: dict[Part, tuple[str, tuple[int, ...]]]) -> tuple[int, ...]:
    """Shape of the tensor that a recipe makes."""
    if len({shape for _, shape in parts.values()}) > 1:
        ordered = [parts[part] for part in ("q", "k", "v", "whole", "long") if part in parts]
        listed = ", ".join(f"{theirs} {list(shape)}" for theirs, shape in ordered)
        raise ValueError(f"the parts of {name} differ in shape: {listed}; expected one shape")
    if "q" in parts:
        rows, *rest = parts["q"][1] or (0,)
        return (3 * rows, *rest)
    if "long" in parts:
        return parts["long"][1]
    ((part, (_, shape)),) = parts.items()
    if part == "transposed" and len(shape) == 2:
        return shape[::-1]
    # Some trainers store the logit scale as a vector of one.
    return () if part == "scalar" and shape == (1,) else shape
