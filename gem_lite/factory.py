"""From names and files to models: what the package offers at its top level."""

import logging
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch

from .checkpoints.assemble import assemble, build
from .checkpoints.convert import convert, resolve_config
from .checkpoints.files import cache_folder, exclusive, expanded
from .checkpoints.header import Header
from .checkpoints.known import (
    default_file_name,
    fetch_source,
    find_file,
    find_row,
    known_row,
    row_by_hash,
)
from .checkpoints.others import Source, read_source
from .checkpoints.table import PRETRAINED, Pretrained
from .checkpoints.verify import check_once
from .fast import Setting
from .method.config import (
    OPENAI_MEAN,
    OPENAI_STD,
    Activation,
    GEMConfig,
    architecture,
    split_name,
)
from .method.model import GEMNetwork, initialize
from .pictures.transform import ImageTransform, get_gem_img_transform
from .predictor import GEMPredictor
from .tokenizer import Tokenizer

Precision = Literal["fp32", "fp16", "bf16"]
DTYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
DEFAULT_SIZE = 448  # GEM's input side for CLIPs trained at 224 to 336
CHECKPOINT_ENDINGS = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")

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
    kernels: Setting = "auto",
) -> GEMPredictor:
    """A GEM model, in eval mode.

    Args:
        model_name: an architecture with `/` or `-` ("ViT-B/16", "ViT-B-16-quickgelu"), or
            "tiny-emoji".
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
        kernels: "auto" = the fastest exact ones for this machine, "torch" = PyTorch's own; what
            came of it is `model.kernels`.

    The five GEM settings are by default the weight file's own; those are 7, 1, adaptive, "qkv"
    and True for every model but "tiny-emoji". They never need another file.

    Raises ValueError (unknown names, values out of range, files that don't fit), TypeError,
    FileNotFoundError, or FetchError (an OSError) when weights cannot be fetched.
    """
    settings = _Settings(gem_depth, ss_attn_iter, ss_attn_temp, gem_streams, gem_residual)
    dtype = _dtype(precision)
    device = checked_device(device)
    if pretrained is None:
        network, header = _random(model_name, settings, activation, dtype, device)
    else:
        path, row = locate(model_name, pretrained, cache_dir=cache_dir, mirror=mirror)
        network, header = _load(path, row, model_name, settings, activation, dtype, device)
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
    kernels: Setting = "auto",
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
        kernels=kernels,
    )
    header = model.header
    return model, get_gem_img_transform((header.size, header.size), header.mean, header.std)


def get_tokenizer(model_name: str) -> Tokenizer:
    """The tokenizer of a model: its vocabulary, its context length.

    Calling it turns a string or a list of n strings into int64 [n, 77], zero-padded.
    Raises ValueError for an unknown name (lists the nearest known ones).
    """
    shipped = next(
        (row for row in PRETRAINED if row.url is None and row.name == model_name.lower()), None
    )
    text = None
    if shipped is not None and (path := find_file(shipped)) is not None:
        header = read_source(path).header
        text = header.config.text if header is not None else None
    text = text or architecture(model_name).text
    return Tokenizer(vocab_size=text.vocab, context_length=text.context)


def locate(
    model_name: str,
    pretrained: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    mirror: str | None = None,
) -> tuple[Path, Pretrained | None]:
    """The file behind a tag or path, fetched and converted if need be; and the tag's row.

    Raises ValueError for an unknown tag, FileNotFoundError for a path where nothing is, FetchError.
    """
    row = find_row(model_name, pretrained) if isinstance(pretrained, str) else None
    if row is None:
        path = expanded(pretrained)
        if path.exists():
            return path, None
        text = os.fspath(pretrained)
        if (
            isinstance(pretrained, os.PathLike)
            or os.sep in text
            or path.suffix in (CHECKPOINT_ENDINGS)
        ):
            raise FileNotFoundError(f"no checkpoint at {path}")
        row = known_row(model_name, text)
    found = find_file(row, cache_dir=cache_dir)
    return found or _fetch_and_convert(row, cache_dir, mirror), row


def _fetch_and_convert(
    row: Pretrained, cache_dir: str | os.PathLike[str] | None, mirror: str | None
) -> Path:
    if row.url is None:
        return fetch_source(row, cache_dir=cache_dir)  # says where the shipped file was looked for
    output = cache_folder(cache_dir) / default_file_name(row)
    output.parent.mkdir(parents=True, exist_ok=True)
    # One process at a time: the others wait here, and then find the converted file.
    with exclusive(output.with_name(output.name + ".lock")):
        if (found := find_file(row, cache_dir=cache_dir)) is not None:
            return found
        fetched = fetch_source(row, cache_dir=cache_dir, mirror=mirror)
        source = read_source(fetched)
        convert(source, output, header_for(source, row.name, row))
        fetched.unlink(missing_ok=True)  # the converted file holds all of it
    return output


def header_for(
    source: Source,
    model_name: str,
    row: Pretrained | None = None,
    *,
    activation: Activation | None = None,
    tag: str | None = None,
) -> Header:
    """What is known of a checkpoint: from itself, from the table, from arguments.

    A file whose hash is in the table is known by it, whatever it is called. Raises ValueError when
    sources contradict each other, when nothing tells the activation, or when the tensors don't fit.
    """
    claims = dict(source.claims)
    if row is not None:
        claims[f"the tag {row.tag!r}"] = row.activation
    if (own := source.header) is not None:
        source = replace(source, claims=claims)
        config = resolve_config(source, model_name, activation=activation)
        return replace(own, config=config)
    sha256 = source.sha256()
    by_hash = row_by_hash(sha256)
    known = row or by_hash
    if by_hash is not None:
        claims[f"the file's hash, which is that of {by_hash.name} {by_hash.tag}"] = (
            by_hash.activation
        )
    source = replace(source, claims=claims)
    config = resolve_config(source, model_name, activation=activation)
    verified = _verified(source, sha256, row, by_hash)
    mean, std = source.mean or OPENAI_MEAN, source.std or OPENAI_STD
    if known is not None and known.mean is not None and known.std is not None:
        mean, std = known.mean, known.std
    return Header(
        model=known.model if known else model_name,
        pretrained=known.tag if known else tag or source.path.name,
        config=config,
        gem=GEMConfig(blocks=min(6, config.image.layers)),
        size=(known.size if known else None) or DEFAULT_SIZE,
        mean=mean,
        std=std,
        source=(by_hash.url if by_hash else None) or source.path.name,
        sha256=sha256,
        verified=verified,
        licence=known.licence if known else "unknown",
    )


def _verified(
    source: Source, sha256: str, row: Pretrained | None, by_hash: Pretrained | None
) -> str:
    if by_hash is not None and (row is None or row is by_hash):
        full = by_hash.sha256 == sha256
        return "sha256" if full else f"sha256 prefix {by_hash.sha256}"
    if row is None or row.sha256 is None:
        return "unverified"
    note = f"differs from the published SHA-256 {row.sha256}"
    warnings.warn(
        f"{source.path} has SHA-256 {sha256}, which {note} of {row.name} {row.tag}; it is used"
        " all the same, and a converted file's header says so",
        stacklevel=4,
    )
    return note


@dataclass(frozen=True)
class _Settings:
    """GEM settings as a caller gave them; None = the weight file's own."""

    gem_depth: int | None
    ss_attn_iter: int | None
    ss_attn_temp: float | Literal["adaptive"] | None
    gem_streams: str | None
    gem_residual: bool | None

    def over(self, own: GEMConfig, layers: int) -> GEMConfig:
        """The settings of the weight file, with the caller's in their place. Checks ranges."""
        depth = own.blocks + 1 if self.gem_depth is None else self.gem_depth
        if isinstance(depth, bool) or not isinstance(depth, int):
            raise TypeError(f"gem_depth is {depth!r}; expected a whole number")
        if not 1 <= depth <= layers + 1:
            raise ValueError(
                f"gem_depth is {depth}; expected 1 (no dual block) to {layers + 1} (all {layers}"
                " layers of the image tower)"
            )
        iters = own.iters if self.ss_attn_iter is None else self.ss_attn_iter
        if isinstance(iters, bool) or not isinstance(iters, int):
            raise TypeError(f"ss_attn_iter is {iters!r}; expected a whole number")
        if iters < 0:
            raise ValueError(f"ss_attn_iter is {iters}; expected 0 or more")
        inv_temp = own.inv_temp
        if self.ss_attn_temp == "adaptive":
            inv_temp = None
        elif isinstance(self.ss_attn_temp, str):
            raise ValueError(
                f"ss_attn_temp is {self.ss_attn_temp!r}; expected a number or 'adaptive'"
            )
        elif self.ss_attn_temp is not None:
            inv_temp = float(self.ss_attn_temp)
        return GEMConfig(
            blocks=depth - 1,
            iters=iters,
            inv_temp=inv_temp,
            streams=own.streams if self.gem_streams is None else self.gem_streams,
            residual=own.residual if self.gem_residual is None else bool(self.gem_residual),
        )


def _random(
    model_name: str,
    settings: _Settings,
    activation: Activation | None,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[GEMNetwork, Header]:
    config = architecture(model_name, activation)
    gem = settings.over(GEMConfig(), config.image.layers)
    network = build(config, gem)
    # Drawn in float32 on the CPU, so that a seed means the same weights everywhere.
    empty = {
        n: torch.empty_like(t, device="cpu") for n, t in network.state_dict().items() if t.is_meta
    }
    network.load_state_dict(empty, strict=False, assign=True)
    initialize(network)
    header = Header(
        model=model_name,
        pretrained="random",
        config=config,
        gem=gem,
        size=DEFAULT_SIZE,
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        source="random weights",
        sha256="",
        verified="unverified",
        licence="none",
    )
    return network.to(device=device, dtype=dtype), header


def _load(
    path: Path,
    row: Pretrained | None,
    model_name: str,
    settings: _Settings,
    activation: Activation | None,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[GEMNetwork, Header]:
    source = read_source(path)
    own = source.header
    if own is not None and split_name(model_name)[0] != split_name(own.model)[0]:
        # A file of another model is refused for a known name, and for an unknown one.
        architecture(model_name)
    header = header_for(source, model_name, row, activation=activation)
    gem = settings.over(header.gem, header.config.image.layers)
    check_once(source, row)
    network = assemble(
        source.tensors,
        header.config,
        gem,
        dtype=dtype,
        device=device,
        share=own is not None,
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
