"""`gem_lite.export`: a model with its words, or its towers, as one file for other programs."""

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from .._version import __version__
from ..method.checks import covers_patch
from ..method.model import GEMNetwork
from ..predictor import GEMPredictor
from ..prompts import (
    TEMPLATE,
    Templates,
    checked_templates,
    class_texts,
    kind_of,
    split_background,
)
from . import files
from .forms import OUTPUTS
from .graphs import Features, Labels, Maps, Text, image_tower, text_tower, traced

FORMAT_VERSION = 1
WITHOUT_WORDS = ("features", "text")
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

logger = logging.getLogger(__name__)


def export(
    model: GEMPredictor,
    path: str | os.PathLike[str],
    words: Sequence[str | Sequence[str]] | None = None,
    *,
    format: Literal["pt2", "onnx"] | None = None,
    outputs: str | None = None,
    size: int | tuple[int, int] | None = None,
    precision: Literal["fp32", "fp16", "bf16"] = "fp32",
    templates: Templates = TEMPLATE,
    background: float | Sequence[str] | None = None,
    threshold: float | None = None,
    scale: float = 50.0,
) -> None:
    """Write a file that computes what a model does, for programs that have no gem_lite.

    Args:
        words: the prompts to bake in; for "labels" also lists of synonyms. None = "features".
        format: "pt2" (torch.export's) or "onnx" (extra `onnx`); None = by the path's suffix.
        outputs: what the file computes, from images [b, 3, h, w] of float32 as the model's
            transform makes them:
            "features": clip and gem, [b, 1 + grid h * grid w, e] each, class token first;
            "patches": maps [b, p, grid h, grid w], cosines;
            "cosines": maps [b, p, h, w], the same at the images' size;
            "maps": maps [b, p, h, w], each stretched to [0, 1], as `model(images, words)`; this
            is the default with words;
            "labels": labels [b, h, w] int64 and confidence, as `model.segment(images, words)`;
            or "text": from tokens [p, n] int64 text embeddings [p, e] of unit norm.
        size: (h, w) or the side of the images, to fix it; None = any, from two patches up. The
            batch is always free.
        precision: of weights and products; images and results are float32 in any case.
        templates: what words are put into.
        background, threshold, scale: for "labels", as in `model.segment`.

    The file's metadata say, as JSON, all that its user needs: words, mean, std, size, patch,
    method, source and licence; in ONNX the property "gem_lite", in a .pt2 the extra file
    "gem_lite.json".
    PyTorch's own kernels are traced, whatever `model.kernels` says. The traced program is held
    against the model before it is written, and the file is complete or not there at all.

    Raises TypeError, ValueError (also for a method that cannot be exported), ImportError for a
    missing extra, FileNotFoundError for a missing folder.
    """
    if not isinstance(model, GEMPredictor):
        raise TypeError(f"expected a model from create_gem_model(), got {kind_of(model)}")
    path = Path(path)
    outputs = ("features" if words is None else "maps") if outputs is None else outputs
    _check(model, words, outputs, precision, background, threshold)
    form = files.chosen_format(path, format)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write {path.name} to; make it first")
    templates = checked_templates(templates)
    patch = model.network.config.image.patch
    sides = (size, size) if isinstance(size, int) else size
    if sides is not None:
        covers_patch(sides, patch, "size")

    with torch.inference_mode(False), torch.no_grad():
        dtype = PRECISIONS[precision]
        if outputs == "text":
            graph: Any = Text(text_tower(model.network, dtype))
            context = model.network.config.text.context
            end = model.network.config.text.vocab - 1
            tokens = [torch.full(shape, end) for shape in ((2, context // 2), (3, context))]
            example, trials, name = tokens[0], tokens[1:], "tokens"
        else:
            visual = image_tower(model.network, dtype, sides)
            graph = _image_graph(
                model, visual, words, outputs, templates, background, threshold, scale
            )
            example = torch.randn(2, 3, *(sides or (3 * patch, 5 * patch)))
            height, width = ((side + 2) * patch - 1 for side in model.network.config.image.grid)
            trials = [torch.randn(3, 3, *(sides or (height, width - patch)))]
            name = "images"
        what = "the text tower" if outputs == "text" else f"method {model.method.name!r}"
        what += " (of any size)" if outputs != "text" and sides is None else ""
        program = traced(graph.eval(), example, trials, what)
        metadata = _metadata(model, words, outputs, sides, precision, templates)
        if outputs == "labels":
            metadata |= {"background": background, "threshold": threshold, "scale": scale}
        text = json.dumps(metadata, default=str)
        if form == "pt2":
            files.write_pt2(program, path, text)
        else:
            files.write_onnx(program, path, text, what=what, inputs=(name,), outputs=graph.names)
    logger.info("wrote %s of %s to %s", outputs, model.header.model, path)


def _image_graph(
    model: GEMPredictor,
    visual: nn.Module,
    words: Any,
    outputs: str,
    templates: tuple[str, ...],
    background: Any,
    threshold: float | None,
    scale: float,
) -> nn.Module:
    if outputs == "features":
        return Features(visual)
    rivals, least = split_background(background, threshold)
    text, groups, classes = class_texts(
        words, rivals, lambda names: model.encode_text(list(names), templates=templates)[0].cpu()
    )
    if outputs != "labels":
        return Maps(visual, model.method, text, outputs)
    cosines = Maps(visual, model.method, text, "cosines")
    return Labels(cosines, groups, classes=classes, scale=scale, threshold=least)


def _metadata(
    model: GEMPredictor,
    words: Any,
    outputs: str,
    size: tuple[int, int] | None,
    precision: str,
    templates: tuple[str, ...],
) -> dict[str, Any]:
    header, config = model.header, model.network.config
    return {
        "format_version": FORMAT_VERSION,
        "library": f"gem_lite {__version__}",
        "outputs": outputs,
        "words": words,
        "templates": templates,
        "size": size or (header.size, header.size),
        "any_size": size is None,
        "mean": header.mean,
        "std": header.std,
        "patch": config.image.patch,
        "context": config.text.context,
        "vocab": config.text.vocab,
        "logit_scale": float(model.network.logit_scale.float().exp()),
        "precision": precision,
        "model": header.model,
        "pretrained": header.pretrained,
        "activation": config.activation,
        "method": model.method.name,
        "settings": asdict(model.method),
        "source": header.source,
        "sha256": header.sha256,
        "verified": header.verified,
        "licence": header.licence,
    }


def _check(
    model: GEMPredictor,
    words: Any,
    outputs: str,
    precision: str,
    background: Any,
    threshold: float | None,
) -> None:
    for name, value, known in (
        ("outputs", outputs, OUTPUTS),
        ("precision", precision, tuple(PRECISIONS)),
    ):
        if value not in known:
            raise ValueError(f"{name} is {value!r}; expected one of {list(known)}")
    if (words is None) != (outputs in WITHOUT_WORDS):
        raise ValueError(
            f"outputs is {outputs!r}, which needs words"
            if words is None
            else f"outputs is {outputs!r}, which takes no words; leave them out"
        )
    if isinstance(words, str) or not isinstance(words, Sequence | None):
        raise TypeError(f"words is {kind_of(words)}; expected a list of words")
    if outputs != "labels":
        if background is not None or threshold is not None:
            raise ValueError(f"background and threshold are for 'labels'; outputs is {outputs!r}")
        if grouped := [word for word in words or () if not isinstance(word, str)]:
            raise ValueError(f"{grouped[0]!r} is not a word; lists of synonyms are for 'labels'")
    network = model.network
    own = type(network).encode_image is not GEMNetwork.encode_image
    if own or "encode_image" in vars(network):
        raise ValueError("the network has an encode_image of its own; put the change into `visual`")
