"""The options that choose a model, its settings and its device, the same for every command."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..demo import SHIPPED
from ..settings import asked_method, parsed_setting
from .console import tell

if TYPE_CHECKING:
    from ...method.base import Method
    from ...pictures.transform import ImageTransform
    from ...predictor import GEMPredictor

BEST = ("ViT-B/16", "openai")  # for photographs; taken when its file is on this machine
PRECISIONS = ("fp32", "fp16", "bf16")
MOST_PATCHES = 1 << 14  # of one forward pass: 2048 x 2048 pixels in patches of 16
MOST_IN_WINDOWS = 1 << 17  # patches of one picture seen in windows, all windows together


def add_device_argument(parser: argparse._ActionsContainer) -> None:
    """`--device`, by default a graphics card if there is one."""
    parser.add_argument(
        "--device",
        default="auto",
        help="auto (CUDA, else MPS, else CPU), cpu, cuda, gpu, mps, or a card's number"
        " (default: %(default)s)",
    )


def add_model_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """`--model`, `--pretrained`, `--device`, and the method's; `several`: of methods."""
    group = parser.add_argument_group("model")
    group.add_argument(
        "--model",
        help=f"default: {' '.join(BEST)} if its file is on this machine, else {' '.join(SHIPPED)}",
    )
    group.add_argument("--pretrained", help="tag or weight file; default: the model's first tag")
    add_device_argument(group)
    group.add_argument("--precision", choices=PRECISIONS, default="fp32")
    add_gem_arguments(parser, several=several)


def add_gem_arguments(parser: argparse.ArgumentParser, *, several: bool = False) -> None:
    """The method, its settings, and the five of GEM that have options of their own."""
    group = parser.add_argument_group("method, by default the weight file's, with its settings")
    group.add_argument(
        "--method",
        nargs="+" if several else None,
        help="such as gem, clearclip, naclip:std=3 (gem_lite.methods()), or a file own.py"
        + ("; 'all' = every one" if several else ""),
    )
    group.add_argument(
        "--set",
        nargs="+",
        default=[],
        type=_setting,
        metavar="NAME=VALUE",
        help="settings of the method, such as std=3 for naclip",
    )
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
    """Name and tag (or path) of the model that the options ask for; a default is reported.

    fetch: by default BEST also where its file is not on this machine, and never the model in the
    box, which knows no photographs. Raises ValueError for an unknown name.
    """
    from ...checkpoints.known import find_file, find_row, first_tag

    name, tag = args.model, args.pretrained
    if name is None and tag is None:
        best = find_row(*BEST)
        here = best is not None and find_file(best) is not None
        name, tag = BEST if here or fetch else SHIPPED
        if (name, tag) == SHIPPED:
            for line in drawings_only():
                tell(line)
            return name, tag
        how = "for photographs" + ("" if here else "; not on this machine, so it is fetched")
        tell(f"model {name} {tag} ({how}); --model and --pretrained choose another")
    elif name is None:
        name = _name_in(Path(tag)) or BEST[0]
    elif tag is None:
        tag = first_tag(name)
    return name, tag


def check_names(args: argparse.Namespace) -> None:
    """Raise ValueError for an unknown model before anything slow is imported."""
    from ...checkpoints.hub import is_named_folder
    from ...checkpoints.known import first_tag

    if args.model is not None and args.pretrained is None and not is_named_folder(args.model):
        first_tag(args.model)


def drawings_only() -> tuple[str, ...]:
    """What to say where the model in the box stands in for one that knows photographs."""
    from ...checkpoints.files import cache_folder
    from ...checkpoints.known import known_row, published_file_name

    row = known_row(*BEST)
    return (
        f"WARNING: {' '.join(SHIPPED)}, the model in the box, knows drawings only;"
        " what it says of a photograph means nothing",
        f"for photographs run once: gem-lite models --fetch {BEST[0]}"
        f" (or put {published_file_name(row)}, carried over by hand, into {cache_folder()});"
        " --model chooses another",
    )


def chosen_device(text: str) -> str:
    """`auto` as cuda, mps or cpu, `gpu` as one of the first two, a number as that card."""
    import torch

    cards = ["cuda"] if torch.cuda.is_available() else []
    cards += ["mps"] if torch.backends.mps.is_available() else []
    if text == "auto":
        return (cards or ["cpu"])[0]
    if text == "gpu":
        if not cards:
            raise ValueError("--device is gpu; this PyTorch finds neither CUDA nor MPS")
        return cards[0]
    if text == "mps" and text not in cards:
        raise ValueError("--device is mps; this PyTorch finds no card of Apple's")
    return f"cuda:{int(text)}" if text.isdecimal() else text


def load_model(args: argparse.Namespace) -> tuple[GEMPredictor, ImageTransform]:
    """The model that the options ask for, with its transform, or with `--size` where given."""
    from ...factory import create_model_and_transforms
    from ...pictures.transform import ImageTransform

    name, tag = chosen_model(args)
    method, settings = chosen_method(args)
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
        method=method,
        settings=settings,
    )
    size = getattr(args, "size", None)
    if size is not None:
        transform = ImageTransform(size, transform.mean, transform.std)
        patch = model.network.config.image.patch
        if size < patch:
            raise ValueError(f"--size is {size}; expected at least one patch, {patch} x {patch}")
    check_work(args, (1, 1), model)
    return model, transform


def described_method(model: GEMPredictor, *, plain: bool = False) -> dict[str, Any]:
    """The method's name and settings, for results. plain: plain CLIP was asked for."""
    return {"name": "clip"} if plain else {"name": model.method.name, **asdict(model.method)}


def check_work(args: argparse.Namespace, sides: tuple[int, int], model: GEMPredictor) -> None:
    """Raise ValueError where `--size` and `--window` ask for more than a machine's memory.

    sides: (h, w) of a picture. Without --size every picture becomes the model's square.
    """
    patch = model.network.config.image.patch
    size, window = getattr(args, "size", None), getattr(args, "window", None)
    short = model.header.size if size is None else size
    long = short if size is None else int(short * max(sides) / max(1, min(sides)))
    shape = "" if sides == (1, 1) else f"{sides[1]} x {sides[0]} pixels at "
    if window is None:
        if short * long > MOST_PATCHES * patch**2:
            raise ValueError(
                f"{shape}a short side of {short} pixels is too large for the model; leave out"
                " --size, or make it smaller"
            )
        return
    if min(window, short) * min(window, long) > MOST_PATCHES * patch**2:
        side = int(MOST_PATCHES**0.5) * patch
        raise ValueError(f"--window is {window}; expected at most {side} for this model")
    count = count_windows((short, long), window, args.stride)
    if count * min(window, short) * min(window, long) > MOST_IN_WINDOWS * patch**2:
        raise ValueError(
            f"{shape}a short side of {short} pixels makes {count} windows, too many for memory;"
            " make --size smaller or --stride larger"
        )


def count_windows(sides: tuple[int, int], window: int, stride: int | None) -> int:
    """Windows in an image; by default they overlap by half."""
    step = stride or max(1, window // 2)
    rows, columns = (1 + max(0, -(-(side - window) // step)) for side in sides)
    return rows * columns


def chosen_method(args: argparse.Namespace) -> tuple[str | Method | None, dict[str, Any] | None]:
    """The method that the options ask for, and its settings; None = the weight file's."""
    if not args.method:
        return None, dict(args.set) or None
    method, settings = asked_method(args.method, dict(args.set))
    return method, settings or None


def _name_in(path: Path) -> str | None:
    """The model's name in a weight file of ours; None for anything else."""
    from ...checkpoints.ours import read_header

    if path.suffix != ".safetensors" or not path.is_file():
        return None
    header = read_header(path)
    return None if header is None else header.model


def _inverse_temperature(text: str) -> float | Literal["adaptive"]:
    return "adaptive" if text == "adaptive" else float(text)


def _setting(text: str) -> tuple[str, Any]:
    try:
        return parsed_setting(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
