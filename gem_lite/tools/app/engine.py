"""What the page asks for: a picture and words in, patch scores of two methods out."""

import base64
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from ...checkpoints.known import find_file
from ...checkpoints.ours import read_header
from ...checkpoints.table import PRETRAINED
from ...factory import create_model_and_transforms
from ...inference import maps_and_presence
from ...method.config import ModelConfig, architecture
from ...method.heatmap import similarity
from ...method.methods import methods
from ...method.methods.gem import GEMConfig
from ...method.presence import NEUTRAL, presence
from ...pictures.overlays import heat_colours, label_colour
from ...pictures.transform import ImageTransform
from ...predictor import GEMPredictor
from ..demo import DEMO_PICTURES, PHOTOGRAPH, demo_picture
from .decoding import Decoder, Prepared, prepare
from .limits import Limits
from .question import Question

MODELS_KEPT = 2  # loaded at the same time
MOST_ITERATIONS = 8
SCALE = 50.0  # inverse temperature of the segmentation's softmax, as in `GEMPredictor.segment`
DRAWINGS = "tiny-emoji"  # the name of models that know drawings only
FETCH = "gem-lite models --fetch ViT-B/16"


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
        self._about = {key: _about(key, header.config, header.gem) for key in self._choices}
        for row in PRETRAINED:
            key = f"{row.name} {row.tag}"
            path = find_file(row)
            if path is None or key in self._choices:
                continue
            own = read_header(path) if path.suffix == ".safetensors" else None
            config = architecture(row.name).image.layers if own is None else own.config
            self._choices[key] = (row.name, row.tag)
            self._about[key] = _about(key, config, own.gem if own else GEMConfig())
        self._loaded[next(iter(self._choices))] = first

    def about(self) -> dict[str, Any]:
        """What the page needs before the first request: models, limits, colours, examples."""
        ramp = heat_colours(np.linspace(0, 1, 256, dtype=np.float32)[None])[0]
        return {
            "models": [{"name": name, **self._about[name]} for name in self._choices],
            "methods": [
                {"name": each.name, "title": each.summary.partition(":")[0], "about": each.summary}
                for each in methods()
            ],
            "fetch": FETCH,
            "limits": {
                "upload_bytes": self.limits.upload_bytes,
                "prompts": self.limits.prompts,
                "letters": self.limits.letters,
            },
            "most_iterations": MOST_ITERATIONS,
            "scale": SCALE,
            "colours": (ramp * 255).round().astype(int).tolist(),
            "word_colours": [label_colour(index) for index in range(self.limits.prompts)],
            "examples": _examples(not all(each["drawings"] for each in self._about.values())),
        }

    def answer(self, question: Question) -> dict[str, Any]:
        """Patch scores of all words by each method. Raises ValueError for what has no answer.

        They are cosines (some methods change them), one float32 for each word, the background's
        last, and each patch, row by row.
        """
        with self._lock:
            start = time.perf_counter()
            loaded = self._model(question.model)
            model = _with(loaded.model, question.settings)
            ready = self._prepared(question, loaded.transform)
            words = [*question.prompts, *question.background]
            found, grid = _scores(model, ready.image[None], words, question.methods)
            height, width = ready.size
            return {
                "model": f"{model.header.model} {model.header.pretrained}",
                "picture": f"data:image/jpeg;base64,{base64.b64encode(ready.shown).decode()}",
                "size": {"width": width, "height": height},
                "grid": {"width": grid[1], "height": grid[0]},
                "prompts": question.prompts,
                "background": question.background,
                "methods": [
                    {
                        "name": name,
                        "scores": base64.b64encode(scores.tobytes()).decode(),
                        "presence": [round(each, 6) for each in present[: len(question.prompts)]],
                    }
                    for name, (scores, present) in found.items()
                ],
                "seconds": round(time.perf_counter() - start, 3),
            }

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


def _about(name: str, config: ModelConfig | int, gem: GEMConfig) -> dict[str, Any]:
    return {
        "layers": config if isinstance(config, int) else config.image.layers,
        "depth": gem.blocks + 1,
        "iterations": gem.iters,
        "temperature": gem.inv_temp,
        "drawings": name.startswith(DRAWINGS),
    }


def _with(model: GEMPredictor, settings: Mapping[str, Any]) -> GEMPredictor:
    """The model with GEM under the settings that are given and not null; weights are shared."""
    changes: dict[str, Any] = {}
    if (depth := settings.get("depth")) is not None:
        _check_whole("depth", depth, 1, model.network.config.image.layers + 1)
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
    if not changes and model.method.name == "gem":
        return model
    return model.with_gem(**changes)


def _check_whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"the {name} is a whole number from {low} to {high}")


def _scores(
    model: GEMPredictor, image: torch.Tensor, words: list[str], names: list[str]
) -> tuple[dict[str, tuple[np.ndarray, list[float]]], tuple[int, int]]:
    """By each method patch scores [words, grid h, grid w] and presence of the words; the grid.

    model: with GEM, whose pass through the image tower serves plain CLIP as well.
    """
    found: dict[str, tuple[np.ndarray, list[float]]] = {}
    with torch.no_grad():
        text, neutral = (model.encode_text(list(each))[0] for each in (words, NEUTRAL))  # [p, e]
        features = model.encode_image(image)
        for name in names:
            if name in ("gem", "clip"):
                patches = getattr(features, name)
                maps = similarity(patches, text).unflatten(-1, features.grid)
                present = presence(features.class_embedding, patches, text, neutral)
            else:
                other = model.with_method(name)
                maps, present = maps_and_presence(other, image, text, size="patches")
            found[name] = (maps[0].float().cpu().numpy().astype("<f4"), present[0].tolist())
    return found, features.grid


def _examples(photographs: bool) -> list[dict[str, Any]]:
    """The pictures that ship with the package, as far as they came along."""
    examples = []
    for name in (*([PHOTOGRAPH] if photographs else []), *DEMO_PICTURES):
        try:
            _, words = demo_picture(name)
        except FileNotFoundError:  # a copy of the package without the weights/ folder
            continue
        path = find_file(name)
        assert path is not None
        kind = "jpeg" if path.suffix == ".jpg" else "png"
        url = f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
        drawing = name != PHOTOGRAPH
        examples.append({"name": name, "picture": url, "prompts": words, "drawing": drawing})
    return examples
