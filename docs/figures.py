"""Make docs/demo.png and docs/method.md's pictures from the models in the box, with this package.

python docs/figures.py                     # all of them, seconds on two cores
python docs/figures.py attention depth     # some
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import gem_lite  # noqa: E402
from gem_lite.method.attention import self_self_attention  # noqa: E402
from gem_lite.method.base import weights  # noqa: E402
from gem_lite.method.tokens import gaussian_window, outliers  # noqa: E402
from gem_lite.pictures.overlays import (  # noqa: E402
    contact_sheet,
    label_overlay,
    titled,
    visualize,
)
from gem_lite.tools.demo import (  # noqa: E402
    BACKGROUND,
    FIRST_PICTURE,
    demo_picture,
    demo_sheet,
)

SIDE = 180  # pixels of a tile
SIZE = 256  # of the picture that the model sees: 16 x 16 patches


class Scene:
    """A model, the picture in the box as it sees it, and as it is shown."""

    def __init__(self, tag: str, size: int = SIZE) -> None:
        self.model = gem_lite.create_gem_model("tiny-emoji", tag)
        picture, self.words = demo_picture()
        header = self.model.header
        transform = gem_lite.get_gem_img_transform((size, size), header.mean, header.std)
        self.image = transform(picture)[None]
        self.shown = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        self.layers = self.model.network.config.image.layers
        self.grid = (size // 16, size // 16)

    def patch(self, across: float, down: float) -> int:
        """The number of the patch at a place of the picture, in [0, 1]."""
        return int(down * self.grid[0]) * self.grid[1] + int(across * self.grid[1])

    def tile(self, values: Tensor, title: str, *, marked: int | None = None) -> Image.Image:
        """One value a patch [n] over the picture, patch by patch, one patch framed."""
        cells = values.float().reshape(1, 1, *self.grid)
        blocks = torch.nn.functional.interpolate(cells, (SIDE, SIDE), mode="nearest")
        (over,) = visualize(self.shown, [""], blocks[0], alpha=0.75)
        over = over.crop((0, over.height - SIDE, SIDE, over.height))
        if marked is not None:
            self.frame(over, marked)
        return titled(over, title)

    def frame(self, picture: Image.Image, patch: int) -> None:
        """Draw a frame around a patch."""
        row, column = divmod(patch, self.grid[1])
        step = SIDE / self.grid[1]
        box = [column * step - 2, row * step - 2, (column + 1) * step + 1, (row + 1) * step + 1]
        ImageDraw.Draw(picture).rectangle(box, outline="white", width=2)

    def maps(self, model: Any, words: list[str]) -> list[Image.Image]:
        """Heat maps over the picture, without titles."""
        tiles = visualize(self.shown, words, model(self.image, words))
        return [tile.crop((0, tile.height - SIDE, SIDE, tile.height)) for tile in tiles]

    def labels(self, model: Any) -> Image.Image:
        """The segmentation into all words and background, without a legend."""
        found = model.segment(self.image, self.words, background=BACKGROUND)
        return label_overlay(self.shown, found.labels[0], self.words).crop((0, 0, SIDE, SIDE))


def steps() -> Image.Image:
    """From patches to cosines, maps and labels."""
    scene = Scene("v2", 160)
    word = "drum"
    patches = scene.shown.copy()
    for k in range(1, 10):
        ImageDraw.Draw(patches).line([(18 * k, 0), (18 * k, SIDE)], fill="white")
        ImageDraw.Draw(patches).line([(0, 18 * k), (SIDE, 18 * k)], fill="white")
    cosines = scene.model(scene.image, [word], normalize=False, size="patches")[0, 0]
    low, high = float(cosines.min()), float(cosines.max())
    (heat,) = scene.maps(scene.model, [word])
    tiles = [
        titled(patches, "patches of 16 x 16 pixels"),
        scene.tile(cosines.flatten(), f"cosine with '{word}': {low:.2f} to {high:.2f}"),
        titled(heat, "bilinear, min-max"),
        titled(scene.labels(scene.model), "best of all words"),
    ]
    return contact_sheet(tiles, columns=4)


def attention() -> Image.Image:
    """What one token attends to, by kind of attention, in a middle block and in the last."""
    scene = Scene("v1")
    token = scene.patch(0.24, 0.33)  # on the fish
    tiles = []
    for state, number in zip(
        scene.model.network.block_states(scene.image, [4, scene.layers]),
        [4, scene.layers],
        strict=True,
    ):
        q, k, v = state.q, state.k, state.v
        everything = torch.eye(q.shape[2]).expand(1, q.shape[1], -1, -1)  # reads the weights
        window = gaussian_window(scene.grid, 3.0, k)
        kinds = {
            "q-k, plain CLIP": weights(q, k),
            "q-q": weights(q, q),
            "k-k": weights(k, k),
            "v-v": weights(v, v),
            "GEM: q, k, v": self_self_attention(torch.stack([q, k, v]), everything, 16.0, iters=1),
            "k-k and a window": weights(k, k, window),
        }
        for name, each in kinds.items():
            row = each[0].mean(dim=0)[1 + token, 1:]
            others = row[torch.arange(len(row)) != token].max()  # it attends to itself most
            row = row.clamp(max=float(others)).sqrt()
            tiles.append(scene.tile(row, f"block {number}: {name}", marked=token))
    return contact_sheet(tiles, columns=len(kinds))


def norms() -> Image.Image:
    """How long tokens are after each block, and how much attention each gets in the next."""
    scene = Scene("v1")
    after = [1, 3, 5, 6, 7]
    features = scene.model.network.encode_image(scene.image, keep=after)
    above, below = [], []
    following = scene.model.network.block_states(scene.image, [number + 1 for number in after])
    for number, state in zip(after, following, strict=True):
        lengths = features.tokens[number][0, 1:].norm(dim=-1)
        low, high = float(lengths.min()), float(lengths.max())
        above.append(scene.tile(lengths, f"norms after {number}: {low:.0f} to {high:.0f}"))
        received = state.attention[0].mean(dim=(0, 1))[1:] * len(lengths)
        most = float(received.max())
        below.append(scene.tile(received, f"attention in {number + 1}: up to {most:.1f}"))
    found = outliers(features.tokens[7][:, 1:])[0].float()
    above.append(scene.tile(found, "outliers after 7"))
    cosine = torch.nn.functional.normalize(features.tokens[7][0, 1:], dim=-1)
    below.append(scene.tile((cosine @ cosine[found.argmax()]), "cosine with one of them"))
    return contact_sheet([*above, *below], columns=len(above))


def depth() -> Image.Image:
    """One word's map under numbers of dual blocks and inverse temperatures."""
    scene = Scene("v1", 160)
    tiles = []
    for inv_temp in (None, 4.0, 16.0, 64.0):
        for blocks in (1, 2, 4, 6, 8):
            model = scene.model.with_gem(blocks=blocks, inv_temp=inv_temp)
            (tile,) = scene.maps(model, ["hamburger"])
            name = "adaptive" if inv_temp is None else f"{inv_temp:g}"
            tiles.append(titled(tile, f"dual blocks: {blocks}; {name}"))
    return contact_sheet(tiles, columns=5)


def every_method(tag: str) -> Image.Image:
    """The map of one word and the labels of all words, by every method."""
    scene = Scene(tag, 160)
    models = {"gem, own settings": scene.model}
    models |= {each.name: scene.model.with_method(each.name) for each in gem_lite.methods()}
    cells = []
    for name, model in models.items():
        (tile,) = scene.maps(model, ["elephant"])
        cells.append((titled(tile, name), scene.labels(model)))
    rows = []
    for start in range(0, len(cells), 5):
        part = cells[start : start + 5]
        both = [contact_sheet([above, below], columns=1) for above, below in part]
        rows += both
    return contact_sheet(rows, columns=5)


FIGURES: dict[str, Callable[[], Image.Image]] = {
    "demo": lambda: demo_sheet(*demo_picture(FIRST_PICTURE)),
    "steps": steps,
    "attention": attention,
    "norms": norms,
    "depth": depth,
    "methods-v1": lambda: every_method("v1"),
    "methods-v2": lambda: every_method("v2"),
}


def main() -> None:
    """Draw the figures asked for, as WebP files in docs/figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", choices=[*FIGURES, []], help="default: all")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "figures")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    with torch.no_grad():
        for name in args.names or FIGURES:
            figure = FIGURES[name]()
            if name == "demo":  # the README's, which shows everywhere
                figure.save(args.output.parent / "demo.png", optimize=True)
            else:
                figure.save(args.output / f"{name}.webp", quality=80, method=6)


if __name__ == "__main__":
    main()
