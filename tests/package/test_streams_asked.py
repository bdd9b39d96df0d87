"""Where only the method's stream is read, CLIP's half of the last block is not computed."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from small import random_images, small_model, small_network
from torch import Tensor, nn

from gem_lite import methods
from gem_lite.method.base import Method
from gem_lite.method.heatmap import similarity
from gem_lite.method.image import ImageEncoder
from gem_lite.predictor import GEMPredictor

WORDS = ["cat", "dog"]
DEEP = {"gem", "clip_surgery"}  # by themselves deeper than the small model


class Counting(nn.Module):
    """A tower that notes which streams were asked for, and runs another."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower

    def forward(self, images: Tensor, keep: Any = ()) -> Any:
        return self.tower(images, keep)


def rows_of_the_last_mlp(model: GEMPredictor, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the tokens that the last block's MLP is given for CLIP's stream."""
    rows: list[int] = []
    mlp: Any = model.network.visual.transformer.resblocks[-1].mlp
    forward = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: (rows.append(x.shape[1]), forward(x))[1])
    return rows


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", [method.name for method in methods()])
def test_the_methods_stream_is_the_same(name: str, dtype: torch.dtype) -> None:
    layers = small_model().network.config.image.layers
    model = small_model().with_method(name, **({"blocks": layers} if name in DEEP else {}))
    network = model.network.to(dtype)
    images = random_images(2, 48, 40).to(dtype)
    with torch.no_grad():
        alone, both = network.encode_image(images, both=False), network.encode_image(images)
    assert both.clip.shape[1] == 1 + 6 * 5
    assert alone.gem.shape == both.gem.shape
    # A product of fewer rows may add up in another order.
    assert (alone.gem - both.gem).abs().max() <= torch.finfo(dtype).eps * both.gem.abs().max() * 8


@torch.no_grad()
def test_maps_leave_the_half_out_and_plain_clip_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small_model(), random_images(1, 48, 40)
    rows = rows_of_the_last_mlp(model, monkeypatch)
    for call in (model, model.segment):
        call(images, WORDS)
    model.batched_forward(images, [WORDS])
    assert rows == [0, 0, 0]
    rows.clear()
    model(images, WORDS, return_ori=True)
    model.segment(images, WORDS, return_ori=True)
    model.classify(images, WORDS)
    model.encode_image(images)
    assert rows == [31] * 4


@torch.no_grad()
@pytest.mark.parametrize("name", ["maskclip", "clearclip"])
def test_where_clips_class_token_is_read_it_alone_is_made(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model().with_method(name)
    rows = rows_of_the_last_mlp(model, monkeypatch)
    model(random_images(1, 48, 40), WORDS)
    assert min(rows) == 1 and rows.count(31) == (name == "maskclip")  # its stream has an MLP


@torch.no_grad()
def test_tokens_kept_of_the_last_block_are_whole() -> None:
    network, images = small_network(), random_images(1, 48, 40)
    kept = network.encode_image(images, [3], both=False)
    assert kept.tokens[3].shape[1] == 31
    assert torch.equal(kept.clip, network.encode_image(images).clip)


@torch.no_grad()
def test_scores_of_ones_own_have_both_streams() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Mixed(Method):
        def scores(self, visual: Any, images: Tensor, features: Any, text: Tensor) -> Tensor:
            return similarity(features.clip[:, 1:], text) + super().scores(
                visual, images, features, text
            )

    @dataclass(frozen=True, kw_only=True)
    class Late(Method):
        def combine(self, gem: Tensor, trunk: Any) -> Tensor:
            return gem[:, 1:]

    for method in (Mixed(), Late()):
        model = small_model().with_method(method)
        assert model(random_images(1, 48, 40), WORDS).shape == (1, 2, 48, 40)
    late = small_model().with_method(Late()).network.encode_image(random_images(1, 48, 40))
    assert torch.equal(late.gem[:, 0], late.clip[:, 0])  # a stream without a class token has CLIP's


@torch.no_grad()
def test_what_is_put_in_or_watched_computes_both(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = small_model(), random_images(1, 48, 40)
    expected = model(images, WORDS)
    seen: list[int] = []
    block: Any = model.network.visual.transformer.resblocks[-1]
    hook = block.register_forward_hook(lambda _, __, out: seen.append(out.clip.shape[1]))
    torch.testing.assert_close(model(images, WORDS), expected, rtol=0, atol=1e-6)
    assert seen == [31]
    hook.remove()
    rows = rows_of_the_last_mlp(model, monkeypatch)
    assert type(model.network.visual) is ImageEncoder
    model.network.visual = Counting(model.network.visual)  # type: ignore[assignment]
    torch.testing.assert_close(model(images, WORDS), expected, rtol=0, atol=1e-6)
    assert rows == [31]
