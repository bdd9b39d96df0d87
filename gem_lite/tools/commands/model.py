"""The options that choose a model, its settings and its device, the same for every command."""

import argparse
from pathlib import Path
from typing import Literal

import torch
from PIL import Image

from ...checkpoints.known import available_models, find_file, find_row, known_row
from ...checkpoints.ours import read_header
from ...factory import DTYPES, create_model_and_transforms
from ...pictures.transform import ImageTransform
from ...predictor import GEMPredictor
from .console import tell

BEST = ("ViT-B/16", "openai")  # for photographs; taken when its file is on this machine
SHIPPED = ("tiny-emoji", "v1")
MOST_PATCHES = 1 << 14  # of one forward pass: 2048 x 2048 pixels in patches of 16


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """`--device`, by default the graphics card if there is one."""
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)"
    )


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """`--model`, `--pretrained`, `--device`, and GEM's settings in a group of their own."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        help=f"default: {' '.join(BEST)} if its file is on this machine, else {' '.join(SHIPPED)}",
    )
    group.add_argument("--pretrained", help="tag or weight file; default: the model's first tag")
    group.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)"
    )
    group.add_argument("--precision", choices=list(DTYPES), default="fp32")
    add_gem_arguments(parser)


def add_gem_arguments(parser: argparse.ArgumentParser) -> None:
    """GEM's five settings."""
    group = parser.add_argument_group("settings of GEM, by default the weight file's own")
    group.add_argument("--gem-depth", type=int, metavar="N", help="dual blocks + 1; 1 = plain CLIP")
    group.add_argument("--ss-attn-iter", type=int, metavar="N", help="refinements, 0 or more")
    group.add_argument(
        "--ss-attn-temp",
        type=_inverse_temperature,
        metavar="X",
        help="inverse temperature, or 'adaptive'",
    )
    group.add_argument("--gem-streams", metavar="QKV", help="such as qkv, qk or v")
    group.add_argument("--no-gem-residual", action="store_true", help="as in ClearCLIP")


def chosen_model(args: argparse.Namespace, *, fetch: bool = False) -> tuple[str, str]:
    """Name and tag (or path) of the model that the options ask for; a default is told.

    fetch: by default BEST also where its file is not on this machine, and never the model in the
    box, which knows no photographs. Raises ValueError for an unknown name.
    """
    name, tag = args.model, args.pretrained
    if name is None and tag is None:
        best = find_row(*BEST)
        here = best is not None and find_file(best) is not None
        name, tag = BEST if here or fetch else SHIPPED
        how = "for photographs" if (name, tag) == BEST else "the model in the box, for drawings"
        how += "" if here or not fetch else "; not on this machine, so it is fetched"
        tell(f"model {name} {tag} ({how}); --model and --pretrained choose another")
    elif name is None:
        name = _name_in(Path(tag)) or BEST[0]
    elif tag is None:
        tag = _first_tag(name)
    return name, tag


def chosen_device(text: str) -> str:
    """`auto` as cuda where there is one, else cpu; anything else as it is."""
    if text == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return text


def load_model(args: argparse.Namespace) -> tuple[GEMPredictor, ImageTransform]:
    """The model that the options ask for, with its transform, or with `--size` where given."""
    name, tag = chosen_model(args)
    model, transform = create_model_and_transforms(
        name,
        tag,
        args.gem_depth,
        args.ss_attn_iter,
        args.ss_attn_temp,
        precision=args.precision,
        device=chosen_device(args.device),
        gem_streams=args.gem_streams,
        gem_residual=False if args.no_gem_residual else None,
    )
    size = getattr(args, "size", None)
    if size is not None:
        transform = ImageTransform(size, transform.mean, transform.std)
        patch = model.network.config.image.patch
        if size < patch:
            raise ValueError(f"--size is {size}; expected at least one patch, {patch} x {patch}")
    return model, transform


def check_input(picture: Image.Image, size: int | None, model: GEMPredictor) -> None:
    """Raise ValueError for a picture that `--size` makes too large for one forward pass."""
    if size is None:
        return
    longest = size * max(picture.size) / min(picture.size)
    if size * longest > MOST_PATCHES * model.network.config.image.patch**2:
        raise ValueError(
            f"{picture.width} x {picture.height} pixels at a short side of {size} are too many for"
            " the model; leave out --size, or make it smaller"
        )


def _name_in(path: Path) -> str | None:
    """The model's name in a weight file of ours; None for anything else."""
    if path.suffix != ".safetensors" or not path.is_file():
        return None
    header = read_header(path)
    return None if header is None else header.model


def _first_tag(model: str) -> str:
    for name, tag in available_models():
        if find_row(model, tag) is not None or name.lower() == model.lower():
            return tag
    return known_row(model, "openai").tag  # raises, naming what is known


def _inverse_temperature(text: str) -> float | Literal["adaptive"]:
    return "adaptive" if text == "adaptive" else float(text)
