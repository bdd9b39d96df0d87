"""Upstream's stored outputs for two small CLIPs, stage by stage: a failure names its stage."""

from functools import cache

import pytest
import torch
from rebuild import (
    MODELS,
    PROMPTS,
    SIZES,
    TEMPLATE,
    GoldenModel,
    golden,
    golden_images,
    golden_state,
)
from torch import Tensor

from gem_lite.checkpoints.header import Header
from gem_lite.method import heatmap
from gem_lite.method.config import OPENAI_MEAN, OPENAI_STD, ImageConfig, ModelConfig, TextConfig
from gem_lite.method.methods.gem import GEMConfig
from gem_lite.method.model import GEMNetwork
from gem_lite.predictor import GEMPredictor
from gem_lite.tokenizer import Tokenizer

# Features: largest error relative to the largest value. Maps: largest absolute error. Seen: over
# both models and all sizes (x86-64 CPU, torch 2.13, fp32).
LIMITS = {  #            tolerance, seen
    "text": (2e-5, 3.0e-7),
    "image_cls": (2e-5, 2.6e-7),
    "clip": (2e-5, 6.3e-7),
    "gem": (2e-5, 4.8e-7),
    "gem iter2": (2e-5, 5.9e-7),
    "gem iter0": (2e-5, 4.9e-7),
    "gem temp5": (2e-5, 4.6e-7),
    "gem depth4": (2e-5, 4.3e-7),
    "heat": (1e-4, 7.2e-7),
    "heat float16": (5e-4, 2.5e-4),  # half a step of float16 just below 1 is 2.4e-4
    "cosine": (1e-4, 1.8e-7),
    "heat_ori": (1e-4, 1.1e-6),
    "batched": (1e-4, 8.4e-7),
}
GEM = {
    "default": GEMConfig(),
    "iter2": GEMConfig(iters=2),
    "iter0": GEMConfig(iters=0),
    "temp5": GEMConfig(inv_temp=5.0),
    "depth4": GEMConfig(blocks=3),  # upstream's depth counts one more
}

pytestmark = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)
every_size = pytest.mark.parametrize("size", SIZES)


def config(model: GoldenModel) -> ModelConfig:
    return ModelConfig(
        embed=model.embed,
        activation=model.activation,
        image=ImageConfig(
            size=model.image_size,
            patch=model.patch,
            width=model.image_width,
            layers=model.image_layers,
            heads=model.image_heads,
            mlp_width=4 * model.image_width,
        ),
        text=TextConfig(
            context=model.context,
            vocab=model.vocab,
            width=model.text_width,
            layers=model.text_layers,
            heads=model.text_heads,
            mlp_width=4 * model.text_width,
        ),
    )


@cache
def network(model: GoldenModel, variant: str = "default") -> GEMNetwork:
    built = GEMNetwork(config(model), GEM[variant])
    built.load_state_dict(golden_state(model), strict=True)
    return built.eval().requires_grad_(False)


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape and found.dtype == expected.dtype == torch.float32
    return float((found - expected).abs().max() / expected.abs().max())


def absolute(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape and found.dtype == torch.float32
    return float((found - expected.float()).abs().max())


def within(stage: str, *errors: float) -> None:
    """Assert that the errors keep to one row of LIMITS (a NaN does not)."""
    tolerance, _ = LIMITS[stage]
    assert all(one <= tolerance for one in errors), (stage, tolerance, errors)


def test_tokens(model: GoldenModel) -> None:
    tokenizer = Tokenizer(vocab_size=model.vocab, context_length=model.context)
    tokens = tokenizer([TEMPLATE.format(prompt) for prompt in PROMPTS])
    assert torch.equal(tokens, golden(model, "tokens").long())


def test_text(model: GoldenModel) -> None:
    text = network(model).encode_text(golden(model, "tokens").long())
    within("text", relative(text, golden(model, "text")))


def test_plain_clip_image_embedding(model: GoldenModel) -> None:
    features = network(model).encode_image(golden_images(model, "native"))
    within("image_cls", relative(features.clip[:, 0], golden(model, "image_cls")))


@every_size
def test_both_streams(model: GoldenModel, size: str) -> None:
    features = network(model).encode_image(golden_images(model, size))
    height, width = model.image_hw(size)
    assert tuple(features.grid) == (height // model.patch, width // model.patch)
    within("clip", relative(features.clip, golden(model, f"default/{size}/ori")))
    within("gem", relative(features.gem, golden(model, f"default/{size}/gem")))


@pytest.mark.parametrize("variant", ["iter2", "iter0", "temp5", "depth4"])
def test_gem_settings(model: GoldenModel, variant: str) -> None:
    features = network(model, variant).encode_image(golden_images(model, "larger"))
    expected = golden(model, f"{variant}/larger/gem")
    within(f"gem {variant}", relative(features.gem, expected))
    # The setting is what the test is about: the default one gives another stream.
    assert relative(golden(model, "default/larger/gem"), expected) > 1e-3
    within("clip", relative(features.clip, golden(model, "default/larger/ori")))


@every_size
def test_maps_of_stored_features(model: GoldenModel, size: str) -> None:
    """The map functions alone, on upstream's own features."""
    hw = model.image_hw(size)
    grid = (hw[0] // model.patch, hw[1] // model.patch)
    text = golden(model, "text")
    patches = {
        stream: golden(model, f"default/{size}/{stream}")[:, 1:] for stream in ("gem", "ori")
    }
    heat = heatmap.heat_maps(patches["gem"], text, grid, hw)
    expected = golden(model, f"default/{size}/heat")
    within("heat float16" if expected.dtype == torch.float16 else "heat", absolute(heat, expected))
    cosine = heatmap.heat_maps(patches["gem"], text, grid, hw, normalize=False)
    within("cosine", absolute(cosine[..., ::8, ::8], golden(model, f"default/{size}/cosine")))
    plain = heatmap.heat_maps(patches["ori"], text, grid, hw)
    within("heat_ori", absolute(plain[..., ::8, ::8], golden(model, f"default/{size}/heat_ori")))


@cache
def predictor(model: GoldenModel) -> GEMPredictor:
    header = Header(
        model=model.name,
        pretrained="golden",
        config=config(model),
        gem=GEM["default"],
        size=model.image_size,
        mean=OPENAI_MEAN,
        std=OPENAI_STD,
        source="tests/golden",
        sha256="",
        verified="unverified",
        licence="MIT",
    )
    tokenizer = Tokenizer(vocab_size=model.vocab, context_length=model.context)
    return GEMPredictor(network(model), header, tokenizer).eval()


@every_size
def test_maps_from_pictures_and_words(model: GoldenModel, size: str) -> None:
    """The whole way: tokens, both towers, cosine, bilinear, min-max."""
    images, prompts = golden_images(model, size), list(PROMPTS)
    heat = predictor(model)(images, prompts)
    expected = golden(model, f"default/{size}/heat")
    within("heat float16" if expected.dtype == torch.float16 else "heat", absolute(heat, expected))
    cosine = predictor(model)(images, prompts, normalize=False)[..., ::8, ::8]
    within("cosine", absolute(cosine, golden(model, f"default/{size}/cosine")))
    plain = predictor(model)(images, prompts, return_ori=True)[..., ::8, ::8]
    within("heat_ori", absolute(plain, golden(model, f"default/{size}/heat_ori")))


@every_size
def test_batched_forward(model: GoldenModel, size: str) -> None:
    own_prompts = [list(PROMPTS[:1]), list(PROMPTS[1:])]
    maps = predictor(model).batched_forward(golden_images(model, size), own_prompts)
    assert len(maps) == 2
    for i, one in enumerate(maps):
        expected = golden(model, f"default/{size}/batched{i}")
        within("batched", absolute(one[..., ::8, ::8], expected))


def test_encode_text_gives_unit_norm(model: GoldenModel) -> None:
    expected = torch.nn.functional.normalize(golden(model, "text"), dim=-1)[None]
    within("text", relative(predictor(model).encode_text(list(PROMPTS)), expected))
