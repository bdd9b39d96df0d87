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
FIRST_PICTURE = DEMO_PICTURES[2]  # of the demonstration
PHOTOGRAPH = "demo-photo.jpg"  # for models that know more than drawings
BACKGROUND = ["background"]  # the caption with which the model learned to name empty pictures
SHIPPED = ("tiny-emoji", "v2")  # the model in the box
ABSENT = "umbrella"  # in none of the pictures
SIDE = 320  # pixels at which the picture and its maps are shown


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
    """One sheet of the picture, each word's map and an absent one's, and the segmentation.

    Last and small stand the same words' maps by plain CLIP, with the same weights.
    """
    import torch
    from PIL import Image

    from ..factory import create_model_and_transforms
    from ..inference import maps_and_presence
    from ..method.presence import common_scale
    from ..pictures.overlays import contact_sheet, label_overlay
    from ..pictures.sheets import glow, headed, word_tiles

    model, transform = create_model_and_transforms(*SHIPPED, device=device)
    image = transform(picture)[None]
    shown = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    with torch.inference_mode():
        asked = [*words, ABSENT]
        maps, present = maps_and_presence(model, image, asked, size=(SIDE, SIDE))
        plain, plain_present = maps_and_presence(model, image, asked, plain=True)
        labels = model.segment(image, words, background=BACKGROUND, size=(SIDE, SIDE)).labels[0]
    tiles = [headed(shown, "the picture")]
    tiles += word_tiles(shown, asked, common_scale(maps, present)[0], present[0].tolist())
    tiles.append(headed(label_overlay(shown, labels, words), "segmentation"))
    half = shown.resize((SIDE // 2 - 2, SIDE // 2 - 2))
    below = Image.new("RGB", (SIDE, SIDE), "white")
    for index, heat in enumerate(common_scale(plain, plain_present)[0, : min(4, len(words))]):
        row, column = divmod(index, 2)
        place = (column * (SIDE // 2 + 2), row * (SIDE // 2 + 2))
        below.paste(glow(half, heat.cpu().numpy()), place)
    tiles.append(headed(below, "plain CLIP, same words"))
    return contact_sheet(tiles, columns=-(-len(tiles) // 2))
