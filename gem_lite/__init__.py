"""GEM (Grounding Everything, arXiv 2312.00878) in plain PyTorch: heat maps for words."""

from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .checkpoints.fetch import FetchError
    from .checkpoints.known import available_models
    from .exporting.export import export
    from .factory import create_gem_model, create_model_and_transforms, get_tokenizer, save
    from .labeller import Labeller
    from .locator import Locator, PictureMaps, load
    from .method.base import Method
    from .method.config import ARCHITECTURES, ImageConfig, ModelConfig, TextConfig
    from .method.methods import methods
    from .method.methods.gem import GEMConfig
    from .method.scores import similarity_map_to_points
    from .pictures.boxes import Box, boxes, points
    from .pictures.labels import Segmentation, class_areas, label_picture, save_labels
    from .pictures.overlays import label_overlay, visualize
    from .pictures.transform import get_gem_img_transform
    from .predictor import DenseFeatures, GEMPredictor

__all__ = [
    "ARCHITECTURES",
    "Box",
    "DenseFeatures",
    "FetchError",
    "GEMConfig",
    "GEMPredictor",
    "ImageConfig",
    "Labeller",
    "Locator",
    "Method",
    "ModelConfig",
    "PictureMaps",
    "Segmentation",
    "TextConfig",
    "__version__",
    "available_models",
    "boxes",
    "class_areas",
    "create_gem_model",
    "create_model_and_transforms",
    "export",
    "get_gem_img_transform",
    "get_tokenizer",
    "label_overlay",
    "label_picture",
    "load",
    "methods",
    "points",
    "save",
    "save_labels",
    "similarity_map_to_points",
    "visualize",
]


def __getattr__(name: str) -> Any:
    """A public name, imported when it is asked for: a command's help need not wait for PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import factory, labeller, locator, predictor
    from .checkpoints import fetch, known
    from .exporting import export
    from .method import base, config, methods, scores
    from .method.methods import gem
    from .pictures import boxes, labels, overlays, transform

    homes = (
        export,
        factory,
        labeller,
        locator,
        predictor,
        fetch,
        known,
        base,
        config,
        methods,
        gem,
        scores,
    )
    value = next(
        vars(home)[name]
        for home in (*homes, scores, boxes, labels, overlays, transform)
        if name in vars(home)
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
