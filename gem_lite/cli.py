"""The command line: `gem-lite` and `python -m gem_lite`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

import torch
from PIL import Image, UnidentifiedImageError

from .config import ACTIVATIONS
from .convert import convert
from .demo import demo_picture, demo_sheet
from .evaluation.command import add_evaluate_arguments
from .factory import DTYPES, checked_device, create_model_and_transforms, header_for
from .layouts import read_source
from .pretrained import available_models, default_file_name, fetch_source, find_row, known_row
from .quality import report
from .scenes import Sprites
from .transform import ImageTransform
from .visualize import contact_sheet, label_overlay, save_picture, visualize

# The few drawings that a checkout carries for this.
SPRITES = Path(__file__).resolve().parent.parent / "examples" / "scenes" / "sprites.npz"
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code, 2 for a user's mistake."""
    args = _parser().parse_args(arguments)
    try:
        args.run(args)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, Image.DecompressionBombError) as error:
        # One line, whatever the library's message looks like.
        print(f"gem-lite: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


class _Parser(argparse.ArgumentParser):
    """argparse's, which says what is wrong in one line and leaves the usage to --help."""

    def error(self, message: str) -> NoReturn:
        """Leave with exit code 2."""
        self.exit(2, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="gem-lite", description="Heat maps that show where in a picture a word's thing is."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    heatmap = commands.add_parser("heatmap", help="heat maps of pictures, one sheet each")
    heatmap.add_argument("inputs", nargs="+", metavar="INPUT", help="picture, or folder of them")
    heatmap.add_argument("--prompts", nargs="+", required=True, metavar="WORD")
    heatmap.add_argument("--model", default="ViT-B/16", help="default: %(default)s")
    heatmap.add_argument(
        "--pretrained", default=None, help="tag or weight file; default: the model's first tag"
    )
    heatmap.add_argument("--output", type=Path, default=Path("heatmaps"), help="folder")
    heatmap.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    heatmap.add_argument("--size", type=int, help="short side in pixels; default: a square")
    heatmap.add_argument("--plain", action="store_true", help="plain CLIP's maps, to compare")
    heatmap.add_argument("--segment", action="store_true", help="add the segmentation")
    heatmap.set_defaults(run=_heatmap)

    models = commands.add_parser("models", help="the known weights")
    models.set_defaults(run=_models)

    demo = commands.add_parser("demo", help="the shipped small model on a picture, offline")
    demo.add_argument("--output", type=Path, default=Path("demo.png"), help="default: %(default)s")
    demo.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    demo.set_defaults(run=_demo)

    quality = commands.add_parser(
        "bench-quality", help="score GEM settings on labelled collages with a known truth"
    )
    quality.add_argument("--model", default="tiny-emoji", help="default: %(default)s")
    quality.add_argument("--pretrained", default="v1", help="default: %(default)s")
    quality.add_argument("--gem-depth", type=int, help="default of these: the weight file's own")
    quality.add_argument("--ss-attn-iter", type=int)
    quality.add_argument("--ss-attn-temp", type=_inverse_temperature, metavar="NUMBER|adaptive")
    quality.add_argument("--gem-streams")
    quality.add_argument("--no-gem-residual", action="store_true")
    quality.add_argument("--count", type=int, default=64, help="collages (default: %(default)s)")
    quality.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    quality.add_argument("--sprites", type=Path, help="drawings; default: a checkout's own few")
    quality.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    quality.set_defaults(run=_bench_quality)

    evaluating = commands.add_parser("evaluate", help="mIoU on the field's data sets")
    add_evaluate_arguments(evaluating)

    converting = commands.add_parser("convert", help="another layout's weights into a file of ours")
    add_convert_arguments(converting)
    converting.set_defaults(run=_convert)
    return parser


def add_convert_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `gem-lite convert`."""
    parser.add_argument("--model", required=True, help="architecture, such as ViT-B/16")
    parser.add_argument("--pretrained", required=True, help="tag, such as openai")
    parser.add_argument("--source", type=Path, help="file or folder; default: fetch the tag's file")
    parser.add_argument("--output", type=Path, help="file; default: by model and tag, in weights/")
    parser.add_argument("--dtype", choices=list(DTYPES), help="default: each tensor as it is")
    parser.add_argument("--activation", choices=ACTIVATIONS, help="for a file that does not say")
    parser.add_argument("--device", default="cpu", help="where the written file is checked")


def _models(args: argparse.Namespace) -> None:
    for model, tag in available_models():
        print(f"{model:24} {tag}")


def _heatmap(args: argparse.Namespace) -> None:
    pictures = _pictures(args.inputs)
    pretrained = args.pretrained or _first_tag(args.model)
    if args.output.exists() and not args.output.is_dir():
        raise ValueError(f"--output {args.output} is a file; give the name of a folder")
    targets = {args.output / f"{name}.png": path for name, path in _output_names(pictures).items()}
    for target in targets:
        if target.exists() and any(target.samefile(path) for path in pictures):
            raise ValueError(f"{target} is one of the inputs; give another folder as --output")
    model, transform = create_model_and_transforms(args.model, pretrained, device=args.device)
    if args.size is not None:
        transform = ImageTransform(args.size, transform.mean, transform.std)
    args.output.mkdir(parents=True, exist_ok=True)
    for target, path in targets.items():
        picture = _open(path)
        image = transform(picture)[None]
        with torch.inference_mode():
            maps = model(image, args.prompts, return_ori=args.plain)
            sheet = visualize(picture, args.prompts, maps)
            if args.segment:
                size = (picture.height, picture.width)
                labels = model.segment(image, args.prompts, return_ori=args.plain, size=size).labels
                sheet.append(label_overlay(picture, labels[0], args.prompts))
        save_picture(contact_sheet(sheet, columns=min(4, len(sheet))), target)
        print(target)


def _demo(args: argparse.Namespace) -> None:
    picture, words = demo_picture()
    save_picture(demo_sheet(picture, words, device=args.device), args.output)
    print(f"{args.output.resolve()}: heat maps of {', '.join(words)}, GEM beside plain CLIP")


def _inverse_temperature(text: str) -> float | Literal["adaptive"]:
    return "adaptive" if text == "adaptive" else float(text)


def _bench_quality(args: argparse.Namespace) -> None:
    path = args.sprites or SPRITES
    if not path.is_file():
        raise FileNotFoundError(
            f"no drawings at {path}; run in a checkout, or give --sprites (the file that"
            " examples/train_tiny/pictures.py writes)"
        )
    if args.count < 1:
        raise ValueError(f"--count is {args.count}; expected at least 1")
    model, transform = create_model_and_transforms(
        args.model,
        args.pretrained,
        args.gem_depth,
        args.ss_attn_iter,
        args.ss_attn_temp,
        device=args.device,
        gem_streams=args.gem_streams,
        gem_residual=False if args.no_gem_residual else None,
    )
    print(f"{args.model} {args.pretrained}, {model.network.gem}\n")
    print(report(model, transform, Sprites.load(path), seed=args.seed, count=args.count))


def _first_tag(model: str) -> str:
    for name, tag in available_models():
        if find_row(model, tag) is not None or name.lower() == model.lower():
            return tag
    known_row(model, "openai")  # raises, naming what is known
    raise AssertionError("known_row accepted what find_row did not")


def _pictures(inputs: Sequence[str]) -> list[Path]:
    """The picture files that the inputs name, all of which exist."""
    found = []
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in PICTURE_ENDINGS)
            if not inside:
                raise FileNotFoundError(f"no pictures in the folder {path}")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"no picture at {path}")
    return found


def _output_names(pictures: Sequence[Path]) -> dict[str, Path]:
    """A name for each picture's sheet: its own, with a number where two are called the same."""
    names: dict[str, Path] = {}
    for path in pictures:
        name, number = path.stem, 2
        while name in names:
            name, number = f"{path.stem}-{number}", number + 1
        names[name] = path
    return names


def _open(path: Path) -> Image.Image:
    try:
        picture = Image.open(path)
        picture.load()
    except UnidentifiedImageError as error:
        raise ValueError(f"{path} is no picture that Pillow can read") from error
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path} cannot be read as a picture ({error})") from error
    return picture


def _convert(args: argparse.Namespace) -> None:
    device = checked_device(args.device)
    row = find_row(args.model, args.pretrained)
    path = args.source or fetch_source(row or known_row(args.model, args.pretrained))
    source = read_source(path)
    header = header_for(source, args.model, row, activation=args.activation, tag=args.pretrained)
    output = args.output or _default_output(args.model, args.pretrained)
    dtype = None if args.dtype is None else DTYPES[args.dtype]
    error = convert(source, output, header, dtype=dtype, device=device)
    print(
        f"{output}: {output.stat().st_size / 1e6:.0f} MB, {header.config.activation}, source"
        f" {header.verified}; features within {error:.1g} of the source's"
    )


def _default_output(model: str, tag: str) -> Path:
    row = find_row(model, tag)
    name = default_file_name(row) if row else f"{model}-{tag}.safetensors".replace("/", "-")
    folder = Path("weights")
    return folder / name if folder.is_dir() else Path(name)
