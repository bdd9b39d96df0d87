"""What a weight file of ours says about itself: the JSON in its safetensors metadata."""

import json
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar, cast, get_args

from ..method.base import Method
from ..method.config import ImageConfig, ModelConfig, TextConfig
from ..method.methods import make_method, method_classes
from ..method.methods.gem import GEMConfig
from .files import shown

FORMAT_VERSION = 1
METADATA_KEY = "gem_lite"
LARGEST = 1e4  # above every mean and std of pixels, whatever their scale
LARGEST_SIZE = 1 << 14  # pixels
LONGEST = 1 << 16  # characters of a header

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Header:
    """What a weight file says about itself, beside its tensors."""

    model: str  # name, such as "ViT-B/16"
    pretrained: str  # tag, such as "openai"
    config: ModelConfig
    gem: GEMConfig  # the settings that suit these weights
    size: int  # side in pixels that the image transform resizes to by default
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str  # url or file name the weights came from
    sha256: str  # of that source file
    verified: str  # how the hash was checked: "sha256", "sha256 prefix", "unverified", ...
    licence: str
    method: str = "gem"  # name of the method that the file asks for
    settings: dict[str, Any] = field(default_factory=dict)  # of a method other than GEM
    format_version: int = FORMAT_VERSION

    def changed(self, *, config: ModelConfig, method: Method) -> "Header":
        """The header for weights that were in use and may have been trained further.

        A method that is not in `methods/` is not recorded: whoever loads the file passes it again.
        """
        header = replace(self, config=config, verified="saved from memory")
        if isinstance(method, GEMConfig):
            return replace(header, gem=method, method="gem", settings={})
        if method_classes().get(method.name) is not type(method):
            return header
        return replace(header, method=method.name, settings=asdict(method))

    def check_ranges(self) -> None:
        """Raise ValueError for numbers that no model has, and that would take hours or give NaN."""
        if not 1 <= self.size <= LARGEST_SIZE:
            raise ValueError(f"size is {self.size}; expected 1 to {LARGEST_SIZE}")
        if self.method != "gem" and self.method in method_classes():
            make_method(self.method, self.settings).reads(self.config.image.layers)
        if min(self.std) < 1 / LARGEST:
            raise ValueError(f"std is {self.std}; expected numbers above {1 / LARGEST}")

    def to_json(self) -> str:
        """The header as the text stored in a file."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Header":
        """The header from the text stored in a file. Raises ValueError when it is not one."""
        try:
            if len(text) > LONGEST:
                raise ValueError(f"{len(text)} characters; expected at most {LONGEST}")
            content = json.loads(text)
            version = content["format_version"]
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise _damaged(error) from error
        if type(version) is int and version > FORMAT_VERSION:
            raise ValueError(
                f"format version {shown(version)} is newer than this package's {FORMAT_VERSION};"
                " update the package"
            )
        try:
            config = content["config"]
            config["image"] = _typed(ImageConfig, config["image"])
            config["text"] = _typed(TextConfig, config["text"])
            content["config"] = _typed(ModelConfig, config)
            content["gem"] = _typed(GEMConfig, content["gem"])
            content["mean"] = three_numbers("mean", content["mean"])
            content["std"] = three_numbers("std", content["std"])
            settings = content.get("settings", {})
            if not isinstance(settings, dict) or (settings and content.get("method") == "gem"):
                raise TypeError(f"settings is {shown(settings)}; expected those of another method")
            header = _typed(cls, content)
            header.check_ranges()
            return header
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise _damaged(error) from error


def _damaged(error: Exception) -> ValueError:
    reason = f"no {error}" if isinstance(error, KeyError) else error
    return ValueError(f"the header is damaged ({shown(reason)}); convert the file again")


def _typed(kind: type[_T], values: Any) -> _T:
    """A dataclass made of what JSON held; TypeError for a value of another type than its field."""
    if not isinstance(values, dict):
        raise TypeError(f"{kind.__name__} is {shown(values)}; expected an object")
    kinds = {each.name: each.type for each in fields(cast(Any, kind))}
    for name, value in values.items():
        expected = kinds.get(name)
        if expected in (int, str, bool) and type(value) is not expected:
            raise TypeError(f"{name} is {shown(value)}; expected {expected.__name__}")
        if (choices := get_args(expected)) and str in map(type, choices) and value not in choices:
            raise TypeError(f"{name} is {shown(value)}; expected one of {list(choices)}")
    return kind(**values)


def three_numbers(name: str, values: Any) -> tuple[float, ...]:
    """Mean or std as JSON holds it. Raises ValueError for anything but three numbers of pixels."""
    if not (
        isinstance(values, list)
        and len(values) == 3
        and all(type(value) in (int, float) and abs(value) < LARGEST for value in values)
    ):
        raise ValueError(f"{name} is {shown(values)}; expected three numbers")
    return tuple(map(float, values))
