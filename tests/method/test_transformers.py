"""A full-size ViT-B/16 of transformers, saved as a folder, against what we make of that folder."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gem_lite

transformers = pytest.importorskip("transformers", reason="a test extra")

# Errors relative to the largest value, and the largest seen (x86-64 CPU, torch 2.13, transformers
# 5.23). The patches can agree to the last bit, as both call the same kernels.
LIMITS = {  #     tolerance, seen
    "text": (2e-5, 3.8e-7),
    "class": (2e-5, 5.4e-7),
    "patches": (2e-5, 6e-7),
    "probabilities": (1e-5, 1.2e-7),  # absolute
}
WORDS = ["cat", "remote control", "a très long château &amp; 犬 🐱!"]


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def within(stage: str, *errors: float) -> None:
    """Assert that the errors keep to one row of LIMITS (a NaN does not)."""
    tolerance, _ = LIMITS[stage]
    assert all(one <= tolerance for one in errors), (stage, tolerance, errors)


@pytest.fixture(scope="module")
def theirs() -> Any:
    """A CLIPModel with weights of a trained model's scale, so that attention is not flat."""
    torch.manual_seed(0)
    vision = transformers.CLIPVisionConfig(
        hidden_size=768,
        intermediate_size=3072,
        num_attention_heads=12,
        num_hidden_layers=12,
        patch_size=16,
        image_size=224,
        hidden_act="quick_gelu",
    )
    text = transformers.CLIPTextConfig(hidden_act="quick_gelu")
    config = transformers.CLIPConfig(
        vision_config=vision.to_dict(), text_config=text.to_dict(), projection_dim=512
    )
    with pytest.MonkeyPatch.context() as patch:  # weights that are drawn anew below
        for drawn in ("uniform_", "normal_"):
            patch.setattr(Tensor, drawn, lambda tensor, *_, **__: tensor.fill_(float("nan")))
        model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or "layrnorm" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
            elif "embedding" in name and parameter.ndim < 4:
                parameter.normal_(std=0.5)
            elif parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5)
    return model


@pytest.fixture(scope="module")
def ours(theirs: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("hugging_face")
    theirs.save_pretrained(folder)
    return gem_lite.create_gem_model("ViT-B/16", folder)


@pytest.fixture(scope="module", autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def test_the_folder_decides_the_activation(ours: Any) -> None:
    assert ours.network.config.activation == "quick_gelu"


def test_tokens_and_text_tower(theirs: Any, ours: Any) -> None:
    tokens = gem_lite.get_tokenizer("ViT-B/16")([f"a photo of a {word}." for word in WORDS])
    expected = theirs.text_projection(theirs.text_model(input_ids=tokens).pooler_output)
    within("text", relative(ours.network.encode_text(tokens), expected))
    unit = torch.nn.functional.normalize(expected, dim=-1)
    within("text", relative(ours.encode_text(WORDS)[0], unit))


def test_image_tower(theirs: Any, ours: Any) -> None:
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    outputs = theirs.vision_model(pixel_values=images)
    features = ours.encode_image(images)
    pooled = theirs.visual_projection(outputs.pooler_output)
    within("class", relative(features.class_embedding, pooled))
    # transformers normalises the class token only; the dense features need both steps.
    patches = theirs.vision_model.post_layernorm(outputs.last_hidden_state[:, 1:])
    within("patches", relative(features.clip, theirs.visual_projection(patches)))
    assert float((features.gem - features.clip).abs().max()) > 0.1


def test_classification(theirs: Any, ours: Any) -> None:
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    tokens = gem_lite.get_tokenizer("ViT-B/16")([f"a photo of a {word}." for word in WORDS])
    expected = theirs(input_ids=tokens, pixel_values=images).logits_per_image.softmax(dim=-1)
    within("probabilities", float((ours.classify(images, WORDS) - expected).abs().max()))
