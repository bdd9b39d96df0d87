"""What a model is made of: frozen configurations, the known architectures, and their names."""

import difflib
from dataclasses import dataclass, replace
from typing import Literal, get_args

Activation = Literal["quick_gelu", "gelu"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """Image tower of CLIP."""

    size: int  # side in pixels of the square image whose patches the stored positions cover
    patch: int  # side of a patch in pixels
    width: int  # channels of a token
    layers: int
    heads: int
    mlp_width: int  # hidden channels of the MLP

    def __post_init__(self) -> None:
        _check_tower("image", self.width, self.heads, self.layers, self.mlp_width)
        if self.patch < 1 or self.size < self.patch:
            raise ValueError(
                f"image size {self.size} with patch {self.patch}: expected 1 <= patch <= size"
            )

    @property
    def grid(self) -> tuple[int, int]:
        """Patches down and across at the native size."""
        return (self.size // self.patch, self.size // self.patch)


@dataclass(frozen=True, kw_only=True)
class TextConfig:
    """Text tower of CLIP."""

    context: int  # longest prompt in tokens, start and end token included
    vocab: int  # token ids are 0 .. vocab - 1; the last one is the end-of-text token
    width: int
    layers: int
    heads: int
    mlp_width: int

    def __post_init__(self) -> None:
        _check_tower("text", self.width, self.heads, self.layers, self.mlp_width)
        if self.context < 2 or self.vocab < 514:
            raise ValueError(
                f"text context {self.context}, vocab {self.vocab}: expected context >= 2 (start and"
                " end token) and vocab >= 514 (512 byte symbols, start, end)"
            )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A CLIP: two towers that meet in one embedding space."""

    embed: int  # channels of the shared space
    activation: Activation  # not visible in the weights, so never guessed
    image: ImageConfig
    text: TextConfig

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f"activation is {self.activation!r}; expected one of {list(ACTIVATIONS)}"
            )
        if self.embed < 1:
            raise ValueError(f"embed is {self.embed}; expected at least 1")


def _check_tower(tower: str, width: int, heads: int, layers: int, mlp_width: int) -> None:
    if min(width, heads, layers, mlp_width) < 1 or width % heads:
        raise ValueError(
            f"{tower} tower with width {width}, heads {heads}, layers {layers}, mlp_width"
            f" {mlp_width}: expected positive numbers, and a width that the heads divide"
        )


def _clip(
    embed: int,
    *,
    size: int,
    patch: int,
    width: int,
    layers: int,
    heads: int,
    text_width: int,
    text_layers: int = 12,
    mlp_width: int | None = None,
) -> ModelConfig:
    return ModelConfig(
        embed=embed,
        activation="gelu",
        image=ImageConfig(
            size=size,
            patch=patch,
            width=width,
            layers=layers,
            heads=heads,
            mlp_width=mlp_width or 4 * width,
        ),
        text=TextConfig(
            context=77,
            vocab=49408,
            width=text_width,
            layers=text_layers,
            heads=text_width // 64,
            mlp_width=4 * text_width,
        ),
    )


# Shapes from the open_clip model configurations of the same names; here with plain GELU.
ARCHITECTURES: dict[str, ModelConfig] = {
    "ViT-B/32": _clip(512, size=224, patch=32, width=768, layers=12, heads=12, text_width=512),
    "ViT-B/32-256": _clip(512, size=256, patch=32, width=768, layers=12, heads=12, text_width=512),
    "ViT-B/16": _clip(512, size=224, patch=16, width=768, layers=12, heads=12, text_width=512),
    "ViT-B/16-plus-240": _clip(
        640, size=240, patch=16, width=896, layers=12, heads=14, text_width=640
    ),
    "ViT-L/14": _clip(768, size=224, patch=14, width=1024, layers=24, heads=16, text_width=768),
    "ViT-L/14-336": _clip(768, size=336, patch=14, width=1024, layers=24, heads=16, text_width=768),
    "ViT-H/14": _clip(
        1024,
        size=224,
        patch=14,
        width=1280,
        layers=32,
        heads=16,
        text_width=1024,
        text_layers=24,
    ),
    "ViT-H/14-378": _clip(
        1024,
        size=378,
        patch=14,
        width=1280,
        layers=32,
        heads=16,
        text_width=1024,
        text_layers=24,
    ),
    "ViT-g/14": _clip(
        1024,
        size=224,
        patch=14,
        width=1408,
        layers=40,
        heads=16,
        text_width=1024,
        text_layers=24,
        mlp_width=6144,
    ),
    "ViT-bigG/14": _clip(
        1280,
        size=224,
        patch=14,
        width=1664,
        layers=48,
        heads=16,
        text_width=1280,
        text_layers=32,
        mlp_width=8192,
    ),
}

QUICKGELU_SUFFIX = "-quickgelu"


def fold_name(name: str) -> str:
    """`ViT-L/14@336px` and `vit-l-14-336` fold to one spelling, for comparing model names."""
    return name.lower().replace("/", "-").replace("@", "-").replace("336px", "336")


def split_name(name: str) -> tuple[str, bool]:
    """The folded name without `-quickgelu`, and whether it had that suffix."""
    folded = fold_name(name)
    return folded.removesuffix(QUICKGELU_SUFFIX), folded.endswith(QUICKGELU_SUFFIX)


def architecture(name: str, activation: Activation | None = None) -> ModelConfig:
    """Configuration of a known architecture.

    `name` is a key of ARCHITECTURES, with `/` or `-`, with or without the suffix `-quickgelu`.
    `activation` overrides the one that the name implies (GELU without the suffix).
    Raises ValueError for an unknown name (lists the nearest known ones), or for an activation
    that contradicts the suffix.
    """
    if not isinstance(name, str):
        raise TypeError(f"model name is {name!r}; expected a string such as 'ViT-B/16'")
    folded, suffixed = split_name(name)
    by_fold = {fold_name(known): config for known, config in ARCHITECTURES.items()}
    config = by_fold.get(folded)
    if config is None:
        raise ValueError(
            f"unknown model {name!r}; nearest known: {nearest(name, list(ARCHITECTURES))}"
            " (each also with the suffix '-quickgelu')"
        )
    if suffixed and activation == "gelu":
        raise ValueError(
            f"the name {name!r} says QuickGELU but activation is 'gelu'; drop one of the two"
        )
    implied: Activation = "quick_gelu" if suffixed else "gelu"
    return replace(config, activation=activation or implied)


def nearest(word: str, known: list[str], most: int = 3) -> str:
    """The known words that look most like `word`, as text for an error message."""
    folded = {fold_name(each): each for each in known}
    close = difflib.get_close_matches(fold_name(word), list(folded), n=most, cutoff=0.0)
    return ", ".join(repr(folded[each]) for each in close)
