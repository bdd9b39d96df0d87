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
    config = read_json(path)
    claims: dict[str, Activation] = {}
    # transformers lets the entries that end in _dict, of older versions, override the others.
    for tower in ("text_config", "vision_config", "text_config_dict", "vision_config_dict"):
        settings = section(config, tower, path)
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
    preprocessor = read_json(path)
    return Description(
        claims=claims,
        mean=three_numbers_in(preprocessor, "image_mean", path),
        std=three_numbers_in(preprocessor, "image_std", path),
        config=described,
    )


def _heads(config: dict[str, Any], tower: str, path: Path) -> int | None:
    count = section(config, tower, path).get("num_attention_heads")
    if count is not None and type(count) is not int:
        raise ValueError(
            f"{path}: {tower}.num_attention_heads is {shown(count)}; expected a whole number"
        )
    return count


def read_json(path: Path) -> dict[str, Any]:
    """What the file holds, {} where there is none. Raises ValueError unless it is an object."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not readable JSON ({shown(error)})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; expected an object")
    return content


def section(config: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    """An object inside the file, {} where there is none. Raises ValueError for something else."""
    fields = config.get(name) or {}
    if not isinstance(fields, dict):
        raise ValueError(f"{path}: {name} is {shown(fields)}; expected an object")
    return fields


def three_numbers_in(settings: dict[str, Any], name: str, path: Path) -> tuple[float, ...] | None:
    """A mean or std in the file, if there is one. Raises ValueError for something else."""
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
