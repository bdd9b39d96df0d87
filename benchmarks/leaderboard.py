"""Write docs/leaderboard.md: every method on the model in the box, and the published numbers.

python benchmarks/leaderboard.py                  # 64 collages of each kind: minutes on two cores
python benchmarks/leaderboard.py --count 8 --weights v1 --output /tmp/quick.md
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent

# mIoU in %, ViT-B/16 with OpenAI's weights. R: figures of ResCLIP's README; C: of ClearCLIP's; O:
# the method's own README (U: its figure); S: quoted by a later paper.
PUBLISHED = """\
| method | VOC21 | Context60 | Object | VOC20 | Context59 | Stuff | Cityscapes | ADE | from |
|---|---|---|---|---|---|---|---|---|---|
| CLIP | 16.2 | 7.7 | 5.5 | 41.8 | 9.2 | 4.4 | 5.5 | 2.1 | R, C |
| MaskCLIP, its authors | - | - | - | 49.5 | 21.7 | 12.5 | - | - | O |
| MaskCLIP | 38.8 | 23.6 | 20.6 | 74.9 | 26.4 | 16.4 | 12.6 | 9.8 | R, C |
| MaskCLIP without residual, MLP | - | - | - | 61.4 | 28.3 | 18.4 | 24.7 | 13.6 | C |
| CLIP Surgery | - | 29.3 | - | - | - | 21.9 | 31.4 | - | U |
| GEM | 46.2 | 32.6 | - | 79.9 | 35.9 | 23.7 | 30.8 | 15.7 | R; C |
| GEM without residual | - | - | - | 80.2 | 36.5 | 24.4 | 30.5 | 17.4 | C |
| SCLIP | 59.63 | 31.74 | 33.52 | 81.54 | 34.46 | 22.77 | 32.34 | 16.45 | O |
| SCLIP in ClearCLIP's run | - | - | - | 78.2 | 33.0 | 21.1 | 29.1 | 14.6 | C |
| SCLIP without residual, MLP | - | - | - | 77.9 | 35.6 | 23.6 | 31.0 | 17.0 | C |
| ClearCLIP | 51.8 | 32.6 | 33.0 | 80.9 | 35.9 | 23.9 | 30.0 | 16.7 | R; C |
| NACLIP without PAMR | 58.9 | 32.2 | 33.2 | 79.7 | 35.2 | 23.3 | 35.5 | 17.4 | R |
| NACLIP with PAMR | 64.07 | 34.99 | 36.19 | 83.03 | 38.35 | 25.69 | 38.27 | 19.05 | O |
| ResCLIP on SCLIP | 60.7 | 32.9 | 34.3 | 84.6 | 35.8 | 23.9 | 34.4 | 17.6 | U |
| ResCLIP on ClearCLIP | 59.0 | 32.9 | 34.0 | 87.1 | 36.4 | 24.3 | 34.5 | 17.8 | U |
| ResCLIP on NACLIP | 61.1 | 33.5 | 35.0 | 86.0 | 36.8 | 24.7 | 35.9 | 18.0 | U |
| SC-CLIP | 64.6 | 36.8 | 37.7 | 84.3 | 40.1 | 26.6 | 41.0 | 20.1 | S |
| ITACLIP (texts by a language model) | 67.9 | 37.5 | 37.7 | - | - | 27.0 | 40.2 | - | O |

LeGrad publishes no mIoU on these; OpenImages-V7 p-mIoU 48.38 (S), where GEM has 50.9 and CLIP
Surgery 47.8 (GEM's paper). SFP, test-time registers and VideoGEM: none that we know of on these
sets.

ViT-L/14:

| method | VOC20 | Context59 | COCO-Stuff | Cityscapes | ADE | from |
|---|---|---|---|---|---|---|
| SCLIP | 60.3 | 20.5 | 13.1 | 17.0 | 7.1 | R |
| ClearCLIP | 80.0 | 29.6 | 19.9 | 27.9 | 15.0 | R |
| NACLIP | 78.7 | 32.1 | 21.4 | 31.4 | 17.3 | R |
| ResCLIP on NACLIP | 85.5 | 34.5 | 23.4 | 33.7 | 18.2 | R |"""

PAGE = """\
# Leaderboard

Made by `python benchmarks/leaderboard.py`.

## Here: drawings, the models in the box

{count} collages of 3 to 4 drawings (`examples/scenes`, seed {seed}) in each of two kinds of
style, every method on the same ones. *Trained* styles are two that the models were trained on,
*unseen* is OpenMoji, which they were not. In brackets: where 95 % of {resamples} resamplings of
the pictures lie, in %. **Rows whose intervals overlap by much are not told apart by these
pictures, and what ranks first on drawings need not on photographs.**

- *pointing*: the map's highest value lies on the thing;
- *own name*: over a thing, its own name has the highest mean of the picture's names;
- *mIoU*: of the picture's names and "background";
- *above*: pointing, less that of the best control. A map counts only by what it has above maps
  that know nothing of the word:

{controls}

Methods stand here with their published settings, which were chosen for photographs and towers of
12 blocks or more; these have {layers} blocks of width {width}. What a weight file asks for itself
is the row "gem, as the file says". Rows are sorted by mIoU in trained styles.

{tables}

## Published: photographs, other people's numbers

mIoU in %, ViT-B/16 with OpenAI's weights, as published. **None of it was measured here.** Rows do
not share one protocol; [evaluation.md](evaluation.md) has what each runs. From: R and C, figures
in the READMEs of ResCLIP and ClearCLIP; O, the method's own README, U, a figure in it; S, quoted
by a later paper. An empty place: no number known to us.

{published}
"""

WEIGHTS = {
    "v1": "Trained by CLIP's contrastive loss alone: methods on a CLIP that knows none of them.",
    "v2": "Trained further through GEM's own stream: GEM and what is like it are at home here.",
}
STYLES = {"trained": ("noto", "fluent-emoji-flat"), "unseen": ("openmoji",)}


def main() -> None:
    """Score, and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=100, help="collages of each kind of style")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", nargs="+", choices=WEIGHTS, default=list(WEIGHTS))
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "leaderboard.md")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))

    import gem_lite
    from gem_lite.tools.quality.compare import RESAMPLES, compare, explained
    from gem_lite.tools.quality.scenes import scenes
    from gem_lite.tools.quality.sprites import Sprites

    sprites = Sprites.load(ROOT / "examples" / "scenes" / "sprites.npz")
    collages = {
        title: list(scenes(sprites.select(styles=s), seed=args.seed, count=args.count, jitter=0.0))
        for title, s in STYLES.items()
    }
    tables = []
    for tag in args.weights:
        model, transform = gem_lite.create_model_and_transforms("tiny-emoji", tag)
        models = {"gem, as the file says": model}
        for each in gem_lite.methods():
            if each.name != "clip":  # has its row anyhow
                models[each.name] = model.with_method(each.name)

        def advance(done: int, total: int, name: str, tag: str = tag) -> None:
            print(f"\r{tag}: {done} of {total} {name:40}", end="", file=sys.stderr, flush=True)

        rows = {
            title: compare(models, pictures, transform, advance=advance)
            for title, pictures in collages.items()
        }
        tables.append(f"### tiny-emoji {tag}\n\n{WEIGHTS[tag]}\n\n{table(rows)}")
    print(file=sys.stderr)
    image = model.network.config.image
    page = PAGE.format(
        count=args.count,
        seed=args.seed,
        resamples=RESAMPLES,
        controls="\n".join(f"  - {line}" for line in explained().splitlines()),
        layers=image.layers,
        width=image.width,
        tables="\n\n".join(tables),
        published=PUBLISHED.replace("| - ", "| "),
    )
    args.output.write_text(page, encoding="utf-8")


def table(rows: Mapping[str, Sequence[Any]]) -> str:
    """One line for each method, from `compare`'s rows of each kind of style; best mIoU first."""
    titles = [
        f"{name}, {style}" for name in ("pointing", "above", "own name", "mIoU") for style in rows
    ]
    lines = ["| method | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    together = list(zip(*rows.values(), strict=True))  # the same row of each style
    for several in sorted(together, key=lambda each: -each[0].figures()["miou"].value):
        figures = [each.figures() for each in several]
        above = [each.above_controls()["pointing"] if each.controls else None for each in several]
        cells = [each["pointing"] for each in figures] + above
        cells += [each[name] for name in ("own_name", "miou") for each in figures]
        lines.append(f"| {several[0].name} | " + " | ".join(map(cell, cells)) + " |")
    return "\n".join(lines)


def cell(figure: Any) -> str:
    """A figure in % with its interval."""
    if figure is None:
        return ""
    value, low, high = (100 * each for each in figure)
    return f"{value:.1f} ({low:.0f} to {high:.0f})"


if __name__ == "__main__":
    main()
