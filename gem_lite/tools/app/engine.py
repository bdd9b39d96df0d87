"""What the page asks for: a picture and words in, maps of both streams out, as small PNGs."""

import base64
import binascii
import io
import threading
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...checkpoints.known import find_file
from ...checkpoints.ours import read_header
from ...checkpoints.table import PRETRAINED
from ...factory import create_model_and_transforms
from ...method.config import ModelConfig, architecture
from ...method.heatmap import min_max, similarity, upsample
from ...method.methods.gem import GEMConfig
from ...method.segment import label_maps
from ...pictures.opening import open_picture
from ...pictures.overlays import heat_colours, label_colour
from ...pictures.transform import ImageTransform
from ...predictor import GEMPredictor
from ..demo import DEMO_PICTURES, demo_picture

MODELS_KEPT = 2  # loaded at the same time
SHOWN_SIDE = 1024  # pixels of the longer side of the picture that goes back
MAP_SIDE = 512  # the same of the maps over it
MOST_ITERATIONS = 8


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request may ask for."""

    upload_bytes: int = 20_000_000
    pixels: int = 40_000_000
    prompts: int = 16
    letters: int = 200  # of one prompt
    waiting: int = 8  # requests that wait for the one at work; more are turned away


class Question(NamedTuple):
    """A request of the page, checked."""

    model: str
    picture: bytes | str  # an encoded picture, or the name of an example
    prompts: list[str]
    background: list[str]
    settings: dict[str, Any]


class _Loaded(NamedTuple):
    model: GEMPredictor
    transform: ImageTransform


def read_question(content: Any, limits: Limits) -> Question:
    """A request's JSON, checked against the limits. Raises ValueError with a text for people."""
    if not isinstance(content, dict):
        raise ValueError("the request is no JSON object")
    prompts = _words(content.get("prompts"), "prompts", limits)
    if not prompts:
        raise ValueError("type at least one word to look for")
    picture: Any = content.get("picture")
    if picture is None:
        picture = content.get("example")
        if picture not in DEMO_PICTURES:
            raise ValueError("choose a picture")
    else:
        if not isinstance(picture, str):
            raise ValueError("the picture is no base64 text")
        try:
            picture = base64.b64decode(picture, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError("the picture is no base64 text") from error
        if len(picture) > limits.upload_bytes:
            raise ValueError(f"the picture has more than {limits.upload_bytes / 1e6:g} MB")
    settings = content.get("settings", {})
    if not isinstance(settings, dict):
        raise ValueError("the settings are no JSON object")
    background = _words(content.get("background", []), "background words", limits)
    return Question(str(content.get("model", "")), picture, prompts, background, settings)


def _words(values: Any, what: str, limits: Limits) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"the {what} are no list of strings")
    words = list(dict.fromkeys(" ".join(value.split()) for value in values))
    words = [word for word in words if word]
    if len(words) > limits.prompts:
        raise ValueError(f"{len(words)} {what}; at most {limits.prompts} at a time")
    for word in words:
        if len(word) > limits.letters:
            raise ValueError(f"one of the {what} has {len(word)} letters; at most {limits.letters}")
    return words


class Engine:
    """Models, and one answer at a time: `answer` may be called from any thread.

    The first model is loaded when the engine is made; others when they are asked for. Nothing of a
    request is kept after its answer.
    """

    def __init__(
        self, name: str, tag: str, *, device: str = "cpu", precision: Any = "fp32", limits: Limits
    ) -> None:
        self.limits = limits
        self._device, self._precision = device, precision
        self._lock = threading.Lock()
        self._loaded: dict[str, _Loaded] = {}
        first = self._load(name, tag)
        header = first.model.header
        self._choices: dict[str, tuple[str, str]] = {
            f"{header.model} {header.pretrained}": (name, tag)
        }
        self._about = {key: _about(header.config, header.gem) for key in self._choices}
        for row in PRETRAINED:
            key = f"{row.name} {row.tag}"
            path = find_file(row)
            if path is None or key in self._choices:
                continue
            own = read_header(path) if path.suffix == ".safetensors" else None
            config = architecture(row.name).image.layers if own is None else own.config
            self._choices[key] = (row.name, row.tag)
            self._about[key] = _about(config, own.gem if own else GEMConfig())
        self._loaded[next(iter(self._choices))] = first

    def about(self) -> dict[str, Any]:
        """What the page needs before the first request: models, limits, colours, examples."""
        ramp = heat_colours(np.linspace(0, 1, 256, dtype=np.float32)[None])[0]
        return {
            "models": [{"name": name, **self._about[name]} for name in self._choices],
            "limits": {
                "upload_bytes": self.limits.upload_bytes,
                "prompts": self.limits.prompts,
                "letters": self.limits.letters,
            },
            "most_iterations": MOST_ITERATIONS,
            "colours": (ramp * 255).round().astype(int).tolist(),
            "examples": _examples(),
        }

    def answer(self, question: Question) -> dict[str, Any]:
        """Both streams' maps and label maps. Raises ValueError for what cannot be answered."""
        with self._lock:
            start = time.perf_counter()
            loaded = self._model(question.model)
            model = _with(loaded.model, question.settings)
            picture = self._picture(question)
            with torch.inference_mode():
                image = loaded.transform(picture)[None]
                maps = _maps(model, image, [*question.prompts, *question.background])
            shown = _reduced(picture, SHOWN_SIDE)
            scale = MAP_SIDE / max(picture.size)
            size = (max(1, round(picture.height * scale)), max(1, round(picture.width * scale)))
            answer: dict[str, Any] = {
                "model": f"{model.header.model} {model.header.pretrained}",
                "picture": _data_url(shown, "JPEG"),
                "size": {"width": picture.width, "height": picture.height},
                "prompts": [
                    {"name": name, "colour": list(label_colour(index))}
                    for index, name in enumerate(question.prompts)
                ],
            }
            for stream, cosines in maps.items():
                answer[stream] = _drawn(cosines, len(question.prompts), size)
            answer["seconds"] = round(time.perf_counter() - start, 3)
            return answer

    def _picture(self, question: Question) -> Image.Image:
        if isinstance(question.picture, str):
            return demo_picture(question.picture)[0]
        with warnings.catch_warnings(record=True):  # of Pillow, about metadata
            picture = open_picture(
                io.BytesIO(question.picture), name="the file", max_pixels=self.limits.pixels
            )
        return picture

    def _model(self, key: str) -> _Loaded:
        if key not in self._choices:
            raise ValueError(f"no model {key[:80]!r} on this machine")
        loaded = self._loaded.pop(key, None)
        if loaded is None:
            while len(self._loaded) >= MODELS_KEPT:
                del self._loaded[next(iter(self._loaded))]
            loaded = self._load(*self._choices[key])
        self._loaded[key] = loaded  # the last one used is the last one to go
        return loaded

    def _load(self, name: str, tag: str) -> _Loaded:
        model, transform = create_model_and_transforms(
            name, tag, precision=self._precision, device=self._device
        )
        return _Loaded(model, transform)


def _about(config: ModelConfig | int, gem: GEMConfig) -> dict[str, Any]:
    layers = config if isinstance(config, int) else config.image.layers
    return {
        "layers": layers,
        "depth": gem.blocks + 1,
        "iterations": gem.iters,
        "temperature": gem.inv_temp,
    }


def _with(model: GEMPredictor, settings: Mapping[str, Any]) -> GEMPredictor:
    """The model under the settings that are given and not null; the weights are shared."""
    changes: dict[str, Any] = {}
    if (depth := settings.get("depth")) is not None:
        layers = model.network.config.image.layers
        _check_whole("depth", depth, 1, layers + 1)
        changes["blocks"] = depth - 1
    if (iterations := settings.get("iterations")) is not None:
        _check_whole("iterations", iterations, 0, MOST_ITERATIONS)
        changes["iters"] = iterations
    if (temperature := settings.get("temperature")) is not None:
        if temperature == "adaptive":
            changes["inv_temp"] = None
        elif isinstance(temperature, int | float) and 0 < temperature <= 1000:
            changes["inv_temp"] = float(temperature)
        else:
            raise ValueError("the temperature is a number above 0, up to 1000, or 'adaptive'")
    return model.with_gem(**changes) if changes else model


def _check_whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"the {name} is a whole number from {low} to {high}")


def _maps(model: GEMPredictor, image: Tensor, words: list[str]) -> dict[str, Tensor]:
    """Cosines [words, grid h, grid w] of either stream, from one pass through the image tower."""
    text = model.encode_text(words)[0]  # [p, e]
    features = model.encode_image(image)
    grid = features.grid
    return {
        name: similarity(stream, text)[0].unflatten(-1, grid).cpu()
        for name, stream in (("gem", features.gem), ("clip", features.clip))
    }


def _drawn(cosines: Tensor, prompts: int, size: tuple[int, int]) -> dict[str, Any]:
    """Maps of the prompts and the label map that follows from all words, as PNGs."""
    grid = (cosines.shape[1], cosines.shape[2])
    flat = cosines.flatten(1)[None]  # [1, words, n]
    full = upsample(flat, grid, size)  # [1, words, h, w]
    labels = label_maps(full, classes=prompts).labels[0]
    heat = (255 * min_max(full[0, :prompts])).round().to(torch.uint8)
    return {
        "maps": [_grey(each.numpy()) for each in heat],
        "labels": _grey(labels.to(torch.uint8).numpy()),
        "highest": [round(float(each.max()), 4) for each in cosines[:prompts]],
    }


def _grey(values: NDArray[np.uint8]) -> str:
    return _data_url(Image.fromarray(values), "PNG")


def _data_url(picture: Image.Image, kind: str) -> str:
    file = io.BytesIO()
    picture.save(file, kind, quality=90)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _reduced(picture: Image.Image, side: int) -> Image.Image:
    """In RGB, no side longer than `side`."""
    scale = min(1.0, side / max(picture.size))
    # PIL counts (width, height).
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGB").resize(size, Image.Resampling.LANCZOS)


def _examples() -> list[dict[str, Any]]:
    """The pictures that ship with the package, as far as they came along."""
    examples = []
    for name in DEMO_PICTURES:
        try:
            picture, words = demo_picture(name)
        except FileNotFoundError:  # a copy of the package without the weights/ folder
            continue
        examples.append({"name": name, "picture": _data_url(picture, "PNG"), "prompts": words})
    return examples
