"""The settings of published evaluations: sizes, windows, templates, scale, threshold, words.

Sources: GEM, arXiv 2312.00878; SCLIP, arXiv 2312.01597; ClearCLIP, arXiv 2407.12442; NACLIP,
arXiv 2404.08181; where a paper and its authors' code differ, the code, which gave the numbers.
`ours` is nobody's: ClearCLIP's sizes, with the filter that CLIP was trained with.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from .names import read_lines, shipped

ONE_TEMPLATE = ("a photo of a {}.",)
LONG_SIDE = 2048  # of a picture whose short side is given
Filter = Literal["opencv", "bicubic"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that the numbers depend on beside model and data set."""

    short_side: int | None  # None: squash to `square`
    square: int  # side of the square that a picture is squashed to
    resize: Filter  # "opencv": bilinear on 8 bits; "bicubic": Pillow's, with antialiasing
    window: int | None  # side in pixels; None: the whole picture at once
    stride: int | None
    pad: bool = False  # fill windows up to whole patches with zeros, instead of cutting them
    straight: bool = False  # one window's maps go to the picture's own size in one step
    flip: bool = False
    refine: int = 0  # steps of this package's edge refinement, at the input's size
    pamr: int = 0  # steps of PAMR as NACLIP runs it, at the picture's own size
    templates: tuple[str, ...]
    scale: float
    threshold: float | None  # where background is a class
    background: tuple[str, ...]  # words for it, where it is a class
    names: str  # wording of the class names: "" = the data set's own, "-sclip", "-clearclip"
    rival_names: bool  # every name enters the softmax, not each class's best
    min_area: float = 0.0

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) that a picture of (h, w) is resized to; the long side stays below 2048."""
        if self.short_side is None:
            return self.square, self.square
        short, long = sorted((height, width))
        factor = min(self.short_side / short, max(LONG_SIDE, self.short_side) / long)
        return max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))

    def changed(self, changes: Mapping[str, Any]) -> "Settings":
        """A copy with some fields replaced. Raises ValueError for an unknown field."""
        known = {field.name for field in fields(self)}
        if unknown := set(changes) - known:
            raise ValueError(f"no settings {sorted(unknown)}; known: {sorted(known)}")
        return replace(self, **changes)

    def without_background(self) -> "Settings":
        """For a data set without a background class: every pixel gets one of the classes."""
        return replace(self, threshold=None, background=(), min_area=0.0)

    def as_json(self) -> dict[str, Any]:
        """For a result file."""
        return asdict(self)


def _gem(dataset: str) -> Settings:
    # GEM published no code that evaluates. Its paper gives neither scale nor threshold: 100, the
    # network's own scale, and 0.85, which the README of the published code uses, are guesses.
    return Settings(
        short_side=None,
        square=448,
        resize="bicubic",
        window=None,
        stride=None,
        templates=ONE_TEMPLATE,
        scale=100.0,
        threshold=0.85,
        background=(),
        names="",
        rival_names=False,
    )


def _sclip(dataset: str) -> Settings:
    special: dict[str, dict[str, Any]] = {
        "voc21": {"scale": 65.0, "threshold": 0.1, "min_area": 0.1},
        "context60": {"scale": 50.0, "threshold": 0.1, "background": ("background",)},
        "coco_object": {"scale": 50.0, "threshold": 0.1},
        "stuff171": {"short_side": 448},
        "cityscapes": {"short_side": 560},
    }
    words = dataset in ("voc21", "coco_object")
    return Settings(
        short_side=336,
        square=336,
        resize="opencv",
        window=224,
        stride=112,
        straight=True,
        templates=_eighty(),
        scale=40.0,
        threshold=None,
        background=read_lines(shipped("background-sclip")) if words else (),
        names="-sclip",
        rival_names=True,
    ).changed(special.get(dataset, {}))


def _naclip(dataset: str) -> Settings:
    changes: dict[str, Any] = {"scale": 40.0, "min_area": 0.0, "pamr": 10, "straight": False}
    if dataset in ("voc20", "voc21"):
        changes |= {"window": None, "stride": None}
    if dataset == "stuff171":
        changes["short_side"] = 336
    return _sclip(dataset).changed(changes)


def _clearclip(dataset: str) -> Settings:
    special: dict[str, dict[str, Any]] = {
        "voc21": {"threshold": 0.5},
        "context60": {"threshold": 0.15},
        "coco_object": {"threshold": 0.4},
        "cityscapes": {"window": 224, "stride": 224},
    }
    own = dataset in ("voc20", "voc21", "coco_object")  # has names of its own for these
    return Settings(
        short_side=448,
        square=448,
        resize="opencv",
        window=448,
        stride=224,
        pad=True,
        straight=True,
        templates=_eighty(),
        scale=50.0,
        threshold=None,
        background=("background",) if dataset in ("voc21", "context60", "coco_object") else (),
        names="-clearclip" if own else "-sclip",
        rival_names=True,
    ).changed(special.get(dataset, {}))


def _ours(dataset: str) -> Settings:
    return _clearclip(dataset).changed(
        {"resize": "bicubic", "pad": False, "straight": False, "names": "", "rival_names": False}
    )


def _eighty() -> tuple[str, ...]:
    return read_lines(shipped("templates-imagenet"))


PROTOCOLS = {
    "sclip": _sclip,
    "clearclip": _clearclip,
    "naclip": _naclip,
    "gem": _gem,
    "ours": _ours,
}


def settings_for(protocol: str, dataset: str) -> Settings:
    """The settings of a protocol on a data set. Raises ValueError for an unknown protocol."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"no protocol {protocol!r}; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[protocol](dataset)
