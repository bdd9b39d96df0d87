"""A checkpoint of another layout -> a file of ours, and a check of what was written."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch

from ..method.config import (
    ARCHITECTURES,
    Activation,
    ModelConfig,
    architecture,
    fold_name,
)
from ..method.methods.gem import GEMConfig
from .others import Source, shapes_of
from .ours import Header, assemble, atomic_file, check_shapes, load, write


def decide_activation(claims: Mapping[str, Activation], *, where: str) -> Activation:
    """The one activation that all claims agree on.

    Raises ValueError when claims contradict each other, or when there is none.
    """
    said = set(claims.values())
    if len(said) > 1:
        listed = "; ".join(f"{who}: {what}" for who, what in claims.items())
        raise ValueError(f"the sources disagree on the activation of {where}: {listed}")
    if not said:
        raise ValueError(
            f"{where} does not say which activation it was trained with, and the weights don't"
            " show it; pass activation='quick_gelu' or 'gelu' (--activation), or a model name with"
            " the suffix '-quickgelu' (OpenAI's and most MetaCLIP models are QuickGELU)"
        )
    return said.pop()


def resolve_config(
    source: Source, model_name: str, *, activation: Activation | None = None
) -> ModelConfig:
    """The configuration under which a checkpoint is to be loaded; its tensors are checked.

    The activation comes from the file, from `activation` and from a `-quickgelu` name, which must
    agree. A name that is no known architecture is accepted for a file that describes itself (ours,
    or one with config.json).
    Raises ValueError for contradictions, unknown names, and tensors that don't fit.
    """
    claims = dict(source.claims)
    if activation is not None:
        claims["the argument"] = activation
    if fold_name(model_name).endswith("-quickgelu"):
        claims[f"the name {model_name!r}"] = "quick_gelu"
    decided = decide_activation(claims, where=str(source.path))
    if source.config is not None and not is_architecture(model_name):
        config = source.config
    else:
        config = architecture(model_name, decided)
    config = replace(config, activation=decided)
    check_shapes(shapes_of(source.tensors), config, where=f"{source.path} as {model_name!r}")
    if source.config is not None and source.config != config:
        raise ValueError(
            f"{source.path} describes another model than {model_name!r}: {source.config}"
        )
    _check_floating(source)
    return config


def is_architecture(name: str) -> bool:
    """Whether the name, with or without -quickgelu, is one of ARCHITECTURES."""
    folded = fold_name(name).removesuffix("-quickgelu")
    return folded in {fold_name(known) for known in ARCHITECTURES}


FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _check_floating(source: Source) -> None:
    for name in source.tensors:
        dtype = source.tensors[name].dtype
        if dtype not in FLOATING:
            raise ValueError(f"{source.path}: {name} holds {dtype}; expected floating point")


def convert(
    source: Source,
    output: str | Path,
    header: Header,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    advance: Callable[[str], None] = lambda step: None,
) -> float:
    """Write a checkpoint as a file of ours, and compare the file's features with the source's.

    `header.config` must come from `resolve_config`. `dtype` None keeps each tensor's own.
    `advance` is told each step as it begins: writing, comparing.
    Returns the largest difference of a feature, relative to the largest feature. Raises
    ValueError when it exceeds the written dtype's rounding; then nothing is written.
    """
    output = Path(output)
    advance(f"writing {output.name}")
    with atomic_file(output) as temporary:
        tensors = {
            name: source.tensors[name].to(dtype or source.tensors[name].dtype)
            for name in source.tensors
        }
        for name, tensor in tensors.items():
            if not torch.isfinite(source.tensors[name]).all():
                raise ValueError(
                    f"{source.path}: {name} holds numbers that are not finite; is the file damaged?"
                )
            if not torch.isfinite(tensor).all():
                raise ValueError(f"{name} overflows {dtype}; choose fp32 or bf16")
        write(temporary, tensors, header)
        written = {tensor.dtype for tensor in tensors.values()}
        kept = all(tensors[name].dtype == source.tensors[name].dtype for name in tensors)
        del tensors
        advance("comparing features")
        error = _features_error(source, temporary, header.config, device)
        rounding = 0.0 if kept else max(torch.finfo(each).eps for each in written)
        # A feature gathers the roundings of some hundred products; a wrong tensor shows as about 1.
        tolerance = max(16 * rounding, 1e-5)
        if not error <= tolerance:
            raise ValueError(
                f"the written file's features differ from {source.path}'s by {error:.2g} of the"
                f" largest, above the {tolerance:.2g} that rounding explains; nothing was written"
            )
    return error


def _features_error(
    source: Source, written: Path, config: ModelConfig, device: torch.device | str
) -> float:
    """Largest difference of text and image features between source and file, in float32."""
    generator = torch.Generator().manual_seed(0)
    side = config.image.size
    images = torch.randn(1, 3, side, side, generator=generator).to(device)
    tokens = torch.randint(0, config.text.vocab - 2, (2, config.text.context), generator=generator)
    tokens[:, -1] = config.text.vocab - 1
    method = GEMConfig(blocks=min(6, config.image.layers))
    features = []
    # One network at a time, so that the largest models fit.
    for make in (
        lambda: assemble(source.tensors, config, method, dtype=torch.float32, device=device),
        lambda: load(written, method=method, device=device)[0],
    ):
        network = make()
        with torch.no_grad():
            image, text = network(images, tokens.to(device))
        features.append((image.clip, image.gem, text))
        del network
    errors = [
        (ours - theirs).abs().max() / theirs.abs().max()
        for theirs, ours in zip(*features, strict=True)
    ]
    return float(torch.stack(errors).max())  # NaN if one is, unlike Python's own max
