"""Results as files that other tools take: one interface for every format, and its plain ones.

A writer is made with the folder, gets `write(result)` for each picture, from any thread, and
`close()` at the end; `target(name)` is the file that says whether a picture is done. formats.py has
them by name. To add one: a subclass of `FileWriter` with `encode`, or of `Writer` with `write`, and
a row there.
"""

import io
import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .labels import voc_palette
from .overlays import contact_sheet, label_overlay
from .saving import replace_file

Place = Callable[[Sequence[tuple[int, int]]], list[list[float]]]  # corners in pixels -> the world


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a command found in one picture."""

    name: str  # of its outputs: a relative path without an ending
    file_name: str  # of the picture
    names: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Labelled(Result):
    """A picture and its segmentation, of the picture's size."""

    picture: Image.Image  # RGB, to look at; may be smaller than the labels
    labels: NDArray[np.int64]  # [h, w], 0 = background, k + 1 = names[k]
    confidence: NDArray[np.float32]  # [h, w], the winner's probability
    world: Place | None = None  # where corners of pixels lie on the earth: longitude, latitude

    def masks(self) -> list[tuple[int, NDArray[np.bool_]]]:
        """(label, mask) of every name that has pixels."""
        return word_masks(self.labels)


@dataclass(frozen=True, kw_only=True)
class Mapped(Result):
    """A picture and its heat maps."""

    tiles: Sequence[Image.Image]  # the picture under each map, then what else is to be seen
    maps: NDArray[np.float32]  # [p, h, w], cosines
    size: tuple[int, int]  # of the picture, (h, w)


R = TypeVar("R", bound=Result)


def word_masks(labels: NDArray[np.integer]) -> list[tuple[int, NDArray[np.bool_]]]:
    """(label, mask) of every label above 0 that has pixels."""
    present = np.flatnonzero(np.bincount(labels.ravel()))
    return [(int(label), labels == label) for label in present if label > 0]


class Writer(ABC, Generic[R]):
    """One file for each picture, in a folder of the format's own or at the top."""

    folder = ""  # inside the output folder
    ending = ".png"

    def __init__(self, output: Path, names: Sequence[str]) -> None:
        self.output, self.names = output / self.folder, list(names)

    def target(self, name: str) -> Path:
        """The file of the picture with this name."""
        return self.output / f"{name}{self.ending}"

    def done(self, name: str, file_name: str) -> bool:
        """Whether this picture was written before."""
        return self.target(name).exists()

    @abstractmethod
    def write(self, result: R) -> Path:
        """Write what belongs to one picture, each file complete or not at all."""

    def close(self) -> None:
        """Write what belongs to all pictures, where a format has that."""


class FileWriter(Writer[R]):
    """A format of one file for each picture."""

    def write(self, result: R) -> Path:
        """Write the file."""
        path = self.target(result.name)
        replace_file(path, self.encode(result))
        return path

    @abstractmethod
    def encode(self, result: R) -> bytes:
        """What the file holds."""


class Labels(FileWriter[Labelled]):
    """Pascal VOC's form: a palette picture whose values are the labels, 0 = background."""

    def encode(self, result: Labelled) -> bytes:
        """PNG, with 16 bits where 8 are not enough."""
        return label_file(result.labels, len(self.names))


class Overlay(FileWriter[Labelled]):
    """The segmentation over the picture, with a legend."""

    folder = "overlay"

    def encode(self, result: Labelled) -> bytes:
        """PNG in RGB."""
        import torch

        return png(label_overlay(result.picture, torch.from_numpy(result.labels), self.names))


class Masks(Writer[Labelled]):
    """A black and white picture for each word: `masks/NAME/WORD.png`, 255 = the word."""

    folder, ending = "masks", ""

    def write(self, result: Labelled) -> Path:
        """Write a mask for every word, also for one without pixels."""
        path = self.target(result.name)
        for index, name in enumerate(self.names):
            mask = Image.fromarray(result.labels == index + 1)
            replace_file(path / word_file(index, name), png(mask))
        return path


class Arrays(FileWriter[Labelled]):
    """NumPy arrays: labels, confidence, names."""

    folder, ending = "npz", ".npz"

    def encode(self, result: Labelled) -> bytes:
        """Compressed, read with `numpy.load`."""
        file = io.BytesIO()
        np.savez_compressed(
            file,
            labels=result.labels.astype(np.uint16),
            confidence=result.confidence,
            names=np.array(self.names),
        )
        return file.getvalue()


class Sheet(FileWriter[Mapped]):
    """Every word's map over the picture, side by side."""

    def encode(self, result: Mapped) -> bytes:
        """PNG in RGB."""
        return png(contact_sheet(result.tiles, columns=min(4, len(result.tiles))))


class Tiles(Writer[Mapped]):
    """A picture for each word: `overlays/NAME/WORD.png`, the map over the picture."""

    folder, ending = "overlays", ""

    def write(self, result: Mapped) -> Path:
        """Write a file for every word."""
        path = self.target(result.name)
        tiles = result.tiles[: len(self.names)]  # behind them, what is of no single word
        for index, (name, tile) in enumerate(zip(self.names, tiles, strict=True)):
            replace_file(path / word_file(index, name), png(tile))
        return path


class Maps(Writer[Mapped]):
    """A grey picture for each word, `maps/NAME/WORD.png`: lowest cosine black, highest white."""

    folder, ending = "maps", ""

    def write(self, result: Mapped) -> Path:
        """Write a file of the picture's size for every word."""
        path = self.target(result.name)
        height, width = result.size
        for index, (name, heat) in enumerate(zip(self.names, result.maps, strict=True)):
            span = float(np.ptp(heat)) or 1.0
            # PIL counts (width, height).
            large = Image.fromarray((heat - heat.min()) / span).resize((width, height))
            grey = np.asarray(large).clip(0, 1) * 255
            picture = Image.fromarray(grey.round().astype(np.uint8))
            replace_file(path / word_file(index, name), png(picture))
        return path


class MapArrays(FileWriter[Mapped]):
    """NumPy arrays beside the sheet: the cosines, as the model gave them, and the words."""

    ending = ".npz"

    def encode(self, result: Mapped) -> bytes:
        """Compressed, read with `numpy.load`."""
        file = io.BytesIO()
        np.savez_compressed(file, maps=result.maps, prompts=np.array(self.names))
        return file.getvalue()


def png(picture: Image.Image) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    if picture.mode == "RGB":  # to look at: a third of the time, a tenth larger where it is drawn
        picture.save(file, "PNG", compress_level=1, compress_type=zlib.Z_RLE)
    else:
        picture.save(file, "PNG")
    return file.getvalue()


def label_file(labels: NDArray[np.integer], names: int) -> bytes:
    """Label maps [h, w] of so many names as VOC's palette PNG, or a PNG of 16 bits."""
    if names > 255:
        return png(Image.fromarray(labels.astype(np.uint16)))
    picture = Image.fromarray(labels.astype(np.uint8))
    picture.putpalette(voc_palette())
    return png(picture)


def word_file(index: int, name: str) -> str:
    """The file of a word among others: its number from 1, and what is safe in a file's name."""
    safe = re.sub(r"[^\w-]+", "_", name).strip("_")[:40]
    return f"{index + 1:02d}-{safe or 'word'}.png"
