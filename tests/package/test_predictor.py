"""The model object: words and images in, maps out; the text cache; what is said of bad input."""

import copy
import pickle
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from small import CONFIG, GEM, random_images, small_header, small_model
from torch import Tensor, nn

import gem_lite as gem
from gem_lite.method.config import ARCHITECTURES
from gem_lite.method.heatmap import min_max
from gem_lite.method.methods.gem import GEMConfig
from gem_lite.method.segment import label_maps
from gem_lite.pictures.overlays import visualize
from gem_lite.predictor import GEMPredictor

WORDS = ["cat", "remote control", "a sofa"]
NAMES = ["cat", "dog", "sofa", "tree"]


@pytest.fixture
def model() -> GEMPredictor:
    return small_model()


def text_by_hand(model: GEMPredictor, texts: Sequence[str]) -> Tensor:
    """Full-length rows straight through the network, [p, e], unit norm."""
    rows = model.network.encode_text(model.tokenizer(list(texts)))
    return rows.detach() / rows.detach().norm(dim=-1, keepdim=True)


def cosine_by_hand(
    model: GEMPredictor, images: Tensor, text: Tensor, plain: bool = False
) -> Tensor:
    """[b, p, h, w] from the network's features."""
    features = model.network.encode_image(images)
    patches = (features.clip if plain else features.gem)[:, 1:].detach()
    patches = patches / patches.norm(dim=-1, keepdim=True)
    scores = torch.einsum("bne,pe->bpn", patches, text)
    maps = scores.reshape(len(images), len(text), *features.grid)
    return F.interpolate(maps, images.shape[-2:], mode="bilinear", align_corners=False)


def same(found: Tensor, expected: Tensor, limit: float = 2e-6) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=limit)


# ---- maps


@pytest.mark.parametrize("return_ori", [False, True])
@pytest.mark.parametrize(("h", "w"), [(40, 40), (64, 48), (47, 30)])
def test_forward(model: GEMPredictor, h: int, w: int, return_ori: bool) -> None:
    images = random_images(2, h, w)
    text = text_by_hand(model, [f"a photo of a {word}." for word in WORDS])
    cosine = cosine_by_hand(model, images, text, return_ori)
    raw = model(images, WORDS, normalize=False, return_ori=return_ori)
    assert raw.shape == (2, 3, h, w) and raw.dtype == torch.float32
    assert raw.abs().max() <= 1
    same(raw, cosine)
    heat = model(images, WORDS, True, return_ori)
    assert torch.equal(heat.amin(dim=(2, 3)), torch.zeros(2, 3))
    assert torch.equal(heat.amax(dim=(2, 3)), torch.ones(2, 3))
    assert torch.equal(heat, min_max(raw))
    same(heat, min_max(cosine), limit=2e-5)


def test_the_two_streams_differ(model: GEMPredictor) -> None:
    images = random_images(1, 40, 40)
    ours, plain = model(images, WORDS), model(images, WORDS, return_ori=True)
    assert (ours - plain).abs().max() > 0.1


def test_depth_one_is_plain_clip() -> None:
    model, images = small_model(GEMConfig(blocks=0)), random_images(1, 40, 40)
    assert torch.equal(model(images, WORDS), model(images, WORDS, return_ori=True))


def test_maps_do_not_depend_on_the_other_prompts_or_images(model: GEMPredictor) -> None:
    images = random_images(3, 40, 48)
    together = model(images, WORDS)
    for image in range(3):
        for place, word in enumerate(WORDS):
            alone = model(images[image : image + 1], [word])
            same(together[image, place], alone[0, 0], limit=2e-5)


def test_a_prompt_twice_is_a_map_twice(model: GEMPredictor) -> None:
    maps = model(random_images(1, 40, 40), ["cat", "dog", "cat"])
    same(maps[:, 0], maps[:, 2], limit=2e-5)
    assert (maps[:, 0] - maps[:, 1]).abs().max() > 0.1


@pytest.mark.parametrize("shape", [(8, 8), (15, 9)], ids=["one patch", "one patch and a rest"])
def test_constant_maps_are_zeros(model: GEMPredictor, shape: tuple[int, int]) -> None:
    images = random_images(2, *shape)
    assert torch.equal(model(images, WORDS), torch.zeros(2, 3, *shape))
    assert torch.equal(model.batched_forward(images, [["cat"]] * 2)[1], torch.zeros(1, *shape))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 100.0])
def test_constant_images_give_numbers(model: GEMPredictor, value: float) -> None:
    images = torch.full((1, 3, 40, 48), value)
    for return_ori in (False, True):
        maps = model(images, WORDS, return_ori=return_ori)
        assert maps.isfinite().all() and maps.min() >= 0 and maps.max() <= 1


def test_a_model_without_positions_maps_a_constant_image_to_zeros(model: GEMPredictor) -> None:
    """Every patch is then the same but for roundings."""
    with torch.no_grad():
        model.network.visual.positional_embedding.zero_()
        maps = model(torch.full((1, 3, 64, 72), 0.7), WORDS)
    assert maps.isfinite().all() and maps.min() >= 0 and maps.max() <= 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_images_of_any_float_dtype_are_cast(model: GEMPredictor, dtype: torch.dtype) -> None:
    images = random_images(1, 40, 40).to(dtype)
    found = model(images, WORDS)
    assert found.dtype == torch.float32
    assert torch.equal(found, model(images.float(), WORDS))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_maps_and_embeddings_are_float32_whatever_the_model(dtype: torch.dtype) -> None:
    """Also a model that was turned into float64, say to check gradients."""
    model, images = small_model(), random_images(1, 40, 40)
    with torch.no_grad():
        expected = model(images, WORDS, normalize=False)
        model.to(dtype)
        maps = model(images, WORDS, normalize=False)
        assert maps.dtype == torch.float32
        same(maps, expected, limit=0.05)
        assert model.batched_forward(images, [WORDS])[0].dtype == torch.float32
        assert model.encode_text(WORDS).dtype == torch.float32
        features = model.encode_image(images)
        assert features.gem.dtype == features.class_embedding.dtype == torch.float32
        assert model.classify(images, NAMES).dtype == torch.float32
        assert model.segment(images, NAMES).confidence.dtype == torch.float32


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_images_from_the_cpu_go_to_the_models_device(model: GEMPredictor) -> None:
    images = random_images(1, 40, 40)
    expected = model(images, WORDS)
    found = model.cuda()(images, WORDS)
    assert found.device.type == "cuda"
    same(found.cpu(), expected, limit=1e-3)


def test_eval_or_train_mode_changes_nothing(model: GEMPredictor) -> None:
    images = random_images(1, 40, 40)
    assert torch.equal(model(images, WORDS), model.train()(images, WORDS))


def test_inputs_are_left_alone(model: GEMPredictor) -> None:
    images, words = random_images(1, 40, 40), list(WORDS)
    given = images.clone()
    model(images, words)
    model.batched_forward(images, [words])
    model.segment(images, words, window=24, threshold=0.3)
    assert torch.equal(images, given) and words == WORDS


# ---- batches with prompts of their own


def test_batched_forward_equals_separate_calls(model: GEMPredictor) -> None:
    images = random_images(4, 40, 48)
    embeddings = model.encode_text(["joker", "purple suit"])
    texts = [["remote control", "cat"], ["cat"], embeddings, ["belt", "cat", "shoe", "belt"]]
    for normalize in (True, False):
        for return_ori in (True, False):
            found = model.batched_forward(images, texts, normalize, return_ori)
            assert [tuple(maps.shape) for maps in found] == [
                (2, 40, 48),
                (1, 40, 48),
                (2, 40, 48),
                (4, 40, 48),
            ]
            for index, maps in enumerate(found):
                alone = model(images[index : index + 1], texts[index], normalize, return_ori)
                same(maps, alone[0], limit=2e-5 if normalize else 2e-6)


def test_batched_forward_takes_templates(model: GEMPredictor) -> None:
    images, templates = random_images(2, 40, 40), ["{}", "one {}"]
    found = model.batched_forward(images, [["cat"], ["dog", "cat"]], templates=templates)
    same(found[1], model(images[1:], ["dog", "cat"], templates=templates)[0], limit=2e-5)


def test_batched_forward_encodes_each_word_once(model: GEMPredictor) -> None:
    rows = counted_rows(model)
    model.batched_forward(random_images(2, 40, 40), [["cat", "dog"], ["dog", "cat", "tree"]])
    assert rows == [3]


def test_batched_forward_of_embeddings_only(model: GEMPredictor) -> None:
    rows = counted_rows(model)
    text = F.normalize(torch.randn(2, 20), dim=-1)
    found = model.batched_forward(random_images(2, 40, 40), [text, text[:1]])
    assert [len(maps) for maps in found] == [2, 1] and rows == []


# ---- text


def test_encode_text(model: GEMPredictor) -> None:
    found = model.encode_text(WORDS)
    assert found.shape == (1, 3, 20) and found.dtype == torch.float32
    same(found.norm(dim=-1), torch.ones(1, 3))
    same(found[0], text_by_hand(model, [f"a photo of a {word}." for word in WORDS]))


def test_short_rows_give_what_full_rows_give(model: GEMPredictor) -> None:
    """A batch is cut behind its longest prompt; the blocks are causal."""
    words = ["cat", "a very long sentence that goes on and on and is cut at the end of the row, so"]
    found = model.encode_text(words)
    assert model.tokenizer([f"a photo of a {words[1]}."]).argmax() == 29
    same(found[0], text_by_hand(model, [f"a photo of a {word}." for word in words]))
    same(model.encode_text(["cat"]), found[:, :1])


def test_one_template(model: GEMPredictor) -> None:
    found = model.encode_text(WORDS, templates="the {} itself")
    same(found[0], text_by_hand(model, [f"the {word} itself" for word in WORDS]))
    assert torch.equal(found, model.encode_text(WORDS, templates=["the {} itself"]))


def test_many_templates_are_averaged_as_directions(model: GEMPredictor) -> None:
    templates = ("a photo of a {}.", "{}", "art of the {}, a {}")
    found = model.encode_text(WORDS, templates=templates)
    for place, word in enumerate(WORDS):
        each = text_by_hand(model, [template.replace("{}", word) for template in templates])
        mean = each.mean(dim=0)
        same(found[0, place], mean / mean.norm())


def test_words_with_braces_and_percent_signs(model: GEMPredictor) -> None:
    """A word is put in as it is, not read as a format."""
    for word in ("{0}", "{}", "100%", "{cat"):
        same(model.encode_text([word])[0], text_by_hand(model, [f"a photo of a {word}."]))


def test_more_prompts_than_go_at_once(model: GEMPredictor) -> None:
    words = [f"thing {number}" for number in range(300)]
    rows = counted_rows(model)
    found = model.encode_text(words)
    assert found.shape == (1, 300, 20) and max(rows) <= 256 and sum(rows) == 300
    same(found[:, 290:], small_model().encode_text(words[290:]))


@pytest.mark.parametrize("three", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("length", [1.0, 7.0])
def test_embeddings_as_text(
    model: GEMPredictor, three: bool, dtype: torch.dtype, length: float
) -> None:
    """Of any length and float dtype, [p, e] or [1, p, e]: what counts is the direction."""
    images = random_images(2, 40, 40)
    text = model.encode_text(WORDS).detach()
    given = ((text if three else text[0]) * length).to(dtype)
    limit = 1e-3 if dtype == torch.float16 else 2e-6
    raw = model(images, given, normalize=False)
    assert raw.dtype == torch.float32
    same(raw, model(images, WORDS, normalize=False), limit)
    same(model.classify(images, given), model.classify(images, WORDS), 20 * limit)
    found = model.batched_forward(images, [given, given], normalize=False)
    same(torch.stack(found), raw)


# ---- features and classification


def test_encode_image(model: GEMPredictor) -> None:
    images = random_images(2, 48, 40)
    found = model.encode_image(images)
    assert isinstance(found, gem.DenseFeatures)
    assert found._fields == ("clip", "gem", "grid", "class_embedding")
    expected = model.network.encode_image(images)
    assert found.grid == (6, 5)
    assert torch.equal(found.clip, expected.clip[:, 1:])
    assert torch.equal(found.gem, expected.gem[:, 1:])
    assert torch.equal(found.class_embedding, expected.clip[:, 0])


def test_maps_can_be_made_from_the_features(model: GEMPredictor) -> None:
    """As README tells: cosine of patches and text, laid out on the grid."""
    images = random_images(1, 48, 40)
    features, text = model.encode_image(images), model.encode_text(WORDS)
    scores = F.normalize(features.gem, dim=-1) @ text[0].T  # [1, n, p]
    maps = scores.mT.unflatten(-1, features.grid)
    maps = F.interpolate(maps, (48, 40), mode="bilinear", align_corners=False)
    same(maps, model(images, WORDS, normalize=False))


def test_classify_is_clips_formula(model: GEMPredictor) -> None:
    images = random_images(3, 40, 40)
    found = model.classify(images, NAMES)
    assert found.shape == (3, 4) and found.dtype == torch.float32
    same(found.sum(dim=1), torch.ones(3))
    text = text_by_hand(model, [f"a photo of a {name}." for name in NAMES])
    image = model.network.encode_image(images).clip[:, 0]
    image = image / image.norm(dim=-1, keepdim=True)
    expected = torch.softmax(image @ text.T / 0.07, dim=1)  # the random start's scale
    same(found, expected, limit=1e-5)
    assert found.std() > 1e-3


# ---- segmentation


def test_segment_is_label_maps_of_the_cosines(model: GEMPredictor) -> None:
    images = random_images(2, 48, 40)
    cosine = model(images, NAMES, normalize=False)
    found = model.segment(images, NAMES, scale=30.0, threshold=0.3)
    assert isinstance(found, gem.Segmentation)
    expected = label_maps(cosine, scale=30.0, threshold=0.3)
    assert torch.equal(found.labels, expected.labels)
    same(found.confidence, expected.confidence)
    assert found.labels.shape == found.confidence.shape == (2, 48, 40)
    again = model.segment(images, NAMES, scale=30.0, background=0.3)
    assert torch.equal(again.labels, expected.labels)
    plain = model.segment(images, NAMES, return_ori=True)
    assert torch.equal(
        plain.labels, model(images, NAMES, normalize=False, return_ori=True).argmax(dim=1) + 1
    )


def test_segment_with_synonyms_and_background_words(model: GEMPredictor) -> None:
    images = random_images(1, 40, 40)
    classes = [["cat", "kitten"], "dog"]
    found = model.segment(images, classes, background=["sky", "grass"], scale=80.0)
    words = ["cat", "kitten", "dog", "sky", "grass"]
    cosine = model(images, words, normalize=False)
    expected = label_maps(cosine, groups=[0, 0, 1, 2, 3], classes=2, scale=80.0)
    assert torch.equal(found.labels, expected.labels)
    assert set(found.labels.unique().tolist()) <= {0, 1, 2}


def test_segment_in_windows(model: GEMPredictor) -> None:
    images = random_images(1, 40, 64)
    found = model.segment(images, NAMES, window=24, stride=8)
    total, count = torch.zeros(1, 4, 40, 64), torch.zeros(40, 64)
    for top in (0, 8, 16):
        for left in (0, 8, 16, 24, 32, 40):
            part = images[:, :, top : top + 24, left : left + 24]
            total[:, :, top : top + 24, left : left + 24] += model(part, NAMES, normalize=False)
            count[top : top + 24, left : left + 24] += 1
    same(found.confidence, (50 * total / count).softmax(dim=1).amax(dim=1), limit=2e-5)
    half = model.segment(images, NAMES, window=(24, 24))
    stepped = model.segment(images, NAMES, window=24, stride=12)
    assert torch.equal(half.confidence, stepped.confidence)


def test_segment_with_one_window_over_all_is_the_whole_image(model: GEMPredictor) -> None:
    images = random_images(2, 40, 64)
    whole = model.segment(images, NAMES)
    for window in (64, (40, 64), 500):
        found = model.segment(images, NAMES, window=window)
        assert torch.equal(found.labels, whole.labels)
        assert torch.equal(found.confidence, whole.confidence)


def test_segment_does_not_depend_on_batch_and_chunk(model: GEMPredictor) -> None:
    """But where the two best classes differ by less than 1e-5."""
    images = random_images(3, 48, 64)
    names = [f"thing {number}" for number in range(9)]
    classes = [names[:2], *names[2:]]
    first = model.segment(images, classes, window=32, stride=16, flip=True)
    every = model.network.encode_image  # counts forward passes
    for batch, chunk in ((1, 1), (5, 2), (100, 3), (7, 100)):
        calls = []

        def counted(part: Tensor, calls: list[int] = calls) -> Any:
            calls.append(len(part))
            return every(part)

        model.network.encode_image = counted  # type: ignore[method-assign]
        found = model.segment(
            images, classes, window=32, stride=16, flip=True, batch=batch, chunk=chunk
        )
        model.network.encode_image = every  # type: ignore[method-assign]
        assert max(calls) <= batch and sum(calls) == 2 * 3 * 2 * 3
        same(found.confidence, first.confidence, limit=1e-5)
        sure = first.confidence > 0.13  # nine words are all but equal under random weights
        assert (found.labels == first.labels).float().mean() > 0.999
        assert torch.equal(found.labels[sure], first.labels[sure])
    alone = torch.cat(
        [
            model.segment(one[None], classes, window=32, stride=16, flip=True).labels
            for one in images
        ]
    )
    assert (alone == first.labels).float().mean() > 0.999


def test_segment_flipped(model: GEMPredictor) -> None:
    """The mean of both maps; and a mirrored picture gets the mirrored answer."""
    images = random_images(1, 40, 64)
    found = model.segment(images, NAMES, flip=True)
    maps = model(images, NAMES, normalize=False)
    other = model(images.flip(-1), NAMES, normalize=False).flip(-1)
    same(found.confidence, (25 * (maps + other)).softmax(dim=1).amax(dim=1), limit=1e-5)
    mirrored = model.segment(images.flip(-1), NAMES, flip=True)
    same(mirrored.confidence.flip(-1), found.confidence, limit=1e-5)
    assert (mirrored.labels.flip(-1) == found.labels).float().mean() > 0.99


def test_segment_with_a_short_side(model: GEMPredictor) -> None:
    images = random_images(1, 40, 64)
    found = model.segment(images, NAMES, short_side=24)
    small = F.interpolate(images, (24, 38), mode="bicubic", antialias=True)
    maps = F.interpolate(model(small, NAMES, normalize=False), (40, 64), mode="bilinear")
    assert found.labels.shape == (1, 40, 64)
    same(found.confidence, (50 * maps).softmax(dim=1).amax(dim=1), limit=1e-5)
    assert model.segment(images, NAMES, short_side=24, size=(9, 7)).labels.shape == (1, 9, 7)


def test_segment_keeps_no_graph(model: GEMPredictor) -> None:
    assert not model.segment(random_images(1, 40, 40), NAMES).confidence.requires_grad


def test_segment_at_another_size(model: GEMPredictor) -> None:
    """The maps are resized, not the labels."""
    images = random_images(1, 40, 40)
    found = model.segment(images, NAMES, size=(13, 29))
    cosine = model(images, NAMES, normalize=False)
    resized = F.interpolate(cosine, (13, 29), mode="bilinear", align_corners=False)
    assert found.labels.shape == (1, 13, 29)
    assert torch.equal(found.labels, resized.argmax(dim=1) + 1)


# ---- the text cache


def counted_rows(model: GEMPredictor) -> list[int]:
    """A list that grows by the number of rows each time the text tower runs."""
    rows: list[int] = []
    encode = model.network.encode_text

    def counting(tokens: Tensor) -> Tensor:
        rows.append(len(tokens))
        return encode(tokens)

    model.network.encode_text = counting  # type: ignore[method-assign]
    return rows


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_second_call_does_not_encode_again(
    model: GEMPredictor, mode: Callable[[], torch.no_grad]
) -> None:
    rows = counted_rows(model)
    with mode():
        first = model.encode_text(WORDS)
        assert torch.equal(model.encode_text(WORDS), first)
        assert torch.equal(model.encode_text(WORDS[::-1]), first.flip(1))
        assert rows == [3]
        more = model.encode_text([*WORDS, "tree"])
        assert torch.equal(more[:, :3], first) and rows == [3, 1]
        model.encode_text(WORDS, templates="{}")
        model.encode_text(WORDS, templates=["{}", "a photo of a {}."])
        assert rows == [3, 1, 3, 6]
        model(random_images(1, 40, 40), WORDS)
        model.batched_forward(random_images(1, 40, 40), [WORDS])
        model.classify(random_images(1, 40, 40), WORDS)
        assert rows == [3, 1, 3, 6]
        model.clear_text_cache()
        assert torch.equal(model.encode_text(WORDS), first) and rows[4:] == [3]


def test_what_is_returned_can_be_changed_without_harm(model: GEMPredictor) -> None:
    with torch.no_grad():
        first = model.encode_text(WORDS)
        kept = first.clone()
        first.zero_()
        assert torch.equal(model.encode_text(WORDS), kept)
        model.encode_text(WORDS).zero_()
        assert torch.equal(model.encode_text(WORDS), kept)


def other_weights(model: GEMPredictor) -> dict[str, Tensor]:
    return small_model(seed=1).state_dict()


def optimizer_step(model: GEMPredictor) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with torch.enable_grad():
        model.encode_text(["other"]).sum().backward()
    optimizer.step()


def assign_data(model: GEMPredictor) -> None:
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.5 + 0.1


def change_data(model: GEMPredictor) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(1.5).add_(0.1)


def replace_parameter(model: GEMPredictor) -> None:
    layer = model.network.transformer.resblocks[0].mlp.c_fc
    layer.weight = nn.Parameter(layer.weight.detach() * 3)


CHANGES: dict[str, Callable[[GEMPredictor], object]] = {
    "load_state_dict": lambda model: model.load_state_dict(other_weights(model)),
    "assign": lambda model: model.load_state_dict(other_weights(model), assign=True),
    "optimizer": optimizer_step,
    "half": lambda model: model.half(),
    "bfloat16": lambda model: model.to(torch.bfloat16),
    "data assigned": assign_data,
    "data changed": change_data,
    "a new parameter": replace_parameter,
}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights_are_seen(
    model: GEMPredictor,
    change: Callable[[GEMPredictor], object],
    mode: Callable[[], torch.no_grad],
) -> None:
    with mode():
        before = model.encode_text(WORDS)
    change(model)
    with mode():
        after = model.encode_text(WORDS)
        model.clear_text_cache()
        assert torch.equal(after, model.encode_text(WORDS))
    assert not torch.equal(after, before)


def test_a_change_of_any_text_parameter_is_seen(model: GEMPredictor) -> None:
    names = [
        name
        for name, _ in model.network.named_parameters()
        if not name.startswith("visual.") and name != "logit_scale"
    ]
    assert len(names) == 2 * 12 + 5
    for name in names:
        with torch.no_grad():
            before = model.encode_text(WORDS)
            parameter = model.network.get_parameter(name)
            parameter.add_(torch.rand(parameter.shape))
            assert not torch.equal(model.encode_text(WORDS), before), name


def test_image_weights_do_not_cost_the_cache(model: GEMPredictor) -> None:
    rows = counted_rows(model)
    with torch.no_grad():
        model.encode_text(WORDS)
        model.network.visual.proj.add_(1)
        model.encode_text(WORDS)
    assert rows == [3]


@pytest.mark.parametrize("before", [nullcontext, torch.no_grad, torch.inference_mode])
def test_gradients_reach_the_text_tower_whatever_was_kept(
    model: GEMPredictor, before: Callable[[], torch.no_grad]
) -> None:
    images = random_images(1, 40, 40)
    with before():
        model(images, WORDS)
    model(images, WORDS, normalize=False).square().sum().backward()
    for name, parameter in model.network.named_parameters():
        last = "visual.transformer.resblocks.2."
        silent = name == "logit_scale" or name.startswith((last + "mlp", last + "ln_2"))
        reached = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert reached != silent, name


def test_one_trained_text_parameter_is_enough(model: GEMPredictor) -> None:
    model.requires_grad_(False)
    bias = model.network.transformer.resblocks[0].attn.in_proj_bias.requires_grad_()
    with torch.no_grad():
        model.encode_text(WORDS)
    model.encode_text(WORDS)[..., 0].sum().backward()
    assert bias.grad is not None and bias.grad.abs().max() > 0


def test_a_frozen_text_tower_is_kept_while_the_image_tower_trains(model: GEMPredictor) -> None:
    model.requires_grad_(False)
    model.network.visual.proj.requires_grad_()
    images = random_images(1, 40, 40)
    with torch.inference_mode():
        model(images, WORDS)  # its tensors may not enter a graph
    rows = counted_rows(model)
    for _ in range(2):
        model(images, WORDS, normalize=False).square().sum().backward()
    assert rows == [3]
    assert model.network.visual.proj.grad is not None


def test_nothing_is_kept_while_gradients_are_needed(model: GEMPredictor) -> None:
    rows = counted_rows(model)
    model.encode_text(WORDS)
    model.encode_text(WORDS)
    with torch.no_grad():
        model.encode_text(WORDS)
    assert rows == [3, 3, 3]


def test_a_model_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model = small_model()
        assert torch.equal(model.encode_text(WORDS), model.encode_text(WORDS))
        model(random_images(1, 40, 40), WORDS)


def test_the_cache_is_bounded(model: GEMPredictor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gem_lite.prompts.CACHED_PROMPTS", 5)
    with torch.no_grad():
        for start in range(0, 30, 3):
            words = [f"thing {number}" for number in range(start, start + 3)]
            same(
                model.encode_text(words)[0],
                text_by_hand(model, [f"a photo of a {w}." for w in words]),
            )
        many = [f"word {number}" for number in range(12)]
        assert model.encode_text(many).shape == (1, 12, 20)
    assert len(model._texts) <= 5


def test_the_cache_keeps_no_batch_alive(model: GEMPredictor) -> None:
    with torch.no_grad():
        model.encode_text(WORDS)
    assert len(model._texts) == 3
    for kept in model._texts._cache[1].values():
        assert kept.untyped_storage().nbytes() == kept.numel() * kept.element_size()


def test_the_cache_is_not_copied(model: GEMPredictor) -> None:
    with torch.no_grad():
        expected = model(random_images(1, 40, 40), WORDS)
    assert len(model._texts)
    for again in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        assert len(again._texts) == 0
        assert again.header == model.header
        with torch.no_grad():
            assert torch.equal(again(random_images(1, 40, 40), WORDS), expected)
        again.clear_text_cache()
    assert len(model._texts)


def test_data_parallel_replicas(model: GEMPredictor) -> None:
    """What torch.nn.parallel.replicate does to a module, without its devices: a replica's tensors
    are plain attributes, so it cannot tell whether they are trained or changed."""
    with torch.no_grad():
        model.encode_text(WORDS)

    def replicated(module: nn.Module) -> nn.Module:
        replica = module._replicate_for_data_parallel()
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else replicated(child)
        for name, parameter in module._parameters.items():
            copied = None if parameter is None else parameter * 1
            setattr(replica, name, copied)
        return replica

    assert len(list(replicated(model).parameters())) == 0
    model.requires_grad_(False)
    bias = model.network.transformer.resblocks[0].mlp.c_fc.bias.requires_grad_()
    kept = set(model._texts._cache[1])
    found = replicated(model)(random_images(1, 40, 40), WORDS, normalize=False)
    assert set(model._texts._cache[1]) == kept  # the replica shares the cache, and leaves it alone
    same(found, model(random_images(1, 40, 40), WORDS, normalize=False))
    found.square().sum().backward()
    assert bias.grad is not None and bias.grad.abs().max() > 0


def test_data_parallel_without_devices(model: GEMPredictor) -> None:
    images = random_images(2, 40, 40)
    same(nn.DataParallel(model)(images, WORDS), model(images, WORDS), limit=2e-5)


# ---- as a module


def test_keys_live_under_network(model: GEMPredictor) -> None:
    assert set(model.state_dict()) == {f"network.{name}" for name in model.network.state_dict()}
    assert model.network.visual.conv1.weight.shape == (48, 3, 8, 8)


def test_printing_names_the_weights(model: GEMPredictor) -> None:
    assert "'small', 'random'" in repr(model)


def test_the_model_draws_with_its_own_mean_and_std(tmp_path: Path) -> None:
    model = small_model()
    model.header = small_header(mean=(0.5,) * 3, std=(0.5,) * 3)
    image = torch.zeros(1, 3, 24, 24)
    maps = torch.rand(1, 2, 24, 24)
    shown = model.visualize(image, ["a", "b"], maps, 0.0, tmp_path / "sheet.png")
    expected = visualize(image, ["a", "b"], maps, alpha=0.0, mean=(0.5,) * 3, std=(0.5,) * 3)
    assert [one.tobytes() for one in shown] == [one.tobytes() for one in expected]
    assert shown[0].getpixel((12, shown[0].height - 12)) == (128, 128, 128)
    assert (tmp_path / "sheet.png").is_file()


# ---- bad input

IMAGE = torch.zeros(1, 3, 40, 40)
BAD_CALLS: dict[str, tuple[Callable[[GEMPredictor], object], type[Exception], str]] = {
    "a picture": (
        lambda m: m(Image.new("RGB", (40, 40)), WORDS),
        TypeError,
        r"images is of type Image; expected a float tensor \[batch, 3, .*transform\(picture\)",
    ),
    "an array": (lambda m: m(np.zeros((1, 3, 40, 40)), WORDS), TypeError, "of type ndarray"),
    "integers": (
        lambda m: m(torch.zeros(1, 3, 40, 40, dtype=torch.uint8), WORDS),
        TypeError,
        "images holds torch.uint8; expected floating point",
    ),
    "no batch axis": (
        lambda m: m(IMAGE[0], WORDS),
        ValueError,
        r"shape \[3, 40, 40\].*unsqueeze\(0\)",
    ),
    "five axes": (
        lambda m: m(IMAGE[None], WORDS),
        ValueError,
        r"shape \[1, 1, 3, 40, 40\]; expected",
    ),
    "one channel": (lambda m: m(IMAGE[:, :1], WORDS), ValueError, r"\[1, 1, 40, 40\]; expected"),
    "four channels": (
        lambda m: m(torch.zeros(1, 4, 40, 40), WORDS),
        ValueError,
        r"\[1, 4, 40, 40\]; expected \[batch, 3, height, width\]",
    ),
    "channels last": (
        lambda m: m(IMAGE.movedim(1, 3), WORDS),
        ValueError,
        r"\[1, 40, 40, 3\]; expected \[batch, 3, height, width\]",
    ),
    "no image": (lambda m: m(IMAGE[:0], WORDS), ValueError, "empty batch; expected at least one"),
    "low image": (
        lambda m: m(IMAGE[:, :, :7], WORDS),
        ValueError,
        r"images of 7 x 40 pixels \(h x w\); expected at least one patch, 8 x 8",
    ),
    "thin image": (lambda m: m(IMAGE[..., :7], WORDS), ValueError, "40 x 7 pixels"),
    "no prompts": (lambda m: m(IMAGE, []), ValueError, "no prompts: the list is empty"),
    "a string": (
        lambda m: m(IMAGE, "cat"),
        TypeError,
        r"prompts is the string 'cat'; expected a list: \['cat'\]",
    ),
    "None": (lambda m: m(IMAGE, None), TypeError, "of type NoneType; expected a list of strings"),
    "a number among words": (
        lambda m: m(IMAGE, ["cat", 3]),
        TypeError,
        "a prompt is 3, of type int; expected a string",
    ),
    "a list in a list": (
        lambda m: m(IMAGE, [["cat"]]),
        TypeError,
        "of type list; expected a string",
    ),
    "narrow embeddings": (
        lambda m: m(IMAGE, torch.zeros(2, 19)),
        ValueError,
        r"shape \[2, 19\].*expected floating point \[prompts, 20\] or \[1, prompts, 20\]",
    ),
    "one embedding": (lambda m: m(IMAGE, torch.zeros(20)), ValueError, r"shape \[20\]"),
    "embeddings of two images": (
        lambda m: m(IMAGE, torch.zeros(2, 3, 20)),
        ValueError,
        r"shape \[2, 3, 20\]",
    ),
    "whole numbers": (
        lambda m: m(IMAGE, torch.zeros(2, 20, dtype=torch.int64)),
        ValueError,
        "dtype torch.int64; expected floating point",
    ),
    "no embeddings": (lambda m: m(IMAGE, torch.zeros(0, 20)), ValueError, "no prompts"),
    "template without braces": (
        lambda m: m(IMAGE, WORDS, templates="a photo"),
        ValueError,
        r"template 'a photo' has no \{\}",
    ),
    "no template": (lambda m: m(IMAGE, WORDS, templates=[]), ValueError, "templates is empty"),
    "a number as template": (
        lambda m: m(IMAGE, WORDS, templates=["{}", 5]),
        TypeError,
        "a template is of type int",
    ),
    "templates by position": (
        lambda m: m(IMAGE, WORDS, True, False, "{}"),
        TypeError,
        "positional",
    ),
    "fewer lists": (
        lambda m: m.batched_forward(IMAGE.repeat(3, 1, 1, 1), [["cat"], ["dog"]]),
        ValueError,
        "2 prompt lists for 3 images; expected one list per image",
    ),
    "more lists": (
        lambda m: m.batched_forward(IMAGE, [["cat"], ["dog"]]),
        ValueError,
        "2 prompt lists for 1 images",
    ),
    "words, not lists": (
        lambda m: m.batched_forward(IMAGE, ["cat"]),
        TypeError,
        r"the string 'cat'; expected a list",
    ),
    "a string of lists": (
        lambda m: m.batched_forward(IMAGE, "cat"),
        TypeError,
        "texts is a string; expected a list with one list of prompts per image",
    ),
    "a tensor of lists": (
        lambda m: m.batched_forward(IMAGE, torch.zeros(1, 2, 20)),
        TypeError,
        "texts is of type Tensor; expected a list with one list",
    ),
    "an empty list": (
        lambda m: m.batched_forward(IMAGE.repeat(2, 1, 1, 1), [["cat"], []]),
        ValueError,
        "no prompts",
    ),
    "wrong embeddings in a list": (
        lambda m: m.batched_forward(IMAGE, [torch.zeros(1, 5)]),
        ValueError,
        r"shape \[1, 5\]",
    ),
    "encode_text of a string": (lambda m: m.encode_text("cat"), TypeError, "expected a list"),
    "encode_text of nothing": (lambda m: m.encode_text([]), ValueError, "no prompts"),
    "encode_image of nothing": (lambda m: m.encode_image(IMAGE[:0]), ValueError, "empty batch"),
    "classify without names": (lambda m: m.classify(IMAGE, []), ValueError, "no prompts"),
    "segment: a string": (lambda m: m.segment(IMAGE, "cat"), TypeError, "class_names is a string"),
    "segment: nothing": (lambda m: m.segment(IMAGE, []), ValueError, "at least one class"),
    "segment: no name": (lambda m: m.segment(IMAGE, ["cat", []]), ValueError, "one name for each"),
    "segment: background": (
        lambda m: m.segment(IMAGE, ["cat"], background="sky"),
        TypeError,
        "background is a string",
    ),
    "segment: a background of words and numbers": (
        lambda m: m.segment(IMAGE, ["cat"], background=3),
        TypeError,
        "background is of type int; expected a list of words, a probability",
    ),
    "segment: two thresholds": (
        lambda m: m.segment(IMAGE, ["cat"], background=0.5, threshold=0.5),
        ValueError,
        "background is a threshold already",
    ),
    "segment: short side": (
        lambda m: m.segment(IMAGE, ["cat"], short_side=0),
        ValueError,
        "short_side is 0",
    ),
    "segment: short side below a patch": (
        lambda m: m.segment(IMAGE, ["cat"], short_side=5),
        ValueError,
        "resized images of 5 x .* one patch",
    ),
    "segment: batch": (
        lambda m: m.segment(IMAGE, ["cat"], batch=0),
        ValueError,
        "batch is 0; expected at least 1",
    ),
    "segment: small window": (
        lambda m: m.segment(IMAGE, ["cat"], window=7),
        ValueError,
        r"window of 7 x 7 pixels.*one patch, 8 x 8",
    ),
    "segment: large stride": (
        lambda m: m.segment(IMAGE, ["cat"], window=16, stride=17),
        ValueError,
        "stride .* larger than window",
    ),
    "segment: threshold": (
        lambda m: m.segment(IMAGE, NAMES, threshold=85),
        ValueError,
        "threshold is 85",
    ),
}


@pytest.mark.parametrize(("call", "kind", "message"), BAD_CALLS.values(), ids=BAD_CALLS)
def test_bad_input(
    model: GEMPredictor,
    call: Callable[[GEMPredictor], object],
    kind: type[Exception],
    message: str,
) -> None:
    with pytest.raises(kind) as raised:
        call(model)
    assert re.search(message, str(raised.value)), str(raised.value)


# ---- the functions that make models


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        (
            {"model_name": "ViT-B/61"},
            ValueError,
            "unknown model 'ViT-B/61'; nearest known: 'ViT-B/16'",
        ),
        ({"model_name": None}, TypeError, "expected a string"),
        ({"gem_depth": 0}, ValueError, r"gem_depth is 0; expected 1 \(no dual block\) to 13"),
        ({"gem_depth": 14}, ValueError, r"gem_depth is 14; expected 1 .* to 13"),
        ({"gem_depth": 7.0}, TypeError, r"gem_depth is 7\.0"),
        ({"ss_attn_iter": -1}, ValueError, "ss_attn_iter is -1; expected 0 or more"),
        ({"ss_attn_iter": 1.5}, TypeError, r"ss_attn_iter is 1\.5"),
        ({"ss_attn_temp": 0}, ValueError, r"expected a number in \[0.0001, 10000\]"),
        ({"ss_attn_temp": "hot"}, ValueError, "'hot'; expected a number or 'adaptive'"),
        ({"gem_streams": "qkx"}, ValueError, "'qkx'; expected one to three different letters"),
        ({"precision": "fp8"}, ValueError, r"'fp8'; expected one of \['fp32', 'fp16', 'bf16'\]"),
        ({"device": "gpu"}, ValueError, "device is 'gpu'; expected 'cpu', 'cuda'"),
        ({"activation": "relu"}, ValueError, "'relu'; expected one of"),
        ({"pretrained": "opanai"}, ValueError, "unknown pretrained weights 'opanai'.*'openai'"),
        ({"pretrained": "./none.pt"}, FileNotFoundError, "no checkpoint at none.pt"),
    ],
    ids=str,
)
def test_models_that_cannot_be_made(
    changes: dict[str, object], kind: type[Exception], message: str
) -> None:
    arguments: dict[str, object] = {"model_name": "ViT-B/16", **changes}
    with pytest.raises(kind) as raised:
        gem.create_gem_model(**arguments)  # type: ignore[arg-type]
    assert re.search(message, str(raised.value)), str(raised.value)


def test_a_saved_small_model_comes_back(tmp_path: Path) -> None:
    """Through the public functions; the GEM settings in use become the file's own."""
    model = small_model(GEMConfig(blocks=1, iters=2, inv_temp=4.0, streams="qk", residual=False))
    path = tmp_path / "mine.safetensors"
    gem.save(model, path)
    again, transform = gem.create_model_and_transforms("small", path)
    assert not again.training and again.network.method == model.network.method
    assert again.network.config == CONFIG
    assert transform.size == (64, 64)
    images = random_images(1, 40, 40)
    assert torch.equal(again(images, WORDS), model(images, WORDS))
    changed = gem.create_gem_model(
        "Small",
        str(path),
        3,
        1,
        "adaptive",
        "bf16",
        "cpu",
        gem_streams="qkv",
        gem_residual=True,
    )
    assert changed.network.method == GEM
    assert changed.network.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"gem_depth is 5; expected 1 .* to 4"):
        gem.create_gem_model("small", path, 5)


def test_random_weights_come_from_torchs_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a small architecture in the place of a known one, to be quick."""
    monkeypatch.setitem(ARCHITECTURES, "ViT-B/32", replace(CONFIG, activation="gelu"))

    def make(seed: int, *arguments: Any, **named: Any) -> GEMPredictor:
        torch.manual_seed(seed)
        return gem.create_gem_model(*arguments, **named)

    model = make(0, "ViT-B/32", None, 3)
    assert not model.training and model.network.config.activation == "gelu"
    assert model.network.method == GEM
    again = make(0, "vit-b-32-quickgelu", gem_depth=1, precision="bf16")
    assert again.network.config.activation == "quick_gelu"
    assert again.network.method == GEMConfig(blocks=0)
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], tensor.bfloat16()), name
    other = make(1, "ViT-B/32", None, 3, activation="quick_gelu")
    assert not torch.equal(other.network.visual.proj, model.network.visual.proj)
    assert other.network.config.activation == "quick_gelu"


def test_get_tokenizer() -> None:
    tokenizer = gem.get_tokenizer("ViT-B-16-quickgelu")
    rows = tokenizer(["a cat", "a dog on a sofa"])
    assert rows.dtype == torch.int64 and rows.shape == (2, 77)
    assert rows[0].tolist()[:5] == [49406, 320, 2368, 49407, 0]
    assert tokenizer("a cat").shape == (1, 77)
    assert tokenizer("a cat", context_length=3).tolist() == [[49406, 320, 49407]]
    with pytest.raises(ValueError, match="nearest known"):
        gem.get_tokenizer("ViT-B/61")


# ---- upstream's README, with `import gem_lite as gem`; random weights and pictures from the disk


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    paths = []
    for index, mode in enumerate(["RGB", "L", "RGBA"]):
        path = folder / f"{index}.png"
        pixels = generator.integers(0, 256, (60, 90, 4), dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
        paths.append(path)
    return paths


@pytest.fixture(scope="module")
def full_size() -> GEMPredictor:
    """A whole ViT-B/32, the fastest of the architectures."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model, preprocess = gem.create_model_and_transforms(
        "ViT-B/32", None, 7, 1, None, "fp32", device, cache_dir="unused"
    )
    assert preprocess(Image.new("L", (30, 20))).shape == (3, 448, 448)
    assert not Path("unused").exists()
    assert not model.training
    assert model.network.method == GEMConfig(blocks=6, iters=1, inv_temp=None)
    return model


def test_upstream_single_image(full_size: GEMPredictor, pictures: list[Path]) -> None:
    assert ("ViT-B/16", "openai") in gem.available_models()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    preprocess = gem.get_gem_img_transform()
    gem_model = full_size
    image = preprocess(Image.open(pictures[0])).unsqueeze(0).to(device)
    text = ["cat", "remote control"]

    with torch.no_grad():
        logits = gem_model(image, text)
        shown = gem_model.visualize(image, text, logits)

    assert logits.shape == (1, 2, 448, 448)
    assert len(shown) == 2 and shown[0].width == 448


def test_upstream_batched_inference(full_size: GEMPredictor, pictures: list[Path]) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    gem_model = full_size
    preprocess = gem.get_gem_img_transform(img_size=(224, 224))
    texts = [
        ["remote control", "cat"],
        ["elon musk", "mark zuckerberg", "jeff bezos", "bill gates"],
        ["batman", "joker", "shoe", "belt", "purple suit"],
    ]
    images_pil = [Image.open(path) for path in pictures]
    images = torch.stack([preprocess(img) for img in images_pil]).to(device)

    with torch.no_grad():
        logits_list = gem_model.batched_forward(images, texts)
        for i, logits in enumerate(logits_list):
            shown = gem_model.visualize(images[i], texts[i], logits)
            assert len(shown) == len(texts[i])

    assert [tuple(logits.shape) for logits in logits_list] == [
        (2, 224, 224),
        (4, 224, 224),
        (5, 224, 224),
    ]


def test_upstream_semantic_segmentation(full_size: GEMPredictor, pictures: list[Path]) -> None:
    """Its recipe, with the index that has the right shape; and what this package has for it."""
    gem_model = full_size
    preprocess = gem.get_gem_img_transform((224, 224))
    image = preprocess(Image.open(pictures[0])).unsqueeze(0).to(gem_model.network.device)
    class_names = ["airplane", "cat", "dog", "..."]

    with torch.no_grad():
        logits = gem_model(image, class_names)
        segmentation = gem_model.segment(image, class_names, threshold=0.85)

    pred = logits.argmax(dim=1) + 1
    pred[logits.softmax(dim=1).amax(dim=1) < 0.85] = 0
    assert pred.shape == segmentation.labels.shape == (1, 224, 224)
    assert int(pred.max()) == 0  # softmax over maps in [0, 1] never reaches the threshold


def test_models_are_ready_for_fine_tuning(full_size: GEMPredictor) -> None:
    """Parameters are trainable, so that fine-tuning works as it is; no_grad is the caller's."""
    assert all(parameter.requires_grad for parameter in full_size.parameters())
    assert not full_size.training
