"""What the page asks for: a picture and words in, maps of both streams out, as small PNGs."""

import base64
import io
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ...checkpoints.known import PRETRAINED, find_file
from ...checkpoints.ours import read_header
from ...factory import create_model_and_transforms
from ...method.config import GEMConfig, ModelConfig, architecture
from ...method.heatmap import min_max, similarity, upsample
from ...method.segment import label_maps
from ...pictures.overlays import heat_colours, label_colour
from ...pictures.transform import ImageTransform
from ...predictor import GEMPredictor
from ..demo import DEMO_PICTURES, demo_picture
from ..quality.measure import with_settings
from .decoding import Decoder, Prepared, prepare
from .limits import Limits
from .question import Question

MODELS_KEPT = 2  # loaded at the same time
MAP_SIDE = 512  # pixels of the longer side of the maps
MOST_ITERATIONS = 8


class _Loaded(NamedTuple):
    model: GEMPredictor
    transform: ImageTransform


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
        self._decoder = Decoder(limits.pixels, limits.decode_seconds)
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
            ready = self._prepared(question, loaded.transform)
            with torch.inference_mode():
                maps = _maps(model, ready.image[None], [*question.prompts, *question.background])
            height, width = ready.size
            scale = MAP_SIDE / max(ready.size)
            size = (max(1, round(height * scale)), max(1, round(width * scale)))
            answer: dict[str, Any] = {
                "model": f"{model.header.model} {model.header.pretrained}",
                "picture": f"data:image/jpeg;base64,{base64.b64encode(ready.shown).decode()}",
                "size": {"width": width, "height": height},
                "prompts": [
                    {"name": name, "colour": list(label_colour(index))}
                    for index, name in enumerate(question.prompts)
                ],
            }
            for stream, cosines in maps.items():
                answer[stream] = _drawn(cosines, len(question.prompts), size)
            answer["seconds"] = round(time.perf_counter() - start, 3)
            return answer

    def _prepared(self, question: Question, transform: ImageTransform) -> Prepared:
        if isinstance(question.picture, str):
            return prepare(demo_picture(question.picture)[0], transform)
        return self._decoder.prepare(question.picture, transform)

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
    gem = model.network.gem
    if (depth := settings.get("depth")) is not None:
        layers = model.network.config.image.layers
        _check_whole("depth", depth, 1, layers + 1)
        gem = replace(gem, blocks=depth - 1)
    if (iterations := settings.get("iterations")) is not None:
        _check_whole("iterations", iterations, 0, MOST_ITERATIONS)
        gem = replace(gem, iters=iterations)
    if (temperature := settings.get("temperature")) is not None:
        if temperature == "adaptive":
            gem = replace(gem, inv_temp=None)
        elif isinstance(temperature, int | float) and 0 < temperature <= 1000:
            gem = replace(gem, inv_temp=float(temperature))
        else:
            raise ValueError("the temperature is a number above 0, up to 1000, or 'adaptive'")
    return model if gem == model.network.gem else with_settings(model, gem)


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
