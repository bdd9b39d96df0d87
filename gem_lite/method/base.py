"""What a method declares, and what it is given to work with.

A method says how the second stream, `gem`, is made beside CLIP's own. It never changes CLIP's: the
stream only reads. `methods/` has the published ones, a file each.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from .heatmap import similarity

# How position embeddings are resampled to another grid; positions.py has the formulas.
Positions = Literal["bicubic_antialias", "bicubic", "bicubic_offset", "bilinear"]


class Heads(NamedTuple):
    """The projections of one block, head by head."""

    q: Tensor  # [b, h, n, c]
    k: Tensor  # [b, h, n, c]
    v: Tensor  # [b, h, n, c]
    x: Tensor  # [b, n, d], the layer-normed tokens they were projected from
    trunk: "Trunk"  # what came before


class Trunk(NamedTuple):
    """CLIP's own stream so far: its blocks, its patch grid, and the tokens that were kept.

    Blocks are counted from 1, as in papers. tokens[i] is what block i returned, [b, n, d], class
    token first; tokens[0] is what the first block is given. asked: how many tokens of CLIP's
    stream a block shall return, None = all; 0, where only the method's is read afterwards.
    """

    blocks: nn.ModuleList
    grid: tuple[int, int]  # patches (h, w)
    tokens: Mapping[int, Tensor]
    ln_pre: nn.Module | None = None  # the tower's, for tokens that a method adds
    asked: int | None = None

    def heads(self, block: int, tokens: Tensor | None = None) -> Heads:
        """The projections in a block, of the tokens that it was given or of others: [b, n, d]."""
        layer: Any = self.blocks[block - 1]
        x = layer.ln_1(self.tokens[block - 1] if tokens is None else tokens)
        q, k, v = project(layer.attn, x)
        return Heads(q, k, v, x, self)

    def out(self, block: int, out: Tensor) -> Tensor:
        """A block's output projection: [b, h, n, c] -> [b, n, d]."""
        layer: Any = self.blocks[block - 1]
        return layer.attn.out_proj(rearrange(out, "b h n c -> b n (h c)"))

    def dense(
        self,
        block: int,
        attention: Callable[[Heads], Tensor],
        *,
        residual: bool = False,
        mlp: bool = False,
        tokens: Tensor | None = None,
    ) -> Tensor:
        """What one block alone gives with another attention: [b, n, d].

        attention: heads -> [b, h, n, c]. tokens: [b, n, d] in place of those it was given.
        """
        layer: Any = self.blocks[block - 1]
        gem = self.out(block, attention(self.heads(block, tokens)))
        if residual:
            gem = gem + (self.tokens[block - 1] if tokens is None else tokens)
        return gem + layer.mlp(layer.ln_2(gem)) if mlp else gem


def project(attention: Any, x: Tensor) -> Tensor:
    """Queries, keys and values of an attention layer: [b, n, d] -> [3, b, h, n, c]."""
    qkv = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)  # [b, n, 3 d]
    return rearrange(qkv, "b n (s h c) -> s b h n c", s=3, h=attention.heads)


def weights(a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """Attention weights softmax(a b^T / sqrt(c) + bias): [b, h, n, c] twice -> [b, h, n, n]."""
    scores = a.shape[-1] ** -0.5 * a @ b.mT
    return (scores if bias is None else scores + bias).softmax(dim=-1)


def attend(a: Tensor, b: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """`weights(a, b, bias) @ v` in one fused kernel: [b, h, n, c]."""
    return F.scaled_dot_product_attention(a, b, v, attn_mask=bias)


@dataclass(frozen=True, kw_only=True)
class Method:
    """How the gem stream is made. Subclass it, change what differs, pass the object as `method`.

    The stream starts as a copy of CLIP's when the first of the last `blocks` blocks is reached.
    Each of these adds out_proj(attention(heads)), heads being CLIP's own in that block, and then,
    with `mlp`, what its MLP adds. The last block's tokens go through ln_post and proj.
    """

    name: ClassVar[str] = "own"
    paper: ClassVar[str] = ""  # authors, venue, arXiv number

    blocks: int = 1  # last blocks that feed the stream; 0 = it is CLIP's own
    residual: bool = True  # False: a block's attention replaces what the stream had
    mlp: bool = False  # each block's MLP acts on the stream too
    class_token: Literal["gem", "clip"] = "gem"  # whose class token the stream ends with
    positions: Positions = "bicubic_antialias"

    def __post_init__(self) -> None:
        for field in fields(self):
            choices = get_args(field.type)
            value, optional = getattr(self, field.name), type(None) in choices
            if optional and value is None:
                continue
            if choices and all(isinstance(each, str) for each in choices):
                one_of(field.name, value, choices)
            else:
                checked(field.name, value, field.default, any_length="..." in str(field.type))

    def attention(self, heads: Heads) -> Tensor:
        """What the stream reads in a block: [b, h, n, c]. Here CLIP's own attention."""
        return attend(heads.q, heads.k, heads.v)

    def reads(self, layers: int) -> Collection[int]:
        """Numbers of the blocks whose tokens the trunk keeps, in a tower of `layers`."""
        return ()

    def combine(self, gem: Tensor, trunk: Trunk) -> Tensor:
        """The stream that goes through ln_post, [b, n, d], from the one gathered and the trunk.

        For a method across layers. Without a class token it is given CLIP's.
        """
        return gem

    def scores(self, visual: Any, images: Tensor, features: Any, text: Tensor) -> Tensor:
        """Patch scores of every prompt: [b, p, n]. Here the cosine of patches and texts.

        visual: the image tower; images: [b, 3, h, w]; features: `ImageFeatures` of them, with the
        tokens that the method reads; text: [p, e] float32, unit norm.
        """
        return similarity(features.gem[:, 1:], text)


def checked(name: str, value: Any, like: Any, *, any_length: bool = False) -> None:
    """Raise TypeError or ValueError for a value of another kind than a setting's default.

    Whole numbers are 0 to 1000, others from 1e-4 to 1e4; tuples have such members, as many as the
    default has, or with `any_length` one or more.
    """
    if type(like) is bool and type(value) is not bool:
        raise TypeError(f"{name} is {value!r}; expected true or false")
    if type(like) is int:
        count(name, value)
    elif type(like) is float:
        positive(name, value)
    elif type(like) is str and type(value) is not str:
        raise TypeError(f"{name} is {value!r}; expected a string")
    elif type(like) is tuple and like:
        lengths = range(1, 100) if any_length else (len(like),)
        if type(value) is not tuple or len(value) not in lengths:
            raise TypeError(f"{name} is {value!r}; expected several, such as {like}")
        for member in value:
            checked(name, member, like[0])


def count(name: str, value: Any) -> None:
    """Raise TypeError or ValueError for what is not a whole number from 0 to 1000.

    Beyond, a slip of the keyboard (or a file) would compute for days.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is {value!r}; expected a whole number")
    if not 0 <= value <= 1000:
        shown = value if value.bit_length() < 64 else "far too large"
        raise ValueError(f"{name} is {shown}; expected 0 or more, at most 1000")


def positive(name: str, value: Any, otherwise: str = "") -> None:
    """Raise TypeError or ValueError for what is not a number from 1e-4 to 1e4.

    Beyond, scores overflow in half precision, or windows vanish: maps of NaN.
    """
    expected = "expected a number in [0.0001, 10000]" + (f", {otherwise}" if otherwise else "")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is {value!r}; {expected}")
    if not 1e-4 <= value <= 1e4:
        raise ValueError(f"{name} is {value}; {expected}")


def letters(name: str, value: str, known: str) -> None:
    """Raise ValueError for what is not one or more different letters of those known."""
    if not value or len(set(value)) < len(value) or not set(value) <= set(known):
        raise ValueError(
            f"{name} is {value!r}; expected one to three different letters of {known!r}"
        )


def one_of(name: str, value: Any, choices: Collection[Any]) -> None:
    """Raise ValueError for what is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; expected one of {list(choices)}")


def scaled(blocks: Collection[int], layers: int, *, fixed: bool = False) -> list[int]:
    """Block numbers given for a tower of 12 layers, in the same depth of another one.

    fixed: for methods whose code counts from the first block; only smaller towers are scaled.
    Raises ValueError for numbers of no block.
    """
    last = max(12, layers) if fixed else 12
    if wrong := [number for number in blocks if not 1 <= number <= last]:
        raise ValueError(f"block {wrong[0]} in {tuple(blocks)}; expected 1 to {last}")
    if fixed and layers >= 12:
        return list(blocks)
    return [1 + (number - 1) * layers // 12 for number in blocks]
