"""Pictures in batches on many machines: a callable that travels as its settings, not its weights.

Made for Ray Data's `map_batches`, Spark's `mapInPandas`, Hugging Face's `datasets.map`. Importing
it, and making one, needs no PyTorch: the program that sends it may do without.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from .background import BACKGROUND, not_asked

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

    from .method.base import Method
    from .pictures.transform import ImageTransform
    from .predictor import GEMPredictor

    _Found = tuple[NDArray[np.integer], NDArray[np.float32]]  # labels, confidence [h, w]

OUTPUTS = ("coco", "scores", "boxes", "masks", "labels")
MOST_PATCHES = 1 << 14  # of one picture: 2048 x 2048 pixels in patches of 16
# Of this process, by what they were made from.
_MODELS: dict[Any, tuple[GEMPredictor, ImageTransform]] = {}
_LOCKS: dict[Any, threading.Lock] = {}


class Labeller:
    """Finds words in batches of pictures: columns in, columns out, a row for each picture.

    A batch is a dict of columns (or a pandas frame), arrays or lists of one length; in the column
    `image` stands whatever `as_picture` takes. Out come the other columns as they are, and

        height, width  of the picture, int
        error          "" or one line: why this row has no result. A row is never lost.
        coco           JSON: a list of COCO annotations (compressed run lengths, area, bbox, score)
                       without ids; "" where there is an error
        scores         a number for each word: the mean probability of its pixels, 0 without any,
                       NaN where there is an error
        boxes          [left, top, right, bottom] for each word, around all its pixels; else zeros
        masks          bool [words, h, w]
        labels         a palette PNG as Pascal VOC's, 0 = background, k + 1 = words[k]

    The model is read at the first call, once in a process, however many of these ask for it.
    On a CPU pictures go through it one by one by default, so that a row's result depends on nothing
    but the row (and PyTorch's threads); in larger batches neighbours change rounding.

    Args:
        words: what to look for; a list inside it is one word's synonyms.
        model, pretrained, method, settings, precision: as in `create_gem_model`. A file has to be
            on every machine under the same path; published weights are fetched by each.
        device: "auto" = CUDA, else MPS, else the CPU, of the machine it is called on.
        background, threshold, scale, templates: as in `GEMPredictor.segment`; None for no
            background. Words of it that are also looked for are left out of it.
        size: short side in pixels at which the model sees a picture; None = the model's square.
        mask_side: masks whose longer side would be longer are made of that size, which is faster;
            boxes and run lengths count its pixels then. None = the picture's own size.
        batch: pictures in one forward pass; None = 8 on a graphics card, else 1.
        threads: that decode pictures and encode masks while the model works.
        outputs: which of the columns above, apart from the first three.
        image, keep_image: name of the column, and whether it comes back too.
        prefix: before the names of new columns.

    Raises TypeError or ValueError for wrong settings, some of them at the first call only.
    """

    def __init__(
        self,
        words: Sequence[str | Sequence[str]],
        *,
        model: str = "ViT-B/16",
        pretrained: str | None = "openai",
        method: str | Method | None = None,
        settings: Mapping[str, Any] | None = None,
        precision: str = "fp32",
        device: str = "auto",
        background: Sequence[str] | float | None = BACKGROUND,
        threshold: float | None = None,
        scale: float = 50.0,
        templates: str | Sequence[str] = "a photo of a {}.",
        size: int | None = None,
        mask_side: int | None = None,
        batch: int | None = None,
        threads: int = 2,
        outputs: Sequence[str] = ("coco",),
        image: str = "image",
        keep_image: bool = False,
        prefix: str = "",
    ) -> None:
        if isinstance(words, str):
            raise TypeError(f"words is the string {words!r}; expected a list: [{words!r}]")
        self.words = [[word] if isinstance(word, str) else list(word) for word in words]
        if not self.words or not all(self.words):
            raise ValueError("expected at least one word, and at least one name for each")
        numbers = {"size": size, "mask_side": mask_side, "batch": batch, "threads": threads}
        for name, number in numbers.items():
            if number is not None and (not isinstance(number, int) or number < 1):
                raise ValueError(f"{name} is {number!r}; expected a whole number of at least 1")
        outputs = [outputs] if isinstance(outputs, str) else list(outputs)
        if unknown := [each for each in outputs if each not in OUTPUTS]:
            raise ValueError(f"unknown output {unknown[0]!r}; expected some of {list(OUTPUTS)}")
        if not (background is None or isinstance(background, float | str)):
            background = not_asked(background, [name for names in self.words for name in names])
        self.model, self.pretrained, self.method = model, pretrained, method
        self.settings, self.precision, self.device = dict(settings or {}), precision, device
        self.background, self.threshold, self.scale = background, threshold, scale
        self.templates, self.size, self.mask_side = templates, size, mask_side
        self.batch, self.threads, self.outputs = batch, threads, outputs
        self.image, self.keep_image, self.prefix = image, keep_image, prefix

    @property
    def names(self) -> list[str]:
        """The first name of each word; number k + 1 in masks and annotations is names[k]."""
        return [synonyms[0] for synonyms in self.words]

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """The batch's columns, that of the pictures apart, and those of the result."""
        columns = {name: batch[name] for name in batch}
        if self.image not in columns:
            raise ValueError(f"no column {self.image!r} among {list(columns)}; give image=...")
        rows = self._rows(list(columns[self.image]))
        if not self.keep_image:
            del columns[self.image]
        for name in ("height", "width", "error", *self.outputs):
            new = self.prefix + name
            if new in columns:
                raise ValueError(f"there is a column {new!r} already; give a prefix")
            columns[new] = [row[name] for row in rows]
        return columns

    def load(self) -> tuple[GEMPredictor, ImageTransform]:
        """This process's model and its transform; called by the first call, or before it."""
        from .factory import create_model_and_transforms
        from .inference import best_device
        from .pictures.transform import ImageTransform

        device = self.device if self.device != "auto" else best_device()
        listed = tuple((name, repr(value)) for name, value in sorted(self.settings.items()))
        key = (self.model, self.pretrained, self.method, listed, self.precision, device)
        with _LOCKS.setdefault(key, threading.Lock()):
            if key not in _MODELS:
                _MODELS[key] = create_model_and_transforms(
                    self.model,
                    self.pretrained,
                    precision=self.precision,  # type: ignore[arg-type]
                    device=device,
                    method=self.method,
                    settings=self.settings or None,
                )
        model, transform = _MODELS[key]
        if self.size is not None:
            transform = ImageTransform(self.size, transform.mean, transform.std)
        return model, transform

    def _rows(self, pictures: list[Any]) -> list[dict[str, Any]]:
        """A row for each picture: read ahead and written behind in threads."""
        model, transform = self.load()
        patch = model.network.config.image.patch
        batch = self.batch or (1 if model.network.device.type == "cpu" else 8)
        rows: dict[int, Future[dict[str, Any]]] = {}
        group: list[tuple[int, _Seen]] = []
        with ThreadPoolExecutor(self.threads) as pool:

            def finish() -> None:
                results = self._segmented(model, [seen for _, seen in group])
                for (index, seen), result in zip(group, results, strict=True):
                    rows[index] = pool.submit(self._row, seen.size, result)
                group.clear()

            see = partial(_see, transform=transform, patch=patch, name=self.image)
            for index, seen in enumerate(pool.map(see, pictures)):
                if isinstance(seen, Exception):
                    rows[index] = pool.submit(self._row, (0, 0), seen)
                    continue
                if group and group[0][1].tensor.shape != seen.tensor.shape:
                    finish()
                group.append((index, seen))
                if len(group) == batch:
                    finish()
            if group:
                finish()
            return [rows[index].result() for index in range(len(pictures))]

    def _segmented(self, model: GEMPredictor, group: list[_Seen]) -> list[_Found | Exception]:
        """Labels of pictures that the model sees in one size; where memory is short, singly."""
        import torch

        try:
            with torch.inference_mode():
                return [*self._segment(model, group)]
        except (MemoryError, RuntimeError) as error:
            short = "out of memory" in str(error) or "allocate memory" in str(error)
            if not (short or isinstance(error, MemoryError)):
                raise  # no picture's fault: let the worker end, and another do it again
            if len(group) == 1:
                return [error]
            return [result for seen in group for result in self._segmented(model, [seen])]

    def _segment(self, model: GEMPredictor, group: list[_Seen]) -> Iterator[_Found]:
        import torch

        from .method.pipeline import segment_images
        from .prompts import class_texts, split_background

        background, threshold = split_background(self.background, self.threshold)
        text, groups, classes = class_texts(
            self.words,
            background,
            lambda names: model.encode_text(list(names), templates=self.templates)[0],
        )
        images = torch.stack([seen.tensor for seen in group])
        maps = model(images, text, normalize=False, size="patches")  # [b, p, h, w]
        grid, scores = (maps.shape[-2], maps.shape[-1]), maps.flatten(2)
        for index, seen in enumerate(group):
            one = slice(index, index + 1)
            labels, confidence = segment_images(
                lambda part, own=scores[one]: (own, grid),  # type: ignore[misc]
                images[one],
                groups,
                classes=classes,
                patch=model.network.config.image.patch,
                size=self._mask_size(seen.size),
                scale=self.scale,
                threshold=threshold,
            )
            small = labels[0].to(torch.uint8 if classes < 256 else torch.int32)
            yield small.cpu().numpy(), confidence[0].cpu().numpy()

    def _mask_size(self, size: tuple[int, int]) -> tuple[int, int]:
        longest = max(size)
        if self.mask_side is None or longest <= self.mask_side:
            return size
        height, width = (max(1, round(side * self.mask_side / longest)) for side in size)
        return height, width

    def _row(self, size: tuple[int, int], result: _Found | Exception) -> dict[str, Any]:
        """What the columns have for one picture."""
        import numpy as np

        from .pictures.coco import annotations
        from .pictures.writers import label_file

        count = len(self.words)
        row: dict[str, Any] = {"height": size[0], "width": size[1], "error": ""}
        if isinstance(result, Exception):
            text = " ".join(str(result).split()) or type(result).__name__
            nothing = np.zeros((count, 0, 0), dtype=bool)
            scores, boxes = [float("nan")] * count, [[0] * 4] * count
            row.update(error=text, coco="", scores=scores, boxes=boxes, masks=nothing, labels=b"")
            return row
        labels, confidence = result
        if {"coco", "scores", "boxes"} & set(self.outputs):
            regions = annotations(labels, confidence)
            row.update(coco=json.dumps(regions), scores=[0.0] * count, boxes=[[0] * 4] * count)
            for each in regions:
                left, top, width, height = each["bbox"]
                row["scores"][each["category_id"] - 1] = each["score"]
                row["boxes"][each["category_id"] - 1] = [left, top, left + width, top + height]
        if "masks" in self.outputs:
            row["masks"] = labels == np.arange(1, count + 1)[:, None, None]
        if "labels" in self.outputs:
            row["labels"] = label_file(labels, count)
        return row


class _Seen(NamedTuple):
    """A picture as the model sees it."""

    tensor: torch.Tensor  # [3, h, w]
    size: tuple[int, int]  # of the picture, (h, w)


def _see(picture: Any, *, transform: ImageTransform, patch: int, name: str) -> _Seen | Exception:
    from .pictures.opening import as_picture

    try:
        opened = as_picture(picture, name=name)
        tensor = transform(opened)
        height, width = tensor.shape[1:]
        if not patch <= min(height, width) or height * width > MOST_PATCHES * patch**2:
            raise ValueError(
                f"{name} would be seen as {width} x {height} pixels; expected sides of at least"
                f" {patch}, and at most {MOST_PATCHES} patches: leave out size, or change it"
            )
        return _Seen(tensor, (opened.height, opened.width))
    except (ValueError, TypeError, OSError, MemoryError) as error:
        return error
