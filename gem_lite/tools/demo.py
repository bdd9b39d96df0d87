"""The demonstration: the small model that ships with the package, on a picture that does too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..checkpoints.known import find_file

if TYPE_CHECKING:
    import torch
    from PIL import Image

DEMO_PICTURES = ("demo.png", "demo-2.png", "demo-3.png")
DEMO_PICTURE = DEMO_PICTURES[0]
PHOTOGRAPH = "demo-photo.jpg"  # for models that know more than drawings
BACKGROUND = ["background"]  # the caption with which the model learned to name empty pictures
SIDE = 240  # pixels at which the small picture and its maps are shown


def demo_picture(name: str = DEMO_PICTURE) -> tuple[Image.Image, list[str]]:
    """The picture, and the words for what is in it, which the file itself carries.

    name: one of `DEMO_PICTURES`, or PHOTOGRAPH.

    Raises FileNotFoundError when it did not come along with the package.
    """
    path = find_file(name)
    if path is None:
        raise FileNotFoundError(
            f"no {name} in weights/, beside the package or inside it; copy the project's"
            " weights/ folder along"
        )
    from PIL import Image

    with Image.open(path) as file:
        words = file.info.get("words") or file.info["comment"].decode()  # of a PNG, a JPEG
        return file.convert("RGB"), words.split(", ")


def demo_sheet(
    picture: Image.Image, words: Sequence[str], *, device: str | torch.device = "cpu"
) -> Image.Image:
    """One sheet: each word's map and the segmentation, by GEM above and by plain CLIP below."""
    import torch
    from PIL import Image

    from ..factory import create_model_and_transforms
    from ..pictures.overlays import contact_sheet, label_overlay, titled, visualize

    model, transform = create_model_and_transforms("tiny-emoji", "v2", device=device)
    image = transform(picture)[None]
    shown = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    tiles = []
    for method, plain in (("GEM", False), ("plain CLIP", True)):
        with torch.inference_mode():
            maps = model(image, words, return_ori=plain)
            segmented = model.segment(image, words, background=BACKGROUND, return_ori=plain)
        tiles.append(titled(shown, "the picture"))
        tiles += visualize(shown, [f"{method}: {word}" for word in words], maps)
        tiles.append(
            titled(label_overlay(shown, segmented.labels[0], words), f"{method}: all words")
        )
    return contact_sheet(tiles, columns=len(words) + 2)
