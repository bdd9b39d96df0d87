"""What `create_gem_model` returns: strings and images in, heat maps out."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from .checkpoints.ours import Header, write
from .fast import switch as fast
from .method.heatmap import heat_maps
from .method.image import ImageFeatures
from .method.model import GEMNetwork
from .method.refine import neighbour_weights, refine
from .method.segment import label_chunks
from .method.windows import window_features, window_maps
from .pictures.labels import Segmentation
from .pictures.overlays import visualize
from .tokenizer import Tokenizer

TEMPLATE = "a photo of a {}."
CACHED_PROMPTS = 4096
TOKENS_AT_ONCE = 2048  # of text
CHUNK_BYTES = 64 * 2**20  # maps of one chunk of names in `segment`

Prompts = Sequence[str] | Tensor
Templates = str | Sequence[str]
MapSize = tuple[int, int] | Literal["patches"] | None


class DenseFeatures(NamedTuple):
    """What an image looks like in the space it shares with text; float32, not normalised."""

    clip: Tensor  # [b, n, e], plain CLIP's patches, row by row
    gem: Tensor  # [b, n, e], GEM's patches
    grid: tuple[int, int]  # patches (h, w), n = h * w
    class_embedding: Tensor  # [b, e], CLIP's embedding of the whole image


class GEMPredictor(nn.Module):
    """A GEM model: heat maps, segmentation, classification and features for images and words.

    The network, with CLIP's own state-dict keys, is `model.network`; what the weight file says of
    itself is `model.header`. Images are float tensors [b, 3, h, w] from the model's transform, of
    any size from one patch up; they are moved to the model's device and dtype. Prompts are plain
    words ("cat"), put into templates ("a photo of a {}."), or embeddings computed before.

    In eval mode and without gradients two things are done for speed. Text embeddings are kept
    between calls, and computed anew when the text tower's weights change. A change that PyTorch
    does not count (through `.data`) is noticed on a CPU, and there only if `text_projection` has
    part in it: otherwise call `clear_text_cache()` after it. And the network runs on the fastest
    kernels that the machine has, see `kernels`.
    """

    def __init__(
        self,
        network: GEMNetwork,
        header: Header,
        tokenizer: Tokenizer,
        *,
        kernels: fast.Setting = "auto",
    ) -> None:
        super().__init__()
        self.network = network
        self.header = header
        self.tokenizer = tokenizer
        self.kernels = kernels
        self._text_cache: dict[Any, Tensor] = {}

    @property
    def kernels(self) -> str:
        """What inference runs on: "onednn" (fast.py) or "torch", PyTorch's own operators.

        Follows the weights' device and dtype. Assign "torch" to have PyTorch's own, "auto" to
        leave the choice to the rule in fast.py again.
        """
        return fast.kernels(self._kernels, self.network.text_projection)

    @kernels.setter
    def kernels(self, setting: fast.Setting) -> None:
        if setting not in fast.SETTINGS:
            raise ValueError(f"kernels is {setting!r}; expected one of {list(fast.SETTINGS)}")
        self._kernels = setting

    def forward(
        self,
        image: Tensor,
        text: Prompts,
        normalize: bool = True,
        return_ori: bool = False,
        *,
        templates: Templates = TEMPLATE,
        size: MapSize = None,
    ) -> Tensor:
        """A heat map for every image and every prompt.

        image: [b, 3, h, w]; text: list of p words, or embeddings [p, e] or [1, p, e].
        normalize: stretch each map to [0, 1]; False gives the cosine similarity itself.
        return_ori: plain CLIP's maps instead of GEM's. templates: one or many, each with `{}`.
        size: (h, w) of the maps in pixels, or "patches" for one value per patch; None = as the
        image. Returns [b, p, h, w] float32. Raises TypeError or ValueError for unusable input.
        """
        image = self._checked_images(image)
        embeddings = self._embeddings(text, templates)  # [p, e]
        features = self._image_features(image)
        return self._maps(features, image, embeddings, normalize, return_ori, size)

    def batched_forward(
        self,
        images: Tensor,
        texts: Sequence[Prompts],
        normalize: bool = True,
        return_ori: bool = False,
        *,
        templates: Templates = TEMPLATE,
        size: MapSize = None,
    ) -> list[Tensor]:
        """Heat maps of several images, each with prompts of its own.

        images: [b, 3, h, w]; texts: b lists of words (or embeddings), of any lengths. Otherwise
        as `forward`. Returns b tensors [prompts of that image, h, w].
        """
        images = self._checked_images(images)
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise TypeError(
                f"texts is {_kind(texts)}; expected a list with one list of prompts per image"
            )
        if len(texts) != len(images):
            raise ValueError(
                f"{len(texts)} prompt lists for {len(images)} images; expected one list per image"
            )
        words: dict[str, None] = {}
        for prompts in texts:
            if not isinstance(prompts, Tensor):
                words.update(dict.fromkeys(_checked_prompts(prompts)))
        # Every distinct word is encoded once, whichever images ask for it.
        encoded = self._encode_words(list(words), templates) if words else torch.empty(0)
        place = {word: row for row, word in enumerate(words)}
        features = self._image_features(images)
        maps = []
        for index, prompts in enumerate(texts):
            if isinstance(prompts, Tensor):
                embeddings = self._embeddings(prompts, templates)
            else:
                embeddings = encoded[[place[word] for word in prompts]]
            one = slice(index, index + 1)
            alone = ImageFeatures(features.clip[one], features.gem[one], features.grid)
            maps.append(self._maps(alone, images, embeddings, normalize, return_ori, size)[0])
        return maps

    def encode_text(self, text: Sequence[str], *, templates: Templates = TEMPLATE) -> Tensor:
        """Embeddings of prompts: list of p words -> [1, p, e] float32, unit norm.

        Several templates are encoded apart, normalised, averaged and normalised again.
        Raises TypeError or ValueError for unusable prompts or templates.
        """
        return self._encode_words(_checked_prompts(text), templates)[None]

    def encode_image(self, images: Tensor) -> DenseFeatures:
        """Both streams' patch features, and CLIP's class embedding. images: [b, 3, h, w]."""
        features = self._image_features(self._checked_images(images))
        clip, gem = features.clip.float(), features.gem.float()
        return DenseFeatures(clip[:, 1:], gem[:, 1:], features.grid, clip[:, 0])

    def classify(
        self, images: Tensor, class_names: Prompts, *, templates: Templates = TEMPLATE
    ) -> Tensor:
        """Plain CLIP's zero-shot classification: probabilities [b, classes] float32.

        images: [b, 3, h, w] (CLIP was trained at its native size, `model.network.config.image`);
        class_names: list of words, or embeddings. Source: CLIP, section 3.1.
        """
        images = self._checked_images(images)
        text = F.normalize(self._embeddings(class_names, templates), dim=-1)  # [classes, e]
        image = F.normalize(self._image_features(images).clip[:, 0].float(), dim=-1)  # [b, e]
        return (self.network.logit_scale.float().exp() * image @ text.T).softmax(dim=-1)

    @torch.no_grad()
    def segment(
        self,
        images: Tensor,
        class_names: Sequence[str | Sequence[str]],
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
    ) -> Segmentation:
        """Label maps: for each pixel the class whose scaled cosine wins, or background.

        images: [b, 3, h, w]; class_names: words, or lists of synonyms of which the best counts.
        background: a probability below which a pixel's best class does not count, or words that
        compete for the pixels of background; None = every pixel gets a class. `threshold` is that
        probability for use beside words. scale: inverse temperature of the softmax over classes
        (`label_chunks` has the reason for 50, and says what rival_names and min_area do).
        short_side: resize the images to it first, ratio kept. window, stride: (h, w) or a side in
        pixels; score overlapping windows and average (stride defaults to half a window), `batch`
        windows in one forward pass. flip: average with the mirrored image. refine_steps: let maps
        spread to pixels of like colour so often (`refine.py`; 5 is good). size: (h, w) of the
        result, default that of the images given. chunk: names whose maps are in memory at a time;
        default as many as fit in 64 MB. No gradients are kept; `label_maps` of `forward`'s maps
        has them.
        Returns Segmentation(labels [b, h, w], 0 = background, k + 1 = class k; confidence
        [b, h, w], the winner's probability). Raises TypeError or ValueError for unusable input.
        """
        images = self._checked_images(images)
        size = (images.shape[-2], images.shape[-1]) if size is None else size
        words = () if background is None or isinstance(background, float) else background
        if isinstance(background, float):
            if threshold is not None:
                raise ValueError("background is a threshold already; leave out `threshold`")
            threshold = background
        groups, names, classes = _grouped(class_names, words)
        text = self._encode_words(_checked_prompts(names), templates)  # [p, e]
        if short_side is not None:
            images = F.interpolate(
                images.float(), _short(images, short_side), mode="bicubic", antialias=True
            ).to(images.dtype)
            self._check_covers_patch((images.shape[-2], images.shape[-1]), "resized images")
        if window is not None:
            self._check_covers_patch(_pair(window), "window")

        def encode(part: Tensor) -> tuple[Tensor, tuple[int, int]]:
            features = self._image_features(part)
            return (features.clip if return_ori else features.gem)[:, 1:], features.grid

        found = window_features(
            encode,
            images,
            window=None if window is None else _pair(window),
            stride=None if window is None or stride is None else _pair(stride),
            flip=flip,
            batch=batch,
        )

        weights = neighbour_weights(images) if refine_steps else None

        def maps(chosen: Sequence[int]) -> Tensor:
            made = window_maps(found, text[list(chosen)])  # [b, k, h, w]
            if weights is not None:
                made = refine(made, weights, steps=refine_steps)
            if made.shape[-2:] == size:
                return made
            return F.interpolate(made, size=size, mode="bilinear", align_corners=False)

        if chunk is None:
            pixels = len(images) * max(size[0] * size[1], found.size[0] * found.size[1])
            chunk = max(1, CHUNK_BYTES // (4 * pixels))
        segmentation = label_chunks(
            maps,
            groups,
            classes=classes,
            scale=scale,
            threshold=threshold,
            rival_names=rival_names,
            min_area=min_area,
            chunk=chunk,
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
        return visualize(
            image,
            prompts,
            logits,
            alpha,
            save_path,
            mean=self.header.mean,
            std=self.header.std,
        )

    def clear_text_cache(self) -> None:
        """Forget the text embeddings kept from earlier calls."""
        self._text_cache.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_text_cache": {}}

    def extra_repr(self) -> str:
        """Name of the weights, for printing the model."""
        return f"{self.header.model!r}, {self.header.pretrained!r}, kernels={self.kernels!r}"

    def _inference(self) -> bool:
        """Whether calls may keep texts and use other kernels: no training, nothing recorded."""
        return not (
            self.training
            or torch.is_grad_enabled()
            or torch.is_autocast_enabled(self.network.device.type)
            or torch.compiler.is_compiling()
            or torch.jit.is_tracing()  # type: ignore[attr-defined]
        )

    def _image_features(self, images: Tensor) -> ImageFeatures:
        """`network.encode_image`, on the kernels chosen."""
        kernels = self.kernels if self._inference() else "torch"
        with fast.mode(kernels):
            if kernels == "torch" or fast.watched(self.network):
                return self.network.encode_image(images)
            at_once = fast.images_at_once(images, self.network.config.image.patch)
            parts = [self.network.encode_image(part) for part in images.split(at_once)]
        if len(parts) == 1:
            return parts[0]
        clip = torch.cat([part.clip for part in parts])
        gem = torch.cat([part.gem for part in parts])
        return ImageFeatures(clip, gem, parts[0].grid)

    def _maps(
        self,
        features: ImageFeatures,
        images: Tensor,
        embeddings: Tensor,
        normalize: bool,
        return_ori: bool,
        size: MapSize = None,
    ) -> Tensor:
        stream = features.clip if return_ori else features.gem
        size = _map_size(size, images, features.grid)
        maps = heat_maps(stream[:, 1:], embeddings, features.grid, size, normalize=normalize)
        return maps.float()

    def _checked_images(self, images: Tensor) -> Tensor:
        if not isinstance(images, Tensor):
            raise TypeError(
                f"images is {_kind(images)}; expected a float tensor [batch, 3, height, width],"
                " such as transform(picture).unsqueeze(0)"
            )
        if not images.is_floating_point():
            raise TypeError(
                f"images holds {images.dtype}; expected floating point, scaled and normalised as"
                " the model's transform does"
            )
        if images.ndim != 4 or images.shape[1] != 3:
            hint = "; add the batch axis with unsqueeze(0)" if images.ndim == 3 else ""
            raise ValueError(
                f"images has shape {list(images.shape)}; expected [batch, 3, height, width]{hint}"
            )
        if len(images) == 0:
            raise ValueError("images is an empty batch; expected at least one image")
        self._check_covers_patch((images.shape[-2], images.shape[-1]), "images")
        return images.to(device=self.network.device, dtype=self.network.dtype)

    def _check_covers_patch(self, size: tuple[int, int], what: str) -> None:
        patch = self.network.config.image.patch
        if min(size) < patch:
            raise ValueError(
                f"{what} of {size[0]} x {size[1]} pixels (h x w); expected at least one patch,"
                f" {patch} x {patch}"
            )

    def _embeddings(self, text: Prompts, templates: Templates) -> Tensor:
        """[p, e] from words, or from embeddings that were computed before."""
        if not isinstance(text, Tensor):
            return self._encode_words(_checked_prompts(text), templates)
        embed = self.network.config.embed
        given = list(text.shape)
        if text.ndim == 3 and len(text) == 1:
            text = text[0]
        if text.ndim != 2 or text.shape[1] != embed or not text.is_floating_point():
            raise ValueError(
                f"text embeddings have shape {given} and dtype {text.dtype}; expected floating"
                f" point [prompts, {embed}] or [1, prompts, {embed}]"
            )
        if len(text) == 0:
            raise ValueError("no prompts: the text embeddings are empty; give at least one")
        return text.to(device=self.network.device, dtype=torch.float32)

    def _encode_words(self, words: Sequence[str], templates: Templates) -> Tensor:
        """[p, e] float32, unit norm."""
        templates = _checked_templates(templates)
        # A replica that DataParallel made for one call does not know all of its weights.
        if not self._keeps_texts() or getattr(self, "_is_replica", False):
            return self._encode_uncached(words, templates)
        state = self._text_state()
        keys = [(word, templates, state) for word in words]
        known = {key: kept for key in keys if (kept := self._text_cache.get(key)) is not None}
        missing = [key for key in dict.fromkeys(keys) if key not in known]
        if missing:
            encoded = self._encode_uncached([key[0] for key in missing], templates)
            if len(self._text_cache) + len(missing) > CACHED_PROMPTS:
                self._text_cache.clear()
            for key, embedding in zip(missing, encoded, strict=True):
                known[key] = embedding
                if len(self._text_cache) < CACHED_PROMPTS:
                    # A copy of its own, so that the batch it came in is not kept alive.
                    self._text_cache[key] = embedding.clone()
        return torch.stack([known[key] for key in keys])

    def _encode_uncached(self, words: Sequence[str], templates: tuple[str, ...]) -> Tensor:
        texts = [template.replace("{}", word) for word in words for template in templates]
        embeddings = F.normalize(self._encode_texts(texts), dim=-1)
        if len(templates) == 1:
            return embeddings
        mean = embeddings.unflatten(0, (len(words), len(templates))).mean(dim=1)
        return F.normalize(mean, dim=-1)

    def _encode_texts(self, texts: list[str]) -> Tensor:
        """[texts, e] float32. Short ones go together, so that none is padded to a long one's size.

        What stands behind the end-of-text token changes nothing (the blocks are causal), so it is
        cut off.
        """
        tokens = self.tokenizer(texts)  # [p, context]
        lengths, order = (tokens.argmax(dim=-1) + 1).sort(stable=True)
        rows, start = [], 0
        with fast.mode(self.kernels if self._inference() else "torch"):
            while start < len(texts):
                # As many rows as fit, each as long as the last of them.
                room = lengths[start:] * torch.arange(1, len(texts) - start + 1)
                end = start + max(1, int((room <= TOKENS_AT_ONCE).sum()))
                part = tokens[order[start:end], : int(lengths[end - 1])]
                rows.append(self.network.encode_text(part.to(self.network.device)).float())
                start = end
        return torch.cat(rows)[order.argsort().to(self.network.device)]

    def _text_parameters(self) -> list[Tensor]:
        network = self.network
        return [
            network.token_embedding.weight,
            network.positional_embedding,
            *network.transformer.parameters(),
            *network.ln_final.parameters(),
            network.text_projection,
        ]

    def _keeps_texts(self) -> bool:
        """Whether text embeddings are kept: not in training, nor for gradients."""
        recorded = torch.is_grad_enabled() and any(p.requires_grad for p in self._text_parameters())
        return not (self.training or recorded)

    def _text_state(self) -> tuple[Any, ...]:
        """What a kept embedding depends on beside its words; changes when the weights do."""
        projection = self.network.text_projection
        kind = projection.device.type
        return (
            projection.dtype,
            projection.device,
            torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
            self.kernels if self._inference() else "torch",
            torch.is_inference_mode_enabled(),
            # Elsewhere than on a CPU, reading a number would make the program wait for the device.
            float(projection.detach().float().sum()) if kind == "cpu" else None,
            *(
                (p.data_ptr(), 0 if p.is_inference() else p._version)
                for p in self._text_parameters()
            ),
        )


def save(model: GEMPredictor, path: str | Path) -> None:
    """Write a model's weights, for example after fine-tuning, as a safetensors file of ours.

    The tensors keep their dtype and CLIP's names, so the file also loads in open_clip; the GEM
    settings in use become the file's own. The file is complete or not there at all.
    Raises TypeError for anything but a model from `create_gem_model`; FileNotFoundError when the
    folder does not exist.
    """
    if isinstance(model, nn.DataParallel):
        model = model.module
    if not isinstance(model, GEMPredictor):
        raise TypeError(f"expected a model from create_gem_model(), got {_kind(model)}")
    network = model.network
    header = model.header.changed(config=network.config, gem=network.gem)
    write(path, network.state_dict(), header)


def _kind(value: object) -> str:
    return "a string" if isinstance(value, str) else f"of type {type(value).__name__}"


def _checked_prompts(prompts: Prompts) -> list[str]:
    if isinstance(prompts, str):
        raise TypeError(f"prompts is the string {prompts!r}; expected a list: [{prompts!r}]")
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts is {_kind(prompts)}; expected a list of strings")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f"a prompt is {prompt!r}, {_kind(prompt)}; expected a string")
    if not prompts:
        raise ValueError("no prompts: the list is empty; give at least one word")
    return list(prompts)


def _checked_templates(templates: Templates) -> tuple[str, ...]:
    listed = (templates,) if isinstance(templates, str) else tuple(templates)
    if not listed:
        raise ValueError(f"templates is empty; expected at least one, such as {TEMPLATE!r}")
    for template in listed:
        if not isinstance(template, str):
            raise TypeError(f"a template is {_kind(template)}; expected a string with {{}}")
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} where the word goes")
    return listed


def _map_size(size: MapSize, images: Tensor, grid: tuple[int, int]) -> tuple[int, int]:
    if size is None:
        return (images.shape[-2], images.shape[-1])
    if size == "patches":
        return grid
    if isinstance(size, str) or len(size) != 2 or min(size) < 1:
        raise ValueError(f"size is {size!r}; expected (height, width) in pixels, or 'patches'")
    return (size[0], size[1])


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _grouped(
    class_names: Sequence[str | Sequence[str]], background: Sequence[str]
) -> tuple[list[int], list[str], int]:
    """The class of each name, all names, and the number of classes; background words come last."""
    if isinstance(class_names, str | Tensor):
        raise TypeError(f"class_names is {_kind(class_names)}; expected a list of names")
    if isinstance(background, str) or not isinstance(background, Sequence):
        raise TypeError(
            f"background is {_kind(background)}; expected a list of words, a probability such as"
            " 0.5, or None"
        )
    classes = [[names] if isinstance(names, str) else list(names) for names in class_names]
    every = [*classes, *([word] for word in background)]
    if not classes or not all(every):
        raise ValueError("expected at least one class, and at least one name for each")
    groups = [group for group, names in enumerate(every) for _ in names]
    return groups, [name for names in every for name in names], len(classes)


def _short(images: Tensor, short_side: int) -> tuple[int, int]:
    """(h, w) with the short side as given and the ratio kept."""
    if short_side < 1:
        raise ValueError(f"short_side is {short_side}; expected a positive number of pixels")
    height, width = images.shape[-2:]
    factor = short_side / min(height, width)
    return round(height * factor), round(width * factor)
