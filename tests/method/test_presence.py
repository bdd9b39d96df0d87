"""Presence of words, and maps on one scale: against the formulas, and on the model in the box."""

import math

import numpy as np
import pytest
import torch
from small import random_images, small_model

import gem_lite
from gem_lite.method.presence import CENTRE, NEUTRAL, SLOPE, common_scale, evidence, presence
from gem_lite.tools.demo import demo_picture


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def unit(values: torch.Tensor) -> np.ndarray:
    array = values.double().numpy()
    return array / np.linalg.norm(array, axis=-1, keepdims=True)


def test_presence_is_the_formula() -> None:
    whole, patches, text, neutral = (
        random(2, 8),
        random(2, 5, 8, seed=1),
        random(3, 8, seed=2),
        random(7, 8, seed=3),
    )
    found = presence(whole, patches, text, neutral)
    assert found.shape == (2, 3) and found.dtype == torch.float32
    for picture in range(2):

        def of(words: np.ndarray, picture: int = picture) -> np.ndarray:
            best = (unit(patches)[picture] @ words.T).max(axis=0)
            return np.asarray(words @ unit(whole)[picture] + best)

        others = of(unit(neutral))
        z = (of(unit(text)) - others.mean()) / others.std(ddof=1)
        expected = [1 / (1 + math.exp(-SLOPE * (each - CENTRE))) for each in z]
        assert found[picture].tolist() == pytest.approx(expected, rel=1e-4)


def test_a_word_among_the_neutral_ones_is_hardly_there() -> None:
    whole, patches, neutral = random(1, 8), random(1, 5, 8, seed=1), random(40, 8, seed=3)
    found = presence(whole, patches, neutral, neutral)
    assert float(found.mean()) < 0.25
    order = evidence(whole, patches, neutral).argsort()
    assert found.argsort().equal(order)


def test_neutral_words_without_spread() -> None:
    """All neutral words alike: what is above them is there, what is below is not, nothing NaN."""
    neutral = random(1, 8, seed=3).expand(6, 8)
    whole, patches = neutral[:1], neutral[None, :2]
    found = presence(whole, patches, torch.cat([neutral[:1], -neutral[:1]]), neutral)
    assert found.isfinite().all() and float(found[0, 1]) == 0.0


def test_common_scale() -> None:
    maps = torch.tensor([[[[0.1, 0.5]], [[0.3, 0.4]], [[0.2, 0.2]]]])  # spans 0.4, 0.1, 0
    present = torch.tensor([[1.0, 0.5, 0.9]])
    found = common_scale(maps, present)
    expected = torch.tensor([[[[0.0, 1.0]], [[0.0, 0.125]], [[0.0, 0.0]]]])
    torch.testing.assert_close(found, expected)
    # Each picture has a scale of its own, and maps of rounding only stay dark.
    both = common_scale(torch.cat([maps, 0.01 * maps]), present.expand(2, 3))
    torch.testing.assert_close(both, expected.expand(2, -1, -1, -1))
    flat = torch.full((1, 2, 3, 3), 0.3)
    flat[0, 0, 0, 0] += 3e-8
    assert common_scale(flat, torch.ones(1, 2)).count_nonzero() == 0


def test_the_predictor_joins_them() -> None:
    model, images, words = small_model(), random_images(2, 40, 48), ["cat", "dog", "a tree"]
    with torch.no_grad():
        present = model.presence(images, words)
        raw = model(images, words, normalize=False)
        common = model(images, words, normalize="common")
        assert present.shape == (2, 3) and ((present > 0) & (present < 1)).all()
        torch.testing.assert_close(common, common_scale(raw, present))
        lists = [["dog"], ["a tree", "cat"]]
        first, second = model.batched_forward(images, lists, normalize="common")
        torch.testing.assert_close(first, model(images[:1], ["dog"], normalize="common")[0])
        torch.testing.assert_close(second[:1], model(images[1:], lists[1], "common")[0, :1])
        # Of words and of their embeddings alike; a picture's neighbours change nothing.
        embedded = model.encode_text(words)
        torch.testing.assert_close(model.presence(images[1:], embedded), present[1:])
        plain = model.presence(images, words, return_ori=True)
        assert not torch.allclose(plain, present)
        torch.testing.assert_close(
            model(images, words, normalize="common", return_ori=True),
            common_scale(model(images, words, normalize=False, return_ori=True), plain),
        )


def test_gradients_pass() -> None:
    model, images = small_model(), random_images(1, 40, 40).requires_grad_()
    model(images, ["cat", "dog"], normalize="common").sum().backward()
    assert images.grad is not None and float(images.grad.abs().sum()) > 0


def test_another_word_for_normalize() -> None:
    with pytest.raises(ValueError, match="normalize is 'all'; expected True, False or 'common'"):
        small_model()(random_images(1, 40, 40), ["cat"], normalize="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("tag", ["v1", "v2"])
def test_absent_words_fade_in_the_demonstration(tag: str) -> None:
    model, transform = gem_lite.create_model_and_transforms("tiny-emoji", tag)
    absent = ["umbrella", "bicycle", "strawberry"]
    there, faded = [], []
    for name in ("demo.png", "demo-2.png", "demo-3.png"):
        picture, words = demo_picture(name)
        with torch.no_grad():
            image = transform(picture)[None]
            maps = model(image, [*words, *absent], normalize="common")[0]
            present = model.presence(image, [*words, *absent])[0]
        assert float(maps.max()) <= 1 and float(maps.min()) >= 0
        assert (maps.amax(dim=(1, 2)) <= present + 1e-6).all()
        there.append(maps[: len(words)].amax(dim=(1, 2)).mean())
        faded.append(maps[len(words) :].amax(dim=(1, 2)).mean())
    assert sum(there) > 3 * sum(faded)


def test_neutral_words_are_words_once() -> None:
    assert len(set(NEUTRAL)) == len(NEUTRAL) > 30
