"""The demonstration: the small model that ships with the package, on a picture that does too."""

from collections.abc import Sequence

import torch
from PIL import Image

from .factory import create_model_and_transforms
from .pretrained import find_file
from .visualize import GAP, banner, contact_sheet, label_overlay, titled, visualize

DEMO_PICTURE = "demo.png"
SIDE = 288  # pixels at which the small picture and its maps are shown


def demo_picture() -> tuple[Image.Image, list[str]]:
    """The picture, and the words for what is in it, which the file itself carries.

    Raises FileNotFoundError when it did not come along with the package.
    """
    path = find_file(DEMO_PICTURE)
    if path is None:
        raise FileNotFoundError(
            f"no {DEMO_PICTURE} in weights/, beside the package or inside it; copy the project's"
            " weights/ folder along"
        )
    with Image.open(path) as file:
        return file.convert("RGB"), str(file.info["words"]).split(", ")


def demo_sheet(
    picture: Image.Image, words: Sequence[str], *, device: str | torch.device = "cpu"
) -> Image.Image:
    """One sheet: the picture, its segmentation, and each word's map by GEM and by plain CLIP."""
    model, transform = create_model_and_transforms("tiny-emoji", "v1", device=device)
    image = transform(picture)[None]
    with torch.inference_mode():
        gem = model(image, words)
        clip = model(image, words, return_ori=True)
        found = model.segment(image, words, background=BACKGROUND, scale=SCALE)
    shown = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    top = [
        titled(shown, "the picture"),
        titled(label_overlay(shown, found.labels[0], words), "segmentation from GEM's maps"),
    ]
    rows = [
        contact_sheet(top, columns=len(words)),
        banner("GEM: where is the ...?", len(words) * (SIDE + GAP) + GAP),
        contact_sheet(visualize(shown, words, gem), columns=len(words)),
        banner("plain CLIP, the same weights", len(words) * (SIDE + GAP) + GAP),
        contact_sheet(visualize(shown, words, clip), columns=len(words)),
    ]
    return contact_sheet(rows, columns=1)
