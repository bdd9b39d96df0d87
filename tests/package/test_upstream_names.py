"""The attributes that gem_torch's users reach into, as they use them."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from small import random_images, small_model, tracing
from torch import Tensor, nn

from gem_lite.method.methods.gem import GEMConfig
from gem_lite.predictor import GEMPredictor


def plus_240(**changes: Any) -> GEMPredictor:
    """As ViT-B/16-plus-240: stored positions of 240 pixels in patches of 16, narrow and shallow."""
    return small_model(GEMConfig(blocks=1), size=240, patch=16, layers=2, **changes)


class AnomalyMaps(nn.Module):
    """A program of its kind: GEM's patches of three sizes against "normal" and "damaged"."""

    def __init__(self, gem_model: Any, sizes: tuple[int, ...] = (240, 448, 896)) -> None:
        super().__init__()
        self.gem_model = gem_model
        self.sizes = sizes
        self.patch = gem_model.model.visual.patch_size[0]

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, list[Tensor]]:
        """[b, 3, 240, 240] -> maps [b, 240, 240], and the class tokens of each size."""
        maps, whole = [], []
        for size in self.sizes:
            x = F.interpolate(image, size=(size, size), mode="bicubic", align_corners=False)
            gem, clip = self.gem_model.model.visual(x)
            patches = F.normalize(gem[:, 1:], dim=-1)
            scores = (100 * patches @ text.mT).softmax(dim=-1)[..., 1]  # [b, n]
            side = size // self.patch
            grid = scores.reshape(-1, 1, side, side)
            maps.append(F.interpolate(grid, size=image.shape[-2:], mode="bilinear")[:, 0])
            whole.append(F.normalize(clip[:, 0], dim=-1))
        return torch.stack(maps).mean(dim=0), whole


def test_an_anomaly_detector_of_three_sizes() -> None:
    model = plus_240()
    image = random_images(2, 240, 240)
    with torch.no_grad():
        text = model.encode_text(["flawless part", "damaged part"])[0]
        maps, whole = AnomalyMaps(model)(image, text)
        expected = []
        for size in (240, 448, 896):
            x = F.interpolate(image, size=(size, size), mode="bicubic", align_corners=False)
            cosines = model(x, text, normalize=False, size="patches")  # [b, 2, h, w]
            scores = (100 * cosines).softmax(dim=1)[:, 1:]
            expected.append(F.interpolate(scores, size=(240, 240), mode="bilinear")[:, 0])
    assert maps.shape == (2, 240, 240)
    assert (maps - torch.stack(expected).mean(dim=0)).abs().max() <= 1e-4
    assert (whole[0] - F.normalize(model.encode_image(image).class_embedding)).abs().max() <= 1e-5


def test_the_order_is_gem_then_clip_and_the_class_token_is_first() -> None:
    model, images = small_model(), random_images(2, 48, 40)
    with torch.no_grad():
        gem, clip = model.model.visual(images)
        features = model.network.encode_image(images)
        dense = model.encode_image(images)
    assert (gem - features.gem).abs().max() <= 1e-5
    assert (clip - features.clip).abs().max() <= 1e-5
    assert (clip[:, 0] - dense.class_embedding).abs().max() <= 1e-5
    assert (gem[:, 1:] - dense.gem).abs().max() <= 1e-5


def test_attributes() -> None:
    model = small_model()
    assert model.model.visual.patch_size == (8, 8)
    assert model.model.visual.image_size == (40, 40)
    assert model.model.visual.grid_size == (5, 5)
    assert model.model.visual.output_dim == 20
    assert model.model.visual.proj is model.network.visual.proj
    assert model.model.logit_scale is model.network.logit_scale


def test_a_view_holds_no_weights_of_its_own() -> None:
    """The state dict keeps its names; a view's weights are the network's."""
    model = small_model()
    names = set(model.state_dict())
    assert {*model.model.parameters()} == {*model.network.parameters()}
    assert set(model.state_dict()) == names and all(n.startswith("network.") for n in names)
    model.model.half()
    assert model.network.dtype == torch.float16
    gem, _ = model.model.visual(random_images(1, 40, 40))
    assert gem.dtype == torch.float16


def test_text_tower() -> None:
    model = small_model()
    tokens = model.tokenizer(["a photo of a cat.", "a photo of a dog."])
    with torch.no_grad():
        text = model.model.encode_text(tokens, normalize=True)
        expected = model.encode_text(["cat", "dog"])[0]
        assert (text - expected).abs().max() <= 1e-5
        plain = model.model.encode_text(tokens)
    assert (F.normalize(plain, dim=-1) - text).abs().max() <= 1e-6
    gem, clip = model.model.encode_image(random_images(1, 40, 40), normalize=True)
    for each in (gem, clip):
        assert (each.norm(dim=-1) - 1).abs().max() <= 1e-5


@tracing
def test_compiled() -> None:
    torch._dynamo.reset()
    model, images = small_model(), random_images(1, 40, 48)
    compiled = torch.compile(model.model.visual, backend="eager", fullgraph=True)
    with torch.no_grad():
        gem, clip = compiled(images)
        expected = model.model.visual(images)
    assert (gem - expected[0]).abs().max() <= 1e-4
    assert (clip - expected[1]).abs().max() <= 1e-4


def test_gradients_reach_the_weights() -> None:
    model = small_model()
    gem, _ = model.model.visual(random_images(1, 40, 40))
    gem.square().mean().backward()
    assert model.network.visual.conv1.weight.grad is not None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_half_on_cuda() -> None:
    model, image = plus_240().half().cuda(), random_images(1, 240, 240)
    with torch.no_grad():
        text = model.encode_text(["flawless part", "damaged part"])[0].half()
        maps, _ = AnomalyMaps(model)(image.half().cuda(), text)
        expected, _ = AnomalyMaps(plus_240())(image, text.float().cpu())
    assert (maps.float().cpu() - expected).abs().max() <= 0.05
