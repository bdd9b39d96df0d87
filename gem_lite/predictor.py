"""What `create_gem_model` returns: strings and images in, heat maps out."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from . import prompts
from .checkpoints.assemble import with_method
from .checkpoints.header import Header
from .fast import switch as fast
from .inference import Normalize, Options, call_kernels, call_of
from .method.base import Method
from .method.checks import MapSize
from .method.methods import make_method
from .method.methods.gem import GEMConfig
from .method.model import GEMNetwork
from .method.pipeline import segment_images
from .pictures.labels import Segmentation
from .pictures.overlays import visualize
from .prompts import TEMPLATE, Prompts, Templates, TextEncoder
from .tokenizer import Tokenizer
from .upstream import Towers


class DenseFeatures(NamedTuple):
    """What an image looks like in the space it shares with text; float32, not normalised."""

    clip: Tensor  # [b, n, e], plain CLIP's patches, row by row
    gem: Tensor  # [b, n, e], the method's patches
    grid: tuple[int, int]  # patches (h, w), n = h * w
    class_embedding: Tensor  # [b, e], CLIP's embedding of the whole image


class GEMPredictor(nn.Module):
    """A GEM model: heat maps, segmentation, classification and features for images and words.

    The network, with CLIP's own state-dict keys, is `model.network`; what the weight file says of
    itself is `model.header`; how the maps are made is `model.method`. Images are float tensors
    [b, 3, h, w] from the model's transform, of any size from one patch up; they are moved to the
    model's device and dtype. Prompts are plain words ("cat"), put into templates ("a photo of a
    {}."), or embeddings computed before.

    In eval mode and without gradients two things are done for speed. Text embeddings are kept
    between calls, until anything that they depend on changes (`prompts.text_state`; on another
    device than a CPU, call `clear_text_cache()` after a change of weights through `.data`). And the
    network runs on the fastest kernels that the machine has, see `kernels`.
    """

    def __init__(
        self,
        network: GEMNetwork,
        header: Header,
        tokenizer: Tokenizer,
        *,
        kernels: str = "auto",
    ) -> None:
        super().__init__()
        self.network = network
        self.header = header
        self.tokenizer = tokenizer
        self.kernels = kernels
        self._texts = TextEncoder()

    @property
    def method(self) -> Method:
        """How maps are made: the method and its settings. See `with_method`."""
        return self.network.method

    @property
    def model(self) -> Towers:
        """What gem_torch calls so: `model.model.visual(x)` is (gem, clip)."""
        return Towers(self.network, lambda: call_kernels(self, self.network.device))

    @property
    def kernels(self) -> str:
        """What inference runs on: "onednn" (fast.py) or "torch", PyTorch's own operators.

        Follows the weights' device and dtype. Assign "torch" to have PyTorch's own, "auto" or
        "onednn" to leave the choice to the rule in fast.py again.
        """
        return fast.kernels(self._kernels, self.network.text_projection)

    @kernels.setter
    def kernels(self, setting: str) -> None:
        self._kernels = fast.chosen(setting)

    def forward(
        self,
        image: Tensor,
        text: Prompts,
        normalize: Normalize = True,
        return_ori: bool = False,
        *,
        templates: Templates = TEMPLATE,
        size: MapSize = None,
    ) -> Tensor:
        """A heat map for every image and every prompt.

        image: [b, 3, h, w]; text: list of p words, or embeddings [p, e] or [1, p, e].
        normalize: stretch each map to [0, 1]; False gives the cosine similarity itself; "common"
        puts a picture's maps on one scale and fades absent words (`method.presence.common_scale`).
        return_ori: plain CLIP's maps instead of GEM's. templates: one or many, each with `{}`.
        size: (h, w) of the maps in pixels, or "patches" for one value per patch; None = as the
        image. Returns [b, p, h, w] float32. Raises TypeError or ValueError for unusable input.
        """
        call, options = call_of(self), Options(normalize, return_ori, templates, size)
        image = call.images(image)
        text = call.embeddings(text, templates)  # [p, e]
        return call.maps(image, call.features(image, options), text, options)

    def batched_forward(
        self,
        images: Tensor,
        texts: Sequence[Prompts],
        normalize: Normalize = True,
        return_ori: bool = False,
        *,
        templates: Templates = TEMPLATE,
        size: MapSize = None,
    ) -> list[Tensor]:
        """Heat maps of several images, each with prompts of its own.

        images: [b, 3, h, w]; texts: b lists of words (or embeddings), of any lengths. Otherwise
        as `forward`. Returns b tensors [prompts of that image, h, w].
        """
        call = call_of(self)
        options = Options(normalize, return_ori, templates, size)
        return call.maps_of_each(call.images(images), texts, options)

    def presence(
        self,
        images: Tensor,
        text: Prompts,
        return_ori: bool = False,
        *,
        templates: Templates = TEMPLATE,
    ) -> Tensor:
        """How probable it is that each word's thing is in the picture: [b, p] in [0, 1].

        images: [b, 3, h, w]; text: words or embeddings. A word is held against neutral ones
        (`method.presence`); fitted to drawings, so for other models the order tells more than
        the number. docs/presence.md says how good it is.
        """
        call = call_of(self)
        features = call.features(call.images(images))
        options = Options(False, return_ori, templates)
        return call.presence(features, call.embeddings(text, templates), options)

    def encode_text(self, text: Sequence[str], *, templates: Templates = TEMPLATE) -> Tensor:
        """Embeddings of prompts: list of p words -> [1, p, e] float32, unit norm.

        Several templates are encoded apart, normalised, averaged and normalised again.
        Raises TypeError or ValueError for unusable prompts or templates.
        """
        return call_of(self).embeddings(prompts.checked_prompts(text), templates)[None]

    def encode_image(self, images: Tensor) -> DenseFeatures:
        """Both streams' patch features, and CLIP's class embedding. images: [b, 3, h, w]."""
        call = call_of(self)
        features = call.features(call.images(images))
        clip, gem = features.clip.float(), features.gem.float()
        return DenseFeatures(clip[:, 1:], gem[:, 1:], features.grid, clip[:, 0])

    def classify(
        self, images: Tensor, class_names: Prompts, *, templates: Templates = TEMPLATE
    ) -> Tensor:
        """Plain CLIP's zero-shot classification: probabilities [b, classes] float32.

        images: [b, 3, h, w] (CLIP was trained at its native size, `model.network.config.image`);
        class_names: list of words, or embeddings. Source: CLIP, section 3.1.
        """
        call = call_of(self)
        whole = call.features(call.images(images)).clip[:, 0].float()
        text = F.normalize(call.embeddings(class_names, templates), dim=-1)  # [classes, e]
        image = F.normalize(whole, dim=-1)  # [b, e]
        return (self.network.logit_scale.float().exp() * image @ text.T).softmax(dim=-1)

    @torch.no_grad()
    def segment(
        self,
        images: Tensor,
        class_names: Sequence[str | Sequence[str]] | Tensor,
        *,
        background: float | Sequence[str] | None = None,
        threshold: float | None = None,
        scale: float = 50.0,
        window: int | tuple[int, int] | None = None,
        stride: int | tuple[int, int] | None = None,
        short_side: int | None = None,
        flip: bool = False,
        refine_steps: int = 0,
        size: tuple[int, int] | None = None,
        templates: Templates = TEMPLATE,
        return_ori: bool = False,
        rival_names: bool = False,
        min_area: float = 0.0,
        chunk: int | None = None,
        batch: int = 8,
        advance: Callable[[int], None] = lambda windows: None,
    ) -> Segmentation:
        """Label maps: for each pixel the class whose scaled cosine wins, or background.

        images: [b, 3, h, w]; class_names: words, or lists of synonyms of which the best counts, or
        embeddings [classes, e].
        background: a probability below which a pixel's best class does not count, or words that
        compete for the pixels of background; None = every pixel gets a class. `threshold` is that
        probability for use beside words. scale, rival_names, min_area: as in `label_chunks`.
        short_side: resize the images to it first, ratio kept. window, stride: (h, w) or a side in
        pixels; average over windows (stride defaults to half a window), `batch` in one pass.
        flip: average with the mirrored image. refine_steps: let maps spread to pixels of like
        colour so often (5 is good). size: (h, w) of the result, default as the images. chunk:
        names whose maps are in memory at a time; default as many as fit in 64 MB. No gradients.
        advance: called with the number of windows (or images) after each forward pass.
        Returns Segmentation(labels [b, h, w], 0 = background, k + 1 = class k; confidence
        [b, h, w], the winner's probability). Raises TypeError or ValueError for unusable input.
        """
        call = call_of(self)
        images = call.images(images)
        words, threshold = prompts.split_background(background, threshold)
        text, groups, classes = prompts.class_texts(
            class_names, words, lambda names: call.embeddings(names, templates)
        )

        def score(part: Tensor) -> tuple[Tensor, tuple[int, int]]:
            features = call.features(part, Options(False, return_ori, templates))
            scores = call.scores(part, features, text, return_ori)
            advance(len(part))
            return scores

        segmentation = segment_images(
            score,
            images,
            groups,
            classes=classes,
            patch=self.network.config.image.patch,
            size=size,
            window=window,
            stride=stride,
            short_side=short_side,
            flip=flip,
            refine_steps=refine_steps,
            scale=scale,
            threshold=threshold,
            rival_names=rival_names,
            min_area=min_area,
            chunk=chunk,
            batch=batch,
        )
        return Segmentation(*segmentation)

    def visualize(
        self,
        image: Image.Image | Tensor,
        prompts: Sequence[str],
        logits: Tensor,
        alpha: float = 0.6,
        save_path: str | Path | None = None,
    ) -> list[Image.Image]:
        """`gem_lite.visualize` with this model's mean and std."""
        mean, std = self.header.mean, self.header.std
        return visualize(image, prompts, logits, alpha, save_path, mean=mean, std=std)

    def with_method(self, method: str | Method, **settings: Any) -> "GEMPredictor":
        """The same weights, shared with this model, under another method.

        method: a name of `gem_lite.methods()`, or a Method of your own; settings: the method's.
        Kernels and kept texts are shared too. The image tower is built anew from its class, so
        tensors that it declares come along, and modules that were put into it do not: ValueError
        names what does not fit. Raises ValueError or TypeError for wrong settings.
        """
        if isinstance(method, str):
            method = make_method(method, settings)
        elif settings:
            method = replace(method, **settings)
        network = with_method(self.network, method)
        other = GEMPredictor(network, self.header, self.tokenizer, kernels=self._kernels)
        other._texts = self._texts
        return other.train(self.training)

    def with_gem(self, **settings: Any) -> "GEMPredictor":
        """`with_method("gem")`, GEM's settings (`GEMConfig`) as they are but for those given."""
        gem = self.method if isinstance(self.method, GEMConfig) else self.header.gem
        return self.with_method("gem", **{**asdict(gem), **settings})

    def clear_text_cache(self) -> None:
        """Forget the text embeddings kept from earlier calls."""
        self._texts.clear()

    def extra_repr(self) -> str:
        """Name of the weights, for printing the model."""
        name = f"{self.header.model!r}, {self.header.pretrained!r}, method={self.method.name!r}"
        return f"{name}, kernels={self.kernels!r}"
