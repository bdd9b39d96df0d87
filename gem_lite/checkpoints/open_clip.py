"""open_clip's configuration files: plain CLIPs are described, others refused by a field's name."""

from pathlib import Path
from typing import Any

from ..method.config import Activation, ImageConfig, ModelConfig, TextConfig
from .configs import Description, read_json, section, three_numbers_in
from .files import shown

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
    config = read_json(path)
    model = section(config, "model_cfg", path)
    preprocess = section(config, "preprocess_cfg", path)
    quick_gelu = model.get("quick_gelu", False if "vision_cfg" in model else None)
    claims: dict[str, Activation] = {}
    if quick_gelu is not None:
        if not isinstance(quick_gelu, bool):
            raise ValueError(f"{path}: quick_gelu is {shown(quick_gelu)}; expected true or false")
        claims["quick_gelu of open_clip_config.json"] = "quick_gelu" if quick_gelu else "gelu"
    return Description(
        claims=claims,
        mean=three_numbers_in(preprocess, "mean", path),
        std=three_numbers_in(preprocess, "std", path),
        config=_open_clip_model(model, bool(quick_gelu), path) if "vision_cfg" in model else None,
    )


def _open_clip_model(model: dict[str, Any], quick_gelu: bool, path: Path) -> ModelConfig:
    image, text = section(model, "vision_cfg", path), section(model, "text_cfg", path)
    for fields, known, prefix in (
        (model, MODEL_FIELDS, ""),
        (image, IMAGE_FIELDS, "vision_cfg."),
        (text, TEXT_FIELDS, "text_cfg."),
    ):
        for name, value in fields.items():
            if name not in known and (value or None) != (PLAIN.get(name) or None):
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
    embed = _count(model, "embed_dim", None, path)
    width, text_width = _count(image, "width", 768, path), _count(text, "width", 512, path)
    image_fields = {
        "size": _count(image, "image_size", 224, path),
        "patch": _count(image, "patch_size", 16, path),
        "width": width,
        "layers": _count(image, "layers", 12, path),
        "heads": width // _count(image, "head_width", 64, path),
        "mlp_width": _mlp_width(image, width, path),
    }
    text_fields = {
        "context": _count(text, "context_length", 77, path),
        "vocab": vocab,
        "width": text_width,
        "layers": _count(text, "layers", 12, path),
        "heads": _count(text, "heads", 8, path),
        "mlp_width": _mlp_width(text, text_width, path),
    }
    try:
        return ModelConfig(
            embed=embed,
            activation="quick_gelu" if quick_gelu else "gelu",
            image=ImageConfig(**image_fields),
            text=TextConfig(**text_fields),
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _count(fields: dict[str, Any], name: str, default: int | None, path: Path) -> int:
    value = fields.get(name, default)
    if isinstance(value, list) and len(value) == 2 and value[0] == value[1]:
        value = value[0]  # the sides of a square
    if type(value) is not int or not 0 < value < 1 << 20:
        raise ValueError(f"{path}: {name} is {shown(value)}; expected a whole number above 0")
    return value


def _mlp_width(fields: dict[str, Any], width: int, path: Path) -> int:
    ratio = fields.get("mlp_ratio", 4.0)
    if type(ratio) not in (int, float) or not 0 < ratio < 1000:
        raise ValueError(f"{path}: mlp_ratio is {shown(ratio)}; expected a number above 0")
    return int(width * ratio)
