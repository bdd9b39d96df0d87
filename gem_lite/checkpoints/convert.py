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
    split_name,
)
from ..method.methods.gem import GEMConfig
from .assemble import assemble, check_finite, check_shapes
from .files import atomic_file
from .header import Header
from .others import Source
from .ours import open_file, write


def decide_activation(claims: Mapping[str, Activation], *, where: str) -> Activation:
    """The one activation that all claims agree on.

    Raises ValueError when claims contradict each other, or when there is none.
    """
    activations = set(claims.values())
    if len(activations) > 1:
        listed = "; ".join(f"{origin}: {activation}" for origin, activation in claims.items())
        raise ValueError(f"the sources disagree on the activation of {where}: {listed}")
    if not activations:
        raise ValueError(
            f"{where} does not say which activation it was trained with, and the weights don't"
            " show it; pass activation='quick_gelu' or 'gelu' (--activation), or a model name with"
            " the suffix '-quickgelu' (OpenAI's and most MetaCLIP models are QuickGELU)"
        )
    return activations.pop()


def resolve_config(
    source: Source, model_name: str, *, activation: Activation | None = None
) -> ModelConfig:
    """The configuration under which a checkpoint is to be loaded; its tensors' shapes are checked.

    The activation comes from the file, from `activation` and from a `-quickgelu` name, which must
    agree. An unknown name is accepted for a file that describes itself (ours,
    or one with config.json).
    Raises ValueError for contradictions, unknown names, and tensors that don't fit.
    """
    claims = dict(source.claims)
    if activation is not None:
        claims["the argument"] = activation
    name, quickgelu = split_name(model_name)
    if quickgelu:
        claims[f"the name {model_name!r}"] = "quick_gelu"
    decided = decide_activation(claims, where=str(source.path))
    known = name in map(fold_name, ARCHITECTURES)
    if source.config is not None and not known:
        config = replace(source.config, activation=decided)
    else:
        config = architecture(model_name, decided)
        context, *_ = source.shapes.get("positional_embedding") or (config.text.context,)
        # Long-CLIP and others differ from their architecture in how long a text may be.
        config = replace(config, text=replace(config.text, context=max(context, 2)))
    check_shapes(source.shapes, config, where=f"{source.path} as {model_name!r}")
    if source.config is not None and source.config != config:
        raise ValueError(
            f"{source.path} describes another model than {model_name!r}: {source.config}"
        )
    return config


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
        tensors = {}
        written = set()
        exact = True
        for name, tensor in source.tensors.items():
            check_finite({name: tensor}, where=f"{source.path}: ")
            tensors[name] = tensor.to(dtype or tensor.dtype)
            if not torch.isfinite(tensors[name]).all():
                raise ValueError(f"{name} overflows {dtype}; choose fp32 or bf16")
            written.add(tensors[name].dtype)
            exact = exact and tensors[name].dtype == tensor.dtype
        write(temporary, tensors, header)
        del tensors
        advance("comparing features")
        error = _features_error(source, temporary, header.config, device)
        rounding = 0.0 if exact else max(torch.finfo(kind).eps for kind in written)
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
    for path, tensors in ((source.path, source.tensors), (written, open_file(written)[0])):
        network = assemble(
            tensors,
            config,
            method,
            dtype=torch.float32,
            device=device,
            share=path == written,
            where=str(path),
        )
        with torch.no_grad():
            image, text = network(images, tokens.to(device))
        features.append((image.clip, image.gem, text))
        del network
    errors = [
        (ours - theirs).abs().max() / theirs.abs().max()
        for theirs, ours in zip(*features, strict=True)
    ]
    return float(torch.stack(errors).max())  # NaN if one is, unlike Python's own max
