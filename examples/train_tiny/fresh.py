"""Measure finished files on the style that no decision ever saw (`pictures.FRESH_STYLE`).

    python fresh.py --cache CACHE ../../weights/tiny-emoji-v*.safetensors

It is for the end: whoever looks and then changes the recipe has to choose another style.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]

import pictures
from export import TEST_SEED, transform
from train import CONFIG

from gem_lite.checkpoints.ours import load
from gem_lite.predictor import GEMPredictor
from gem_lite.tokenizer import Tokenizer
from gem_lite.tools.quality.measure import figures, report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--test", type=int, default=500, help="collages to measure on")
    args = parser.parse_args()
    drawings = pictures.fresh(args.cache)
    print(f"{drawings.styles[0]}: {len(drawings.names)} drawings of {len(drawings.concepts)} names")
    for file in args.files:
        network, header = load(file)
        model = GEMPredictor(network, header, Tokenizer(vocab_size=CONFIG.text.vocab)).eval()
        scored = figures(
            model,
            transform(header.size),
            drawings,
            unseen=drawings.styles[:1],
            names=list(pictures.concepts()),  # also those this style lacks: top-1 is of all
            seed=TEST_SEED,
            count=args.test,
        )
        print(f"{file.name}\n{report(scored)}", flush=True)


if __name__ == "__main__":
    main()
