"""GEM (Grounding Everything, arXiv 2312.00878) in plain PyTorch: heat maps for words."""

from ._version import __version__
from .config import ARCHITECTURES, GEMConfig, ImageConfig, ModelConfig, TextConfig
from .factory import create_gem_model, create_model_and_transforms, get_tokenizer
from .fetch import FetchError
from .predictor import DenseFeatures, GEMPredictor, save
from .pretrained import available_models
from .segment import Segmentation
from .transform import get_gem_img_transform
from .visualize import visualize

__all__ = [
    "ARCHITECTURES",
    "DenseFeatures",
    "FetchError",
    "GEMConfig",
    "GEMPredictor",
    "ImageConfig",
    "ModelConfig",
    "Segmentation",
    "TextConfig",
    "__version__",
    "available_models",
    "create_gem_model",
    "create_model_and_transforms",
    "get_gem_img_transform",
    "get_tokenizer",
    "save",
    "visualize",
]
