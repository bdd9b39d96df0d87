"""From names and files to models: what the package offers at its top level."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from .checkpoints.assemble import assemble, build, place
from .checkpoints.describe import DEFAULT_SIZE, header_for, locate
from .checkpoints.header import Header
from .checkpoints.hub import named_folder
from .checkpoints.known import find_file
from .checkpoints.others import read_source
from .checkpoints.ours import write
from .checkpoints.settings import chosen_method
from .checkpoints.table import PRETRAINED, Pretrained
from .method.base import Method
from .method.config import OPENAI_MEAN, OPENAI_STD, Activation, architecture, split_name
from .method.methods.gem import GEMConfig
from .method.model import GEMNetwork, initialize
from .pictures.transform import ImageTransform, get_gem_img_transform
from .predictor import GEMPredictor
from .prompts import kind_of
from .tokenizer import Tokenizer

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}

logger = logging.getLogger(__name__)


def create_gem_model(
    model_name: str,
    pretrained: str | os.PathLike[str] | None = None,
    gem_depth: int | None = None,
    ss_attn_iter: int | None = None,
    ss_attn_temp: float | Literal["adaptive"] | None = None,
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
    *,
    gem_streams: str | None = None,
    gem_residual: bool | None = None,
    activation: Activation | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    mirror: str | None = None,
    method: str | Method | None = None,
    settings: Mapping[str, Any] | None = None,
    kernels: str = "auto",
    mmap: bool = True,
) -> GEMPredictor:
    """A GEM model, in eval mode.

    Args:
        model_name: an architecture with `/` or `-` ("ViT-B/16", "ViT-B-16-quickgelu"),
            "tiny-emoji", "hf-hub:organisation/repository", or "local-dir:" and a folder.
        pretrained: a tag of `available_models()`, which is fetched once if it is not on disk; the
            path of a checkpoint (ours, OpenAI's, open_clip's or MetaCLIP's, a Hugging Face file
            or folder); or None for random weights (torch's seed).
        gem_depth: one more than the number of dual blocks, as upstream counts: 7 = six, 1 = none,
            up to layers + 1.
        ss_attn_iter: refinements in self-self attention, 0 or more.
        ss_attn_temp: its inverse temperature, above 0; "adaptive" = from the token norms.
        precision: "fp32", "fp16" or "bf16".
        device: where the model goes.
        gem_streams: which of q, k and v attend to themselves, such as "qkv" or "v".
        gem_residual: False = each dual block's output replaces the GEM stream (ClearCLIP).
        activation: "quick_gelu" or "gelu", for a file that does not say.
        cache_dir: folder for fetched weights, instead of the user's cache.
        mirror: url of a folder to fetch from, instead of the publisher.
        method: how maps are made: a name of `methods()`, a `Method` of your own, or None = the
            weight file's, which is "gem" for every published one.
        settings: the method's, by name, such as {"std": 3.0} for "naclip".
        kernels: "auto" = the fastest exact ones for this machine, "torch" = PyTorch's own; what
            came of it is `model.kernels`.
        mmap: False = read our own file into memory, so that it may be overwritten in place.

    The five GEM settings are by default the weight file's own; those are 7, 1, adaptive, "qkv"
    and True for every model but "tiny-emoji". They never need another file.

    Raises ValueError (unknown names, values out of range, files that don't fit), TypeError,
    FileNotFoundError, or FetchError (an OSError) when weights cannot be fetched.
    """
    dtype, device = _dtype(precision), checked_device(device)

    def chosen(header: Header) -> Method:
        return chosen_method(
            header,
            method,
            settings,
            gem_depth=gem_depth,
            ss_attn_iter=ss_attn_iter,
            ss_attn_temp=ss_attn_temp,
            gem_streams=gem_streams,
            gem_residual=gem_residual,
        )

    pretrained = pretrained or named_folder(model_name, cache_dir=cache_dir)
    if pretrained is None:
        header = _random_header(model_name, activation)
        network = _random_network(header, chosen(header), dtype, device)
    else:
        path, row = locate(model_name, pretrained, cache_dir=cache_dir, mirror=mirror)
        network, header = _load(path, row, model_name, activation, chosen, dtype, device, mmap)
    text = network.config.text
    tokenizer = Tokenizer(vocab_size=text.vocab, context_length=text.context)
    return GEMPredictor(network, header, tokenizer, kernels=kernels).eval()


def create_model_and_transforms(
    model_name: str,
    pretrained: str | os.PathLike[str] | None = None,
    gem_depth: int | None = None,
    ss_attn_iter: int | None = None,
    ss_attn_temp: float | Literal["adaptive"] | None = None,
    precision: Precision = "fp32",
    device: str | torch.device = "cpu",
    *,
    gem_streams: str | None = None,
    gem_residual: bool | None = None,
    activation: Activation | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    mirror: str | None = None,
    method: str | Method | None = None,
    settings: Mapping[str, Any] | None = None,
    kernels: str = "auto",
    mmap: bool = True,
) -> tuple[GEMPredictor, ImageTransform]:
    """`create_gem_model`, and the image transform with that model's size, mean and std."""
    model = create_gem_model(
        model_name,
        pretrained,
        gem_depth,
        ss_attn_iter,
        ss_attn_temp,
        precision,
        device,
        gem_streams=gem_streams,
        gem_residual=gem_residual,
        activation=activation,
        cache_dir=cache_dir,
        mirror=mirror,
        method=method,
        settings=settings,
        kernels=kernels,
        mmap=mmap,
    )
    header = model.header
    return model, get_gem_img_transform((header.size, header.size), header.mean, header.std)


def get_tokenizer(model_name: str, *, cache_dir: str | os.PathLike[str] | None = None) -> Tokenizer:
    """The tokenizer of a model: its vocabulary, its context length.

    model_name: as in `create_gem_model`; a repository is fetched, if need be. Calling the tokenizer
    turns a string or a list of n strings into int64 [n, 77], zero-padded.
    Raises ValueError for an unknown name (lists the nearest known ones).
    """
    if (folder := named_folder(model_name, cache_dir=cache_dir)) is not None:
        shapes = read_source(folder).shapes
        vocab, context = (
            shapes[name][0] for name in ("token_embedding.weight", "positional_embedding")
        )
        return Tokenizer(vocab_size=vocab, context_length=context)
    shipped = next(
        (row for row in PRETRAINED if row.url is None and row.name == model_name.lower()), None
    )
    text = None
    if shipped is not None and (path := find_file(shipped)) is not None:
        header = read_source(path).header
        text = header.config.text if header is not None else None
    text = text or architecture(model_name).text
    return Tokenizer(vocab_size=text.vocab, context_length=text.context)


def _random_header(model_name: str, activation: Activation | None) -> Header:
    return Header(
        model=model_name,
        pretrained="random",
        config=architecture(model_name, activation),
        gem=GEMConfig(),
        size=DEFAULT_SIZE,
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        source="random weights",
        sha256="",
        verified="unverified",
        licence="none",
    )


def _random_network(
    header: Header, method: Method, dtype: torch.dtype, device: torch.device
) -> GEMNetwork:
    network = build(header.config, method)
    # Drawn in float32 on the CPU, so that a seed means the same weights everywhere.
    empty = {
        n: torch.empty_like(t, device="cpu") for n, t in network.state_dict().items() if t.is_meta
    }
    place(network, empty)
    initialize(network)
    return network.to(device=device, dtype=dtype)


def _load(
    path: Path,
    row: Pretrained | None,
    model_name: str,
    activation: Activation | None,
    chosen: Callable[[Header], Method],
    dtype: torch.dtype,
    device: torch.device,
    mmap: bool,
) -> tuple[GEMNetwork, Header]:
    source = read_source(path)
    own = source.header
    if own is not None and split_name(model_name)[0] != split_name(own.model)[0]:
        # A file of another model is refused for a known name, and for an unknown one.
        architecture(model_name)
    header = header_for(source, model_name, row, activation=activation)
    network = assemble(
        source.tensors,
        header.config,
        chosen(header),
        dtype=dtype,
        device=device,
        share=own is not None and mmap,
        where=str(source.path),
    )
    logger.info("loaded %s from %s (%s)", header.model, source.path, source.layout)
    return network, header


def _dtype(precision: str) -> torch.dtype:
    if precision not in DTYPES:
        raise ValueError(f"precision is {precision!r}; expected one of {list(DTYPES)}")
    return DTYPES[precision]


def checked_device(device: str | torch.device) -> torch.device:
    """The device, if this PyTorch has it; ValueError otherwise."""
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device is {device!r}; expected 'cpu', 'cuda' or 'cuda:1'") from error
    try:
        torch.zeros((), device=device).item()
    except (RuntimeError, AssertionError) as error:  # no such device, or no driver for it
        reason = str(error).split("\n", maxsplit=1)[0]
        raise ValueError(
            f"device is {str(device)!r}, which this PyTorch cannot use ({reason})"
        ) from error
    return device


def save(model: GEMPredictor, path: str | Path) -> None:
    """Write a model's weights, for example after fine-tuning, as a safetensors file of ours.

    The tensors keep their dtype and CLIP's names, so the file also loads in open_clip; the method
    and settings in use become the file's own. The file is complete or not there at all.
    Raises TypeError for anything but a model from `create_gem_model`; FileNotFoundError when the
    folder does not exist.
    """
    if isinstance(model, nn.DataParallel):
        model = model.module
    if not isinstance(model, GEMPredictor):
        raise TypeError(f"expected a model from create_gem_model(), got {kind_of(model)}")
    header = model.header.changed(config=model.network.config, method=model.method)
    write(path, model.network.state_dict(), header)
