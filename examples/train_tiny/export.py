"""Turn a training checkpoint into the shipped file, and measure it on held-out collages.

    python export.py --cache CACHE --run RUN --output tiny-emoji-v2.safetensors --tables tables.md

GEM's settings and the default size are chosen on validation collages of the trained styles; the
figures come from other collages, of the trained styles and of the one never trained on.
"""

import argparse
import dataclasses
import hashlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import pictures
from train import CONFIG, fold_centre, name_tokens

from gem_lite.checkpoints.header import Header
from gem_lite.checkpoints.ours import load, write
from gem_lite.method.config import OPENAI_MEAN, OPENAI_STD
from gem_lite.method.methods.gem import GEMConfig
from gem_lite.method.model import GEMNetwork
from gem_lite.pictures.transform import get_gem_img_transform
from gem_lite.predictor import GEMPredictor
from gem_lite.tokenizer import Tokenizer
from gem_lite.tools.quality.measure import (
    Quality,
    figures,
    measure,
    report,
    settings_table,
    top_1,
)
from gem_lite.tools.quality.scenes import Scene, Sprites, scenes

VALIDATION_SEED, TEST_SEED = 910, 920  # training draws from its own seed, 0
SIZES = (128, 160, 192, 224)
BLOCKS = (2, 4, 5, 6, 8)
INV_TEMPS = (None, 8.0, 16.0, 32.0)
ITERS = (0, 1, 2)
SOURCE = "trained by gem_lite's examples/train_tiny on emoji collages"
LICENCE = "MIT; pictures it learned from: see weights/README.md"


def score(quality: Quality) -> float:
    """What the settings are chosen by."""
    return quality.pointing + quality.own_name + quality.miou


def write_weights(run: Path, output: Path, gem: GEMConfig, size: int, tag: str) -> None:
    """The checkpoint's network in float16, with everything the loader needs in the header."""
    checkpoint = run / "checkpoint.pt"
    with torch.device("meta"):
        network = GEMNetwork(CONFIG, GEMConfig(blocks=0))
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)["network"]
    network.load_state_dict(state, assign=True)
    tokenizer = Tokenizer(vocab_size=CONFIG.text.vocab)
    fold_centre(network, name_tokens(tokenizer, list(pictures.concepts())))
    header = Header(
        model="tiny-emoji",
        pretrained=tag,
        config=CONFIG,
        gem=gem,
        size=size,
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        source=SOURCE,
        sha256=hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        verified="made here",
        licence=LICENCE,
    )
    write(output, {name: tensor.half() for name, tensor in network.state_dict().items()}, header)


def transform(size: int) -> Callable[[Image.Image], Tensor]:
    """The image transform of the model at one size."""
    return get_gem_img_transform((size, size), OPENAI_MEAN, OPENAI_STD)


def choose(
    model: GEMPredictor, collages: Sequence[Scene], singles: Sequence[Scene], names: Sequence[str]
) -> tuple[GEMConfig, int, str]:
    """The settings and the size with the best sum of figures, and the table of all of them.

    Iterations stay at GEM's one; the table shows what others do. A size must serve top-1, too.
    """
    size = CONFIG.image.size
    lines = ["| dual blocks | inv_temp | iterations | size | own name | pointing | mIoU |"]
    lines.append("|---" * 7 + "|")
    seen: dict[tuple[GEMConfig, int], Quality] = {}

    def row(gem: GEMConfig, size: int, quality: Quality) -> None:
        seen[gem, size] = quality
        temp = "adaptive" if gem.inv_temp is None else f"{gem.inv_temp:g}"
        figures = (quality.own_name, quality.pointing, quality.miou)
        cells = " | ".join(f"{100 * figure:.1f}" for figure in figures)
        lines.append(f"| {gem.blocks} | {temp} | {gem.iters} | {size} | {cells} |")
        print(lines[-1], flush=True)

    sweep = settings_table(
        model, collages, transform(size), blocks=BLOCKS, inv_temps=INV_TEMPS, iters=ITERS
    )
    for gem, quality in sweep.items():
        row(gem, size, quality)
    # Between the grid's steps; then larger inputs, which make finer maps and longer softmaxes.
    best = max((gem for gem in sweep if gem.iters == 1), key=lambda gem: score(sweep[gem]))
    temp = best.inv_temp or 8.0
    near = [dataclasses.replace(best, inv_temp=factor * temp) for factor in (0.75, 1.5)]
    near += [dataclasses.replace(best, blocks=best.blocks - 1)]
    for gem in near:
        row(gem, size, measure(model.with_method(gem), collages, transform(size)))
    once = {gem: quality for (gem, _), quality in seen.items() if gem.iters == 1}
    best = max(once, key=lambda gem: score(once[gem]))
    sums, singles_rows = {}, []
    for side in SIZES:
        quality = measure(model.with_method(best), collages, transform(side))
        row(best, side, quality)
        known = top_1(model, singles, names, transform(side))
        singles_rows.append(f"Top-1 of single things at size {side}: {100 * known:.1f}")
        sums[side] = score(quality) + known
    return best, max(sums, key=lambda side: sums[side]), "\n".join([*lines, "", *singles_rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--tables", type=Path, required=True)
    parser.add_argument("--tag", default="v2", help="what create_gem_model calls it")
    parser.add_argument("--validation", type=int, default=100, help="collages to choose on")
    parser.add_argument("--test", type=int, default=500, help="collages to measure on")
    parser.add_argument(
        "--settings",
        nargs=3,
        type=float,
        metavar=("BLOCKS", "INV_TEMP", "SIZE"),
        help="take these, chosen before, without a look at others",
    )
    args = parser.parse_args()

    drawings: Sprites = pictures.sprites(args.cache)
    trained = drawings.select(styles=list(pictures.TRAINED_STYLES))
    held_out = scenes(trained, seed=VALIDATION_SEED, count=args.validation, jitter=0.0)
    tokenizer = Tokenizer(vocab_size=CONFIG.text.vocab)
    if args.settings is not None:
        gem = GEMConfig(blocks=int(args.settings[0]), inv_temp=args.settings[1])
        size, table = int(args.settings[2]), "none tried\n"
    else:
        first = GEMConfig(blocks=8, inv_temp=16.0)
        write_weights(args.run, args.output, first, CONFIG.image.size, args.tag)
        network, header = load(args.output)
        model = GEMPredictor(network, header, tokenizer).eval()
        singles = scenes(
            trained, seed=VALIDATION_SEED + 1, count=2 * args.validation, things=(1, 1), jitter=0.0
        )
        gem, size, table = choose(model, list(held_out), list(singles), trained.concepts)
    write_weights(args.run, args.output, gem, size, args.tag)
    network, header = load(args.output)
    model = GEMPredictor(network, header, tokenizer).eval()
    scored = figures(model, transform(size), drawings, seed=TEST_SEED, count=args.test)
    table_of_figures = report(scored)
    print(f"taken: {gem}, size {size}\n{table_of_figures}")
    args.tables.write_text(
        f"Taken: {gem}, size {size}.\n\n"
        f"{args.test} held-out collages of 3 to 4 things, {args.test} single things:\n\n"
        f"{table_of_figures}\n\n"
        f"Validation, all settings:\n\n{table}\n"
    )


if __name__ == "__main__":
    main()
