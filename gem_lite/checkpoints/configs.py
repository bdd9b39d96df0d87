"""The JSON files beside a checkpoint: what they say of the model and of its pictures."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..method.config import Activation, ImageConfig, ModelConfig, TextConfig
from .files import shown
from .header import three_numbers


@dataclass(frozen=True, kw_only=True)
class Description:
    """What the files beside the weights say; None or empty: nothing."""

    claims: dict[str, Activation] = field(default_factory=dict)  # origin: activation
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    config: ModelConfig | None = None  # where they describe the whole model


_HIDDEN_ACTS: dict[Any, Activation] = {"quick_gelu": "quick_gelu", "gelu": "gelu"}


def read_huggingface_configs(folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> Description:
    """config.json and preprocessor_config.json, with sizes from the tensors' shapes.

    Raises ValueError for files that are damaged or describe another kind of model.
    """
    path = folder / "config.json"
    config = _read_json(path)
    claims: dict[str, Activation] = {}
    # transformers lets the entries that end in _dict, of older versions, override the others.
    for tower in ("text_config", "vision_config", "text_config_dict", "vision_config_dict"):
        settings = _section(config, tower, path)
        act = settings.get("hidden_act")
        if act is not None:
            if not isinstance(act, str) or act not in _HIDDEN_ACTS:
                raise ValueError(
                    f"{path}: {tower}.hidden_act is {shown(act)}; expected one of"
                    f" {list(_HIDDEN_ACTS)}"
                )
            claims[f"{tower}.hidden_act of config.json"] = _HIDDEN_ACTS[act]
        eps = settings.get("layer_norm_eps", 1e-5)
        if eps != 1e-5:
            raise ValueError(f"{path}: {tower}.layer_norm_eps is {shown(eps)}; CLIP's is 1e-05")
    heads = [_heads(config, tower, path) for tower in ("vision_config", "text_config")]
    described = None
    if heads[0] is not None and heads[1] is not None and len(set(claims.values())) == 1:
        described = config_from_shapes(
            shapes,
            activation=next(iter(claims.values())),
            image_heads=heads[0],
            text_heads=heads[1],
            where=str(folder),
        )
    path = folder / "preprocessor_config.json"
    preprocessor = _read_json(path)
    return Description(
        claims=claims,
        mean=_triple(preprocessor, "image_mean", path),
        std=_triple(preprocessor, "image_std", path),
        config=described,
    )


def _heads(config: dict[str, Any], tower: str, path: Path) -> int | None:
    count = _section(config, tower, path).get("num_attention_heads")
    if count is not None and type(count) is not int:
        raise ValueError(
            f"{path}: {tower}.num_attention_heads is {shown(count)}; expected a whole number"
        )
    return count


# Fields of open_clip's towers that change what is computed, and the value they have in plain CLIP.
PLAIN: dict[str, Any] = {
    "act_kwargs": None,
    "attentional_pool": False,
    "block_type": None,
    "embed_cls": False,
    "final_ln_after_pool": False,
    "global_average_pool": False,
    "hf_model_name": None,
    "hf_tokenizer_name": None,
    "init_logit_bias": None,
    "input_patchnorm": False,
    "ls_init_value": None,
    "multimodal_cfg": None,
    "no_causal_mask": False,
    "no_ln_pre": False,
    "norm_kwargs": None,
    "pad_id": 0,
    "pos_embed_type": "learnable",
    "proj_bias": False,
    "proj_type": "linear",
    "qk_norm": False,
    "reg_tokens": 0,
    "scale_attn": False,
    "scale_attn_inner": False,
    "scale_fc": False,
    "scale_heads": False,
    "scaled_cosine_attn": False,
    "timm_model_name": None,
    "tokenizer_kwargs": None,
    "tokenizer_mode": None,
}
# The other fields: read here, or without effect on a plain CLIP in use.
MODEL_FIELDS = (
    *("embed_dim", "vision_cfg", "text_cfg", "quick_gelu"),
    *("cast_dtype", "custom_text", "init_logit_scale", "nonscalar_logit_scale"),
)
IMAGE_FIELDS = (
    *("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio", "pool_type"),
    *("attn_pooler_heads", "attn_pooler_queries", "n_queries", "output_tokens", "patch_dropout"),
    *("timm_drop", "timm_drop_path", "timm_model_pretrained", "timm_pool", "timm_proj"),
    *("timm_proj_bias",),
)
TEXT_FIELDS = (
    *("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "pool_type"),
    *("eos_id", "hf_model_pretrained", "hf_pooler_type", "hf_proj_type", "output_tokens"),
)
VOCABULARY = 49408  # of CLIP's tokenizer


def read_open_clip_config(folder: Path) -> Description:
    """open_clip_config.json.

    Raises ValueError for one that is damaged, or that describes what is not a plain CLIP: the
    message names the field.
    """
    path = folder / "open_clip_config.json"
    config = _read_json(path)
    model = _section(config, "model_cfg", path)
    preprocess = _section(config, "preprocess_cfg", path)
    quick_gelu = model.get("quick_gelu", False if "vision_cfg" in model else None)
    claims: dict[str, Activation] = {}
    if quick_gelu is not None:
        if not isinstance(quick_gelu, bool):
            raise ValueError(f"{path}: quick_gelu is {shown(quick_gelu)}; expected true or false")
        claims["quick_gelu of open_clip_config.json"] = "quick_gelu" if quick_gelu else "gelu"
    return Description(
        claims=claims,
        mean=_triple(preprocess, "mean", path),
        std=_triple(preprocess, "std", path),
        config=_open_clip_model(model, bool(quick_gelu), path) if "vision_cfg" in model else None,
    )


def _open_clip_model(model: dict[str, Any], quick_gelu: bool, path: Path) -> ModelConfig:
    image, text = _section(model, "vision_cfg", path), _section(model, "text_cfg", path)
    for section, fields, prefix in (
        (model, MODEL_FIELDS, ""),
        (image, IMAGE_FIELDS, "vision_cfg."),
        (text, TEXT_FIELDS, "text_cfg."),
    ):
        for name, value in section.items():
            if name not in fields and (value or None) != (PLAIN.get(name) or None):
                raise ValueError(
                    f"{path}: {prefix}{name} is {shown(value)}, which plain CLIP does not have;"
                    " gem_lite cannot run such a model"
                )
    for tower, prefix, plain in ((image, "vision_cfg", "tok"), (text, "text_cfg", "argmax")):
        if (pool := tower.get("pool_type", plain)) != plain:
            raise ValueError(f"{path}: {prefix}.pool_type is {shown(pool)}; CLIP's is {plain!r}")
    vocab = _count(text, "vocab_size", VOCABULARY, path)
    if vocab != VOCABULARY:
        raise ValueError(
            f"{path}: text_cfg.vocab_size is {vocab}, that of another tokenizer; CLIP's has"
            f" {VOCABULARY} tokens"
        )
    width, text_width = _count(image, "width", 768, path), _count(text, "width", 512, path)
    try:
        return ModelConfig(
            embed=_count(model, "embed_dim", None, path),
            activation="quick_gelu" if quick_gelu else "gelu",
            image=ImageConfig(
                size=_count(image, "image_size", 224, path),
                patch=_count(image, "patch_size", 16, path),
                width=width,
                layers=_count(image, "layers", 12, path),
                heads=width // _count(image, "head_width", 64, path),
                mlp_width=_mlp_width(image, width, path),
            ),
            text=TextConfig(
                context=_count(text, "context_length", 77, path),
                vocab=vocab,
                width=text_width,
                layers=_count(text, "layers", 12, path),
                heads=_count(text, "heads", 8, path),
                mlp_width=_mlp_width(text, text_width, path),
            ),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {shown(error)}") from error


def _count(section: dict[str, Any], name: str, default: int | None, path: Path) -> int:
    value = section.get(name, default)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]  # the sides of a square
    if type(value) is not int or not 0 < value < 1 << 20:
        raise ValueError(f"{path}: {name} is {shown(value)}; expected a whole number above 0")
    return value


def _mlp_width(section: dict[str, Any], width: int, path: Path) -> int:
    ratio = section.get("mlp_ratio", 4.0)
    if type(ratio) not in (int, float) or not 0 < ratio < 1000:
        raise ValueError(f"{path}: mlp_ratio is {shown(ratio)}; expected a number above 0")
    return int(width * ratio)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON ({shown(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected an object")
    return content


def _section(config: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = config.get(name) or {}
    if not isinstance(section, dict):
        raise ValueError(f"{path}: {name} is {shown(section)}; expected an object")
    return section


def _triple(settings: dict[str, Any], name: str, path: Path) -> tuple[float, ...] | None:
    values = settings.get(name)
    return None if values is None else three_numbers(f"{path}: {name}", values)


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
