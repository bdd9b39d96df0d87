"""From words to embeddings: templates, the text tower, and a cache of what it gave."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from .method.model import GEMNetwork
from .tokenizer import Tokenizer

TEMPLATE = "a photo of a {}."
TOKENS_AT_ONCE = 2048  # of text, in one pass
CACHED_PROMPTS = 4096

Prompts = Sequence[str] | Tensor
Templates = str | Sequence[str]


def encode_words(
    network: GEMNetwork, tokenizer: Tokenizer, words: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Embeddings of words, [p, e] float32 of unit norm: the mean over templates, each normalised.

    CLIP, section 3.1.4 (prompt ensembling).
    """
    texts = [template.replace("{}", word) for word in words for template in templates]
    embeddings = F.normalize(encode_texts(network, tokenizer, texts), dim=-1)
    if len(templates) == 1:
        return embeddings
    mean = embeddings.unflatten(0, (len(words), len(templates))).mean(dim=1)
    return F.normalize(mean, dim=-1)


def encode_texts(network: GEMNetwork, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Embeddings of whole texts, not normalised: [p, e] float32.

    Short ones go together, so that none is padded to a long one's size. What follows the
    end-of-text token changes nothing (the blocks are causal), so it is cut off.
    """
    tokens = tokenizer(texts)  # [p, context]
    lengths, order = (tokens.argmax(dim=-1) + 1).sort(stable=True)
    rows, start = [], 0
    while start < len(texts):
        # As many rows as fit, each as long as the last of them.
        room = lengths[start:] * torch.arange(1, len(texts) - start + 1)
        end = start + max(1, int((room <= TOKENS_AT_ONCE).sum()))
        part = tokens[order[start:end], : int(lengths[end - 1])]
        rows.append(network.encode_text(part.to(network.device)).float())
        start = end
    return torch.cat(rows)[order.argsort().to(network.device)]


class TextEncoder:
    """Embeddings of words, kept as long as `text_state` stays the same."""

    def __init__(self) -> None:
        # Replaced as a whole, so that each thread sees one state with its own embeddings.
        self._cache: tuple[Any, dict[Any, Tensor]] = (None, {})

    def embeddings(
        self,
        network: GEMNetwork,
        tokenizer: Tokenizer,
        text: Prompts,
        templates: Templates,
        *,
        keep: bool,
        kernels: str,
    ) -> Tensor:
        """[p, e] float32 of words (unit norm), or of embeddings that were computed before.

        keep: False = neither use nor keep embeddings of earlier calls. Nothing is kept, either,
        where gradients are recorded. kernels: name of those that run.
        """
        if isinstance(text, Tensor):
            return checked_embeddings(text, network.config.embed).to(network.device)
        words, templates = checked_prompts(text), checked_templates(templates)
        recorded = torch.is_grad_enabled() and any(
            parameter.requires_grad for parameter in text_parameters(network)
        )
        state = None if recorded or not keep else text_state(network, tokenizer, kernels)
        if state is None:
            return encode_words(network, tokenizer, words, templates)
        known, kept = self._cache
        if known != state or len(kept) + len(set(words)) > CACHED_PROMPTS:
            kept = {}
            self._cache = (state, kept)
        rows = {word: kept[word, templates] for word in words if (word, templates) in kept}
        missing = [word for word in dict.fromkeys(words) if word not in rows]
        if missing:
            encoded = encode_words(network, tokenizer, missing, templates)
            for word, row in zip(missing, encoded, strict=True):
                rows[word] = row
                if len(kept) < CACHED_PROMPTS:
                    # A copy of its own, so that the batch it came in is not kept alive.
                    kept[word, templates] = row.clone()
        return torch.stack([rows[word] for word in words])

    def clear(self) -> None:
        """Forget the embeddings of earlier calls."""
        self._cache = (None, {})

    def __len__(self) -> int:
        return len(self._cache[1])

    def __getstate__(self) -> dict[str, Any]:
        return {"_cache": (None, {})}


def text_modules(network: GEMNetwork) -> list[nn.Module]:
    """The text tower's modules, containers first."""
    towers = (network.token_embedding, network.transformer, network.ln_final)
    return [module for tower in towers for module in tower.modules()]


def text_parameters(network: GEMNetwork) -> list[Tensor]:
    """The text tower's parameters and buffers."""
    owned = [
        tensor
        for module in text_modules(network)
        for tensors in (module._parameters, module._buffers)
        for tensor in tensors.values()
        if tensor is not None
    ]
    return [*owned, network.positional_embedding, network.text_projection]


def text_state(network: GEMNetwork, tokenizer: Tokenizer, kernels: str) -> tuple[Any, ...] | None:
    """All that an embedding depends on beside its words; None where that cannot be told.

    None when a module of the text tower is watched by hooks or has a forward of its own, or when
    tensors were made in inference mode, whose changes PyTorch does not count. A change through
    `.data` is not counted either; on a CPU the tensors' sums show it. Elsewhere, reading a number
    would make the program wait for the device.
    """
    modules, parameters = text_modules(network), text_parameters(network)
    watched = bool(torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks)
    for module in (network, *modules):
        watched |= bool(module._forward_hooks or module._forward_pre_hooks)
        watched |= "forward" in module.__dict__
    if watched or any(parameter.is_inference() for parameter in parameters):
        return None
    sums, kind = None, network.device.type
    if kind == "cpu":
        with torch.no_grad():
            sums = torch.stack([each.sum(dtype=torch.float32) for each in parameters]).tolist()
    plain = (bool, int, float, str)
    return (
        tokenizer,
        network.__dict__.get("encode_text", type(network).encode_text),
        [
            (
                module,
                type(module).forward,
                [v for v in module.__dict__.values() if type(v) in plain],
            )
            for module in modules
        ],
        [(each.data_ptr(), each._version, each.dtype, each.device) for each in parameters],
        sums,
        kernels,
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None,
        torch.is_inference_mode_enabled(),
    )


# ---- what users give


def kind_of(value: object) -> str:
    """A value's kind, for error messages."""
    return "a string" if isinstance(value, str) else f"of type {type(value).__name__}"


def checked_prompts(prompts: Prompts) -> list[str]:
    """Prompts as a list; TypeError or ValueError for anything but one string or more in it."""
    if isinstance(prompts, str):
        raise TypeError(f"prompts is the string {prompts!r}; expected a list: [{prompts!r}]")
    if not isinstance(prompts, Sequence):
        raise TypeError(f"prompts is {kind_of(prompts)}; expected a list of strings")
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f"a prompt is {prompt!r}, {kind_of(prompt)}; expected a string")
    if not prompts:
        raise ValueError("no prompts: the list is empty; give at least one word")
    return list(prompts)


def checked_templates(templates: Templates) -> tuple[str, ...]:
    """Templates as a tuple; TypeError or ValueError where `{}` is missing."""
    listed = (templates,) if isinstance(templates, str) else tuple(templates)
    if not listed:
        raise ValueError(f"templates is empty; expected at least one, such as {TEMPLATE!r}")
    for template in listed:
        if not isinstance(template, str):
            raise TypeError(f"a template is {kind_of(template)}; expected a string with {{}}")
        if "{}" not in template:
            raise ValueError(f"template {template!r} has no {{}} where the word goes")
    return listed


def checked_embeddings(text: Tensor, embed: int) -> Tensor:
    """Text embeddings as [p, e] float32; ValueError for another shape or no row."""
    shape = list(text.shape)
    if text.ndim == 3 and len(text) == 1:
        text = text[0]
    if text.ndim != 2 or text.shape[1] != embed or not text.is_floating_point():
        raise ValueError(
            f"text embeddings have shape {shape} and dtype {text.dtype}; expected floating"
            f" point [prompts, {embed}] or [1, prompts, {embed}]"
        )
    if len(text) == 0:
        raise ValueError("no prompts: the text embeddings are empty; give at least one")
    return text.float()


def prompt_lists(
    texts: Sequence[Prompts], images: int
) -> tuple[list[list[str] | Tensor], list[str]]:
    """One list of prompts (or embeddings) for each image, and all different words of them."""
    if isinstance(texts, str) or not isinstance(texts, Sequence):
        raise TypeError(
            f"texts is {kind_of(texts)}; expected a list with one list of prompts per image"
        )
    if len(texts) != images:
        raise ValueError(
            f"{len(texts)} prompt lists for {images} images; expected one list per image"
        )
    lists = [text if isinstance(text, Tensor) else checked_prompts(text) for text in texts]
    words = [word for text in lists if not isinstance(text, Tensor) for word in text]
    return lists, list(dict.fromkeys(words))


def split_background(
    background: float | Sequence[str] | None, threshold: float | None
) -> tuple[list[str], float | None]:
    """Background words and the probability threshold, from the two arguments that say so."""
    if isinstance(background, float):
        if threshold is not None:
            raise ValueError("background is a threshold already; leave out `threshold`")
        return [], background
    if isinstance(background, str) or not isinstance(background, Sequence | None):
        raise TypeError(
            f"background is {kind_of(background)}; expected a list of words, a probability such as"
            " 0.5, or None"
        )
    return list(background or ()), threshold


def class_texts(
    class_names: Sequence[str | Sequence[str]] | Tensor,
    background: list[str],
    embed: Callable[[Prompts], Tensor],
) -> tuple[Tensor, list[int], int]:
    """Embeddings of all names, the class of each, and the number of classes.

    class_names: words, lists of synonyms, or embeddings [classes, e]. Background words come last.
    """
    if isinstance(class_names, Tensor):
        text = embed(class_names)
        count = len(text)
        text = torch.cat([text, embed(background)]) if background else text
        return text, list(range(len(text))), count
    if isinstance(class_names, str):
        raise TypeError("class_names is a string; expected a list of names")
    classes = [[names] if isinstance(names, str) else list(names) for names in class_names]
    every = [*classes, *([word] for word in background)]
    if not classes or not all(every):
        raise ValueError("expected at least one class, and at least one name for each")
    groups = [group for group, names in enumerate(every) for _ in names]
    return embed([name for names in every for name in names]), groups, len(classes)
