"""How a call runs: where, on which kernels, how many images at a time, from pixels to maps."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from .fast import switch as fast
from .method.base import Method
from .method.checks import MapSize, checked_images, map_size
from .method.heatmap import score_maps, similarity
from .method.image import ImageEncoder, ImageFeatures
from .method.model import GEMNetwork
from .method.presence import NEUTRAL, common_scale, presence
from .prompts import TEMPLATE, Prompts, Templates, TextEncoder, prompt_lists
from .tokenizer import Tokenizer

Normalize = bool | Literal["common"]


def best_device() -> str:
    """CUDA where this PyTorch finds it, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def call_kernels(model: nn.Module, device: torch.device) -> str:
    """The kernels of a call: PyTorch's own in training and where something is recorded."""
    recorded = (
        model.training
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled(device.type)
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()  # type: ignore[attr-defined]
    )
    return "torch" if recorded else str(model.kernels)


def encode_images(
    network: GEMNetwork, images: Tensor, kernels: str, *, both: bool = True
) -> ImageFeatures:
    """`network.encode_image` on these kernels, with as many images at a time as pay.

    both=False: the method's stream alone is read. A tower or an `encode_image` of one's own, and
    hooks, need not know of it: they compute both.
    """
    watched = fast.watched(network)
    own = type(network.visual) is not ImageEncoder or "encode_image" in vars(network)
    asked: dict[str, Any] = {} if both or own or watched else {"both": False}
    with fast.mode(kernels):
        if kernels == "torch" or watched:
            return network.encode_image(images, **asked)
        at_once = fast.images_at_once(images, network.config.image.patch)
        first, *rest = [network.encode_image(part, **asked) for part in images.split(at_once)]
    return first.joined(rest)


class Options(NamedTuple):
    """What maps are asked for; as in `GEMPredictor.forward`."""

    normalize: Normalize
    plain: bool  # plain CLIP's
    templates: Templates
    size: MapSize = None


class Call(NamedTuple):
    """One call of a model: what it runs with."""

    network: GEMNetwork
    tokenizer: Tokenizer
    texts: TextEncoder
    kernels: str
    keep: bool  # whether embeddings of texts may be taken from earlier calls, and kept

    def images(self, images: Tensor) -> Tensor:
        """Images [b, 3, h, w], checked, on the network's device and in its dtype."""
        images = checked_images(images, self.network.config.image.patch)
        return images.to(device=self.network.device, dtype=self.network.dtype)

    def features(self, images: Tensor, wanted: Options | None = None) -> ImageFeatures:
        """Both streams of images that `images` gave; CLIP's only where it is wanted."""
        own_scores = type(self.network.method).scores is not Method.scores
        both = wanted is None or wanted.plain or wanted.normalize == "common" or own_scores
        return encode_images(self.network, images, self.kernels, both=both)

    def embeddings(self, text: Prompts, templates: Templates) -> Tensor:
        """[p, e] float32, from words (unit norm) or from embeddings that were computed before."""
        with fast.mode(self.kernels):
            return self.texts.embeddings(
                *(self.network, self.tokenizer, text, templates),
                keep=self.keep,
                kernels=self.kernels,
            )

    def scores(
        self, images: Tensor, features: ImageFeatures, text: Tensor, plain: bool
    ) -> tuple[Tensor, tuple[int, int]]:
        """Patch scores [b, p, n], at least float32, and the grid."""
        if plain:
            return similarity(features.clip[:, 1:], text), features.grid
        method = self.network.method
        return method.scores(self.network.visual, images, features, text), features.grid

    def presence(self, features: ImageFeatures, text: Tensor, options: Options) -> Tensor:
        """[b, p] float32: how probable it is that each word's thing is in the picture."""
        patches = (features.clip if options.plain else features.gem)[:, 1:]
        neutral = self.embeddings(NEUTRAL, options.templates)
        return presence(features.clip[:, 0], patches, text, neutral).float()

    def maps(
        self, images: Tensor, features: ImageFeatures, text: Tensor, options: Options
    ) -> Tensor:
        """[b, p, h, w] float32."""
        common = options.normalize == "common"
        if isinstance(options.normalize, str) and not common:
            raise ValueError(
                f"normalize is {options.normalize!r}; expected True, False or 'common'"
            )
        scores, grid = self.scores(images, features, text, options.plain)
        size = map_size(options.size, images, grid)
        stretched = bool(options.normalize) and not common
        maps = score_maps(scores, grid, size, normalize=stretched).float()
        return common_scale(maps, self.presence(features, text, options)) if common else maps

    def maps_of_each(
        self, images: Tensor, texts: Sequence[Prompts], options: Options
    ) -> list[Tensor]:
        """[prompts of that image, h, w] for each image, with prompts of its own."""
        lists, words = prompt_lists(texts, len(images))
        # Every distinct word is encoded once, whichever images ask for it.
        encoded = self.embeddings(words, options.templates) if words else torch.empty(0)
        place = {word: row for row, word in enumerate(words)}
        features = self.features(images, options)
        maps = []
        for index, listed in enumerate(lists):
            if isinstance(listed, Tensor):
                text = self.embeddings(listed, options.templates)
            else:
                text = encoded[[place[word] for word in listed]]
            one = slice(index, index + 1)
            maps.append(self.maps(images[one], features.cut(one), text, options)[0])
        return maps


def call_of(model: Any) -> Call:
    """A call of a `GEMPredictor` as it stands now."""
    # A replica that DataParallel made for one call does not know all of its weights.
    keep = not (model.training or getattr(model, "_is_replica", False))
    kernels = call_kernels(model, model.network.device)
    return Call(model.network, model.tokenizer, model._texts, kernels, keep)


def maps_and_presence(
    model: Any,
    images: Tensor,
    text: Prompts,
    *,
    plain: bool = False,
    templates: Templates = TEMPLATE,
    size: MapSize = None,
) -> tuple[Tensor, Tensor]:
    """Cosines [b, p, h, w] and presence [b, p] of one pass through a `GEMPredictor`'s image tower.

    As `GEMPredictor.forward` with normalize=False, and `GEMPredictor.presence`.
    """
    call, options = call_of(model), Options(False, plain, templates, size)
    images, embeddings = call.images(images), call.embeddings(text, templates)
    features = call.features(images)
    maps = call.maps(images, features, embeddings, options)
    return maps, call.presence(features, embeddings, options)
