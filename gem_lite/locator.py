"""Pictures and words in, an answer to look at out: `load("ViT-B/16")("cat.jpg", ["cat"])`.

The tensor API of predictor.py stays beneath it, as `locator.model` and `locator.transform`.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .background import BACKGROUND, not_asked
from .checkpoints.hub import is_named_folder
from .checkpoints.known import first_tag
from .factory import Precision, create_model_and_transforms
from .inference import best_device, maps_and_presence
from .method.base import Method
from .method.heatmap import upsample
from .method.presence import common_scale
from .pictures.boxes import Box, boxes
from .pictures.labels import Segmentation
from .pictures.opening import as_picture
from .pictures.overlays import contact_sheet, shown_in_notebook
from .pictures.saving import replace_file, save_picture
from .pictures.sheets import LARGEST_TILE, headed, legend, word_tiles
from .pictures.transform import ImageTransform
from .predictor import GEMPredictor
from .prompts import TEMPLATE, Templates

SHOWN = (240, LARGEST_TILE)  # pixels of the longer side of a picture in a sheet
MOST_BOXED = 1024  # the same, of maps in which boxes are looked for


def load(
    model_name: str = "tiny-emoji",
    pretrained: str | Path | None = None,
    *,
    device: str = "auto",
    precision: Precision = "fp32",
    method: str | Method | None = None,
    settings: Mapping[str, Any] | None = None,
    size: int | None = None,
) -> "Locator":
    """A model that takes pictures as people have them; by default the one in the box (drawings).

    model_name, pretrained, precision, method, settings: as in `create_gem_model`; pretrained None =
    the model's first tag. device: "auto" = CUDA, else MPS, else the CPU. size: short side in pixels
    at which the model sees a picture; None = the model's square. Raises as `create_gem_model`.
    """
    if pretrained is None and not is_named_folder(model_name):
        pretrained = first_tag(model_name)
    model, transform = create_model_and_transforms(
        model_name,
        pretrained,
        precision=precision,
        device=best_device() if device == "auto" else device,
        method=method,
        settings=settings,
    )
    if size is not None:
        transform = ImageTransform(size, transform.mean, transform.std)
    return Locator(model, transform)


class Locator:
    """A model and its transform: call it with pictures and words. Made by `load`."""

    def __init__(self, model: GEMPredictor, transform: ImageTransform) -> None:
        self.model, self.transform = model, transform

    def __call__(
        self,
        pictures: Any,
        words: str | Sequence[str],
        *,
        templates: Templates = TEMPLATE,
        plain: bool = False,
    ) -> "PictureMaps | list[PictureMaps]":
        """Where in a picture each word's thing is, and whether it is there.

        pictures: one, or a list of any mixture of them: a path, a PIL image, an encoded file
        (bytes), an array uint8 [h, w, 3], a tensor [3, h, w], uint8 or in [0, 1]; a tensor
        [b, 3, h, w] is a list. words: what to look for. plain: plain CLIP's maps. Returns a
        `PictureMaps`, for a list a list. Raises TypeError, ValueError or FileNotFoundError.
        """
        words = [words] if isinstance(words, str) else list(dict.fromkeys(words))
        several = isinstance(pictures, list | tuple)
        several = several or (isinstance(pictures, Tensor) and pictures.ndim == 4)
        results = [
            self._one(
                _opened(each, f"picture {number}" if several else "the picture"),
                words,
                templates,
                plain,
            )
            for number, each in enumerate(pictures if several else [pictures])
        ]
        return results if several else results[0]

    def _one(
        self, picture: Image.Image, words: list[str], templates: Templates, plain: bool
    ) -> "PictureMaps":
        image = self.transform(picture)[None]
        with torch.inference_mode():
            cosines, present = maps_and_presence(
                self.model, image, words, plain=plain, templates=templates, size="patches"
            )
        return PictureMaps(
            picture, words, cosines[0].cpu(), present[0].cpu(), self, image, templates, plain
        )

    def __repr__(self) -> str:
        header = self.model.header
        return f"Locator({header.model!r}, {header.pretrained!r}, {self.model.network.device})"


class PictureMaps:
    """What a model says of words in a picture. In a notebook it shows itself.

    picture: PIL, RGB, upright. words: as asked for, each once. cosines: [p, grid h, grid w]
    float32, one for each patch.
    """

    def __init__(
        self,
        picture: Image.Image,
        words: list[str],
        cosines: Tensor,
        present: Tensor,
        locator: Locator,
        image: Tensor,
        templates: Templates,
        plain: bool,
    ) -> None:
        self.picture, self.words, self.cosines = picture, words, cosines
        self._present, self._locator, self._image = present, locator, image
        self._templates, self._plain = templates, plain

    @property
    def presence(self) -> dict[str, float]:
        """How probable it is that each word's thing is in the picture, in [0, 1]."""
        return dict(zip(self.words, self._present.tolist(), strict=True))

    @property
    def maps(self) -> Tensor:
        """[p, h, w] float32 in [0, 1], of the picture's size: one scale, absent words faded."""
        return self._maps((self.picture.height, self.picture.width))

    def segment(
        self,
        *,
        background: float | Sequence[str] | None = BACKGROUND,
        threshold: float | None = None,
        scale: float = 50.0,
        refine_steps: int = 0,
    ) -> Segmentation:
        """Which pixel belongs to which word: labels [1, h, w], 0 = background, k + 1 = words[k].

        Arguments as in `GEMPredictor.segment`; words of the background that are also looked for
        are left out of it. Of the picture's size; costs another pass through the model.
        """
        if not (background is None or isinstance(background, float | str)):
            background = not_asked(background, self.words) or None
        return self._locator.model.segment(
            self._image,
            self.words,
            background=background,
            threshold=threshold,
            scale=scale,
            refine_steps=refine_steps,
            size=(self.picture.height, self.picture.width),
            templates=self._templates,
            return_ori=self._plain,
        )

    def boxes(self, *, threshold: float = 0.5, min_area: float = 0.001) -> dict[str, list[Box]]:
        """Boxes around what of each word's map lies above a threshold, in the picture's pixels.

        The strongest first; threshold and `score` on the scale of `maps`; a word that is probably
        absent has none. min_area: smallest piece, as a part of the picture.
        """
        height, width = size = (self.picture.height, self.picture.width)
        scale = min(1.0, MOST_BOXED / max(size))
        maps = self._maps((max(1, round(height * scale)), max(1, round(width * scale))))
        pieces = boxes(maps, size=size, threshold=threshold, min_area=min_area)
        return dict(zip(self.words, pieces, strict=True))

    def sheet(self) -> Image.Image:
        """The picture, and each word's map over it, with its presence; below, the scale."""
        side = max(self.picture.size)
        scale = min(max(side, SHOWN[0]), SHOWN[1]) / side
        width, height = (max(1, round(each * scale)) for each in self.picture.size)
        shown = self.picture.resize((width, height), Image.Resampling.LANCZOS)
        tiles = word_tiles(shown, self.words, self._maps((height, width)), self._present.tolist())
        tiles = [headed(shown, "the picture"), *tiles]
        return legend(contact_sheet(tiles, columns=min(4, len(tiles))))

    def show(self) -> None:
        """Show the sheet: in a notebook there, else in the system's viewer."""
        if not shown_in_notebook(self):
            self.sheet().show()

    def save(self, path: str | Path) -> None:
        """Write the sheet (.png, .jpg, .webp, ...), or words, cosines and presence (.npz).

        Complete or not at all. Raises ValueError for another ending.
        """
        path = Path(path)
        if path.suffix.lower() != ".npz":
            save_picture(self.sheet(), path)
            return
        file = io.BytesIO()
        arrays = {"maps": self.cosines.numpy(), "presence": self._present.numpy()}
        np.savez_compressed(file, prompts=np.array(self.words), **arrays)  # type: ignore[arg-type]
        replace_file(path, file.getvalue())

    def _repr_jpeg_(self) -> bytes:  # a quarter of a PNG: notebooks keep what they show
        file = io.BytesIO()
        self.sheet().save(file, "JPEG", quality=88)
        return file.getvalue()

    def __repr__(self) -> str:
        numbers = ", ".join(f"{word!r}: {value:.2f}" for word, value in self.presence.items())
        return f"PictureMaps({self.picture.width} x {self.picture.height}, presence {{{numbers}}})"

    def _maps(self, size: tuple[int, int]) -> Tensor:
        grid = (self.cosines.shape[1], self.cosines.shape[2])
        large = upsample(self.cosines[None].flatten(2), grid, size)
        return common_scale(large, self._present[None])[0]


def _opened(picture: Any, name: str) -> Image.Image:
    """A picture in RGB from any of the forms that `Locator` takes."""
    if not isinstance(picture, Tensor):
        return as_picture(picture, name=name)
    shape = list(picture.shape)
    if picture.ndim != 3 or shape[0] != 3:
        raise ValueError(f"{name} is a tensor of shape {shape}; expected [3, h, w]")
    pixels = picture.detach().cpu()
    if pixels.dtype != torch.uint8:
        low, high = float(pixels.min()), float(pixels.max())
        if not (pixels.is_floating_point() and 0 <= low <= high <= 1):
            raise ValueError(
                f"{name} is a tensor of {pixels.dtype} from {low:g} to {high:g}; expected uint8, or"
                " numbers in [0, 1]: pixels before any normalisation"
            )
        pixels = (pixels.float() * 255).round().to(torch.uint8)
    return as_picture(pixels.permute(1, 2, 0).contiguous().numpy(), name=name)
